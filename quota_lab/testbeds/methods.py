"""The quantisers that tables compare, each adding one thing to the one before it.

rtn        round to nearest, weights and activations in groups
hadamard   the same after a block Hadamard rotation of what enters every linear, and of the cached keys
gptq       and weights rounded by GPTQ
learned    and transforms learned from the calibration set, for linears, keys and values
corrected  and weights corrected, before they are rounded, for what their inputs have strayed
"""

from __future__ import annotations

from typing import Any

from quota.errors import QuotaError
from quota.scheme import QuantizationScheme

METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"hadamard": 0, "weight_rounding": "rtn", "transforms": "hadamard"},
    "hadamard": {"weight_rounding": "rtn", "transforms": "hadamard"},
    "gptq": {"weight_rounding": "gptq", "transforms": "hadamard"},
    "learned": {"weight_rounding": "gptq", "transforms": "learned"},
    "corrected": {},
}
DEFAULT_METHOD = "corrected"


def method_scheme(method: str, **changes: Any) -> QuantizationScheme:
    """The scheme of a method, with other fields changed. QuotaError for a method that does not exist."""
    if method not in METHODS:
        raise QuotaError(f"there is no method {method!r}; known are {', '.join(METHODS)}")
    return QuantizationScheme(**{**METHODS[method], **changes})
