"""The rows of every table: each changes one thing in the default, W4A4KV4 of all modules with 128 samples.

What is measured alone stands in 16 bits everywhere else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from quota.scheme import PARTS, Part, QuantizationScheme
from quota_lab.testbeds.methods import DEFAULT_METHOD, METHODS, method_scheme

Bits = Literal[4, 8, 16]
KVBits = Literal[2, 3, 4, 8, 16]


@dataclass(frozen=True)
class Setting:
    """One way to quantise. 16 bits of weights and activations leave the cache alone quantised."""

    method: str = DEFAULT_METHOD
    modules: tuple[Part, ...] = PARTS
    weight_bits: Bits = 4
    activation_bits: Bits = 4
    activation_group: int | None = None
    kv_bits: KVBits = 4
    samples: int = 128
    head_bits: Bits | None = None
    embedding_bits: Literal[8, 16] | None = None
    """None, of these and of the group: what the scheme has by itself."""

    def scheme(self) -> QuantizationScheme:
        given = {
            "activation_group": self.activation_group,
            "head_bits": self.head_bits,
            "embedding_bits": self.embedding_bits,
        }
        return method_scheme(
            self.method,
            modules=self.modules,
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            kv_bits=self.kv_bits,
            **{field: value for field, value in given.items() if value is not None},
        )

    def figures(self) -> dict[str, Any]:
        return asdict(self)


_KV_BITS: tuple[KVBits, ...] = (16, 8, 4, 3, 2)
_ENDS: tuple[tuple[Bits, Literal[8, 16]], ...] = ((8, 16), (16, 8), (8, 8), (4, 8))
_SAMPLES = (8, 16, 32, 64, 128, 256)

TABLES: dict[str, dict[str, Setting | None]] = {
    "modules": {
        "none": None,
        "LLM": Setting(modules=("decoder",)),
        "tower + LLM": Setting(modules=("tower", "decoder")),
        "all": Setting(),
    },
    "methods": {method: Setting(method) for method in METHODS},
    "schemes": {
        "W4A4KV4, rtn": Setting("rtn"),
        "W4A4KV4": Setting(),
        "W4A8KV4": Setting(activation_bits=8),
        "W8A8KV4": Setting(weight_bits=8, activation_bits=8),
    },
    "groups": {f"activations in groups of {group}": Setting(activation_group=group) for group in (64, 32, 16)},
    "head": {
        # The rest in 16 bits, so that the ends alone are seen; they are rounded to nearest, so samples do not count.
        f"lm_head {head}, embedding {embedding}": Setting(
            weight_bits=16, activation_bits=16, kv_bits=16, samples=8, head_bits=head, embedding_bits=embedding
        )
        for head, embedding in _ENDS
    },
    "kv-bits": {
        setting.scheme().name: setting
        for setting in (
            *(Setting(kv_bits=kv_bits) for kv_bits in _KV_BITS),
            # Of 16 bits everywhere nothing is lost.
            *(Setting(weight_bits=16, activation_bits=16, kv_bits=kv_bits) for kv_bits in _KV_BITS if kv_bits < 16),
        )
    },
    "calibration": {f"{samples} samples": Setting(samples=samples) for samples in _SAMPLES},
}
"""For each table the label of every row and its setting; None is full precision."""
