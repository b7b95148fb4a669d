"""The cpu backend: C++ kernels for AVX512-VNNI and AMX, with AVX2 and portable ones behind them.

Which of them runs is decided on the machine (`quota.ops.cpu.library`). All read weights and cache in the packed form in
which they are stored, and unpack in registers.
"""

from __future__ import annotations

from quota.ops.cpu import kv, library, prefill, ranking, w4a4


class CpuBackend:
    """4-bit weights, activations and caches on x86-64 processors."""

    name = "cpu"

    lacks = staticmethod(w4a4.lacks)
    linear = staticmethod(w4a4.linear)
    group_sums = staticmethod(w4a4.group_sums)
    lacks_cache = staticmethod(kv.lacks_cache)
    quantize_kv = staticmethod(kv.quantize_kv)
    dequantize_kv = staticmethod(kv.dequantize_kv)
    decode_attention = staticmethod(kv.decode_attention)
    attention = staticmethod(prefill.attention)
    activation_error = staticmethod(prefill.activation_error)
    peaks = staticmethod(ranking.peaks)
    cut = staticmethod(ranking.cut)

    def why_not(self) -> str | None:
        """Why it cannot run on this machine. QuotaError if QUOTA_CPU_ISA asks for what the machine lacks."""
        reason = library.why_not()
        if reason is None:
            library.isa()
        return reason
