"""The jobs of cache, attention, tokens and rows in plain torch: what a backend has that brings none of its own."""

from __future__ import annotations

from quota.ops.choice import cut
from quota.ops.interface import CacheSpec
from quota.ops.reference import attention, rows, tokens


class PlainTorch:
    """Runs wherever torch does, and stores and reads every cache."""

    # The job that is called as its module hides it from what follows, so it comes last of it.
    quantize_kv = staticmethod(attention.quantize_kv)
    dequantize_kv = staticmethod(attention.dequantize_kv)
    decode_attention = staticmethod(attention.decode_attention)
    attention = staticmethod(attention.attention)
    activation_error = staticmethod(tokens.activation_error)
    peaks = staticmethod(tokens.peaks)
    cut = staticmethod(cut)
    norm = staticmethod(rows.norm)
    activate = staticmethod(rows.activate)
    gated = staticmethod(rows.gated)

    def why_not(self) -> str | None:
        return None

    def lacks_cache(self, spec: CacheSpec) -> str | None:
        return None
