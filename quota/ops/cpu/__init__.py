"""The cpu backend: C++ kernels for AVX512-VNNI and AMX, with AVX2 and portable ones behind them.

Which of them runs is decided on the machine (`quota.ops.cpu.library`). All read weights and cache in the packed form in
which they are stored, and unpack in registers.
"""

from __future__ import annotations

from quota.ops.cpu import attention, cache, library, linear, rows, tokens


class CpuBackend:
    """Weights and activations of 4 and 8 bits, and 4-bit caches, on x86-64 processors."""

    name = "cpu"

    # A job that is called as its module hides it from what follows, so it comes last of it.
    lacks = staticmethod(linear.lacks)
    quantize = staticmethod(linear.quantize)
    sums = staticmethod(linear.sums)
    linear = staticmethod(linear.linear)
    lacks_cache = staticmethod(cache.lacks_cache)
    quantize_kv = staticmethod(cache.quantize_kv)
    dequantize_kv = staticmethod(cache.dequantize_kv)
    store_kv = staticmethod(cache.store_kv)
    decode_attention = staticmethod(cache.decode_attention)
    leads_attention = staticmethod(attention.leads_attention)
    attention = staticmethod(attention.attention)
    activation_error = staticmethod(tokens.activation_error)
    information = staticmethod(tokens.information)
    cut = staticmethod(tokens.cut)
    norm = staticmethod(rows.norm)
    activate = staticmethod(rows.activate)
    gated = staticmethod(rows.gated)

    def why_not(self) -> str | None:
        """Why it cannot run on this machine. QuotaError if QUOTA_CPU_ISA asks for what the machine lacks."""
        reason = library.why_not()
        if reason is None:
            library.isa()
        return reason
