"""What is quantised, and how: one frozen object that calibration, checkpoints and recipes share.

The default is the regime of docs/method.md, "W4A4KV4" in the vision tower, the projector and the
language model: symmetric 4-bit weights in groups of 64 input channels, asymmetric 4-bit activations in
groups of 32 channels measured anew for every token, a 4-bit KV cache, and a Hadamard rotation of blocks of
64 channels in front of every quantised linear layer. Groups are inside one scale a row and a token; with 8 bits
there is that scale alone. Embedding and lm_head have 8 bits. 16 bits mean "left in floating point"; with
16-bit weights and activations linear layers stay as they are, and the cache alone is quantised. `transforms` says what
else is done to what is quantised:

    hadamard   nothing
    learned    diagonals folded into norms and weights, a matrix for the values of each head folded into the layers
               around them, and a centre and a matrix for its keys, which the KV cache applies; all in closed form from
               the calibration set (quota/quantization/balance.py). The default
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from quota.errors import QuotaError, first_problem

Part = Literal["tower", "projector", "decoder"]
PARTS: tuple[Part, ...] = ("tower", "projector", "decoder")
LARGEST_GROUP = 256


def _group_size(value: int) -> int:
    if not 1 <= value <= LARGEST_GROUP or value & (value - 1):
        raise ValueError(f"must be a power of two from 1 to {LARGEST_GROUP}, not {value}")
    return value


def _block_size(value: int) -> int:
    return value if value == 0 else _group_size(value)


def _ordered_parts(value: tuple[Part, ...]) -> tuple[Part, ...]:
    if not value:
        raise ValueError(f"must name at least one of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in value)


GroupSize = Annotated[int, AfterValidator(_group_size)]


class QuantizationScheme(BaseModel):
    """Bits, group sizes, rotation and parts; frozen, hashable, unknown names refused.

    Any value that is not allowed raises QuotaError with one line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    weight_bits: Literal[4, 8, 16] = 4
    weight_group: GroupSize = 64
    activation_bits: Annotated[Literal[4, 8, 16], Field(validate_default=True)] = 4
    activation_group: GroupSize = 32
    """Small groups are free: steps are whole numbers inside a token's scale, which no product sees."""
    kv_bits: Literal[2, 3, 4, 8, 16] = 4
    hadamard: Annotated[int, AfterValidator(_block_size)] = 64
    weight_rounding: Literal["corrected", "gptq", "rtn"] = "corrected"
    """GPTQ of weights corrected for what their inputs have strayed (quota/calibration/moments.py), GPTQ, to nearest."""
    transforms: Literal["hadamard", "learned"] = "learned"
    modules: Annotated[tuple[Part, ...], AfterValidator(_ordered_parts)] = PARTS
    head_bits: Literal[4, 8, 16] = Field(default_factory=lambda given: _bits_of_ends(given))
    """Of the weights of lm_head, whose inputs have 8 bits then (quota/quantization/ends.py)."""
    embedding_bits: Literal[8, 16] = Field(default_factory=lambda given: _bits_of_ends(given))
    """Of the rows of the embedding (quota/quantization/embedding.py)."""

    def __init__(self, **values: object) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise QuotaError(f"quantisation scheme, {first_problem(error)}") from None

    @field_validator("activation_bits")
    @classmethod
    def _as_the_weights_allow(cls, value: int, others: ValidationInfo) -> int:
        if others.data.get("weight_bits") == 16 and value < 16:
            raise ValueError("must be 16 with 16-bit weights, under which layers stay as they are")
        return value

    @property
    def name(self) -> str:
        """The usual short form, as "W4A4KV4"."""
        return f"W{self.weight_bits}A{self.activation_bits}KV{self.kv_bits}"

    @property
    def folds(self) -> bool:
        """Whether transforms learned from the calibration set are folded into weights and applied to cached keys."""
        return self.transforms != "hadamard"

    def weight_group_for(self, in_features: int) -> int:
        """Weight group of a layer with `in_features` inputs: the largest power of two that divides; all with 8 bits."""
        return in_features if self.weight_bits == 8 else _largest_divisor(in_features, self.weight_group)

    def activation_group_for(self, in_features: int) -> int:
        """Activation group of a layer with `in_features` inputs, by the same rule."""
        return _largest_divisor(in_features, self.activation_group)

    def hadamard_for(self, in_features: int) -> int:
        """Rotation block of a layer with `in_features` inputs, by the same rule; 0 without a rotation."""
        return _largest_divisor(in_features, self.hadamard) if self.hadamard else 0


def _bits_of_ends(given: Mapping[str, Any]) -> Literal[8, 16]:
    """8, unless the decoder between embedding and lm_head stays as it is."""
    return 8 if given.get("weight_bits", 16) < 16 and "decoder" in given.get("modules", ()) else 16


def _as_older_files_mean(fields: Any) -> Any:
    """Files say every field; those that do not say these two are older, and left both ends in 16 bits."""
    return {"head_bits": 16, "embedding_bits": 16} | fields if isinstance(fields, dict) else fields


FromFile = BeforeValidator(_as_older_files_mean)
"""Annotates the scheme that a file holds, which may be of an older version."""


def _largest_divisor(in_features: int, limit: int) -> int:
    """Largest power of two that is at most `limit` (itself one) and divides `in_features`."""
    # The lowest set bit of a number is the largest power of two that divides it.
    return min(limit, in_features & -in_features)


def bits_named(name: str) -> dict[str, int]:
    """The fields that a short form means: "w4a8", or with the cache "W4A8KV4"; 4 bits of cache if it says none.

    Raises QuotaError for anything else; which bits there are, `QuantizationScheme` knows.
    """
    found = re.fullmatch(r"w(\d{1,2})a(\d{1,2})(?:kv(\d{1,2}))?", name, re.IGNORECASE)
    if found is None:
        raise QuotaError(f"there is no scheme {name!r}; write bits of weights, activations and cache, as w4a4, w4a8kv4")
    weights, activations, cache = found.groups()
    return {"weight_bits": int(weights), "activation_bits": int(activations), "kv_bits": int(cache or 4)}
