"""What an operator backend is: the jobs, the data they work on, and what a backend must say of itself.

Five jobs, each defined by the reference backend (`quota.ops.reference`), which every other one must equal exactly up to
the integer sums and to rounding behind them:

    linear     linear            y = s_t s_n sum_k v_tk w_nk + b_n       rotate, quantise, multiply, scale, add bias
    cache      quantize_kv       keys or values -> packed integers, and back by dequantize_kv
               store_kv          the same of keys and values at once, into a cache, with what attention reads of them
               decode_attention  one query a sequence over the packed cache
    attention  attention         prefill attention that also adds up what each token receives (the scores' cues)
    tokens     activation_error  how far the activation quantiser moves each visual token
               information       QUOTA's own score of visual tokens (quota/pruning/scorers/information.py)
               cut               the best so many by any score (equation 5), and where they stand then
    rows       norm              RMSNorm and LayerNorm
               activate, gated   an activation, and one times another tensor
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from quota.ops.choice import Cut
from quota.ops.head_transform import HeadTransform


@dataclass(frozen=True)
class InputSpec:
    """How the inputs [M, K] of linear layers are quantised: plain numbers, resolved from the scheme for their K."""

    columns: int
    """K, input channels."""
    bits: int
    group: int
    """Channels that share step and offset; divides K."""
    hadamard: int
    """Block of the rotation in front; 0 or 1: none."""


@dataclass(frozen=True)
class LinearSpec:
    """How one linear layer [N, K] is quantised."""

    rows: int
    """N, output channels."""
    bits: int
    """Of the weights."""
    group: int
    """Input channels that share a step of the weights; divides K."""
    inputs: InputSpec

    @property
    def columns(self) -> int:
        """K, input channels."""
        return self.inputs.columns

    @property
    def name(self) -> str:
        """The usual short form, as "W4A4"."""
        return f"W{self.bits}A{self.inputs.bits}"


@dataclass
class LinearWeight:
    """A quantised weight as the checkpoint holds it, and what a backend made of it."""

    spec: LinearSpec
    packed: Tensor
    """int32 [N, ceil(K * bits / 32)] from `pack_int32`."""
    step: Tensor
    """uint8 [N, K / group]: g, in 1 .. 16."""
    scale: Tensor
    """float32 [N]: s."""
    bias: Tensor | None
    """float32 [N]."""
    prepared: dict[str, Any] = field(default_factory=dict)
    """Backend name -> whatever that backend keeps for this weight."""


@dataclass(frozen=True)
class CacheSpec:
    """How keys or values of one decoder layer are stored, resolved from the scheme for its head width."""

    bits: int
    width: int
    """D, channels of a head."""
    hadamard: int
    """Block of the rotation; 0 or 1: none."""


@dataclass(frozen=True)
class NormSpec:
    """What a norm computes (quota/ops/reference/rows.py)."""

    eps: float
    centred: bool = False
    """LayerNorm, which may have a bias; else RMSNorm, which has none."""
    offset: bool = False
    """Scales by 1 + weight, in float32. Not with `centred`."""


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu")
"""Names of the functions that `activate` and `gated` know."""


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """Keys or values [B, G, T, D] in `bits` bits: x ~ zero + scale * q, behind a transform and a rotation."""

    packed: Tensor
    """uint8 [B, G, T, D * bits / 8], the last dimension contiguous."""
    scale: Tensor
    """float16 [B, G, T, 1]."""
    zero: Tensor
    """float16 [B, G, T, 1]."""
    bits: int
    width: int
    """D."""
    hadamard: int
    """Block of the rotation; 0 or 1: none."""
    transform: HeadTransform | None = None
    """In front of the rotation; of keys only."""

    def first(self, tokens: int) -> PackedTensor:
        """The first so many tokens."""
        packed, scale, zero = (part.narrow(2, 0, tokens) for part in (self.packed, self.scale, self.zero))
        return PackedTensor(packed, scale, zero, self.bits, self.width, self.hadamard, self.transform)


class Backend(Protocol):
    """A module or object with these names."""

    name: str

    def why_not(self) -> str | None:
        """Why this backend cannot run on this machine; None if it can."""
        ...

    def lacks(self, spec: LinearSpec) -> str | None:
        """Why this backend cannot run such a layer; None if it can."""
        ...

    def lacks_cache(self, spec: CacheSpec) -> str | None:
        """Why this backend cannot store or read such a cache; None if it can."""
        ...

    def quantize(self, x: Tensor, inputs: InputSpec) -> tuple[Tensor, Tensor]:
        """What `linear` makes of x [M, K]: v int8 [M, K] and s float32 [M]. QuotaError for NaN or infinity in x."""
        ...

    def sums(self, values: Tensor, weight: LinearWeight) -> Tensor:
        """The integer sums inside `linear`, by the same kernel, for tests and `quota doctor`.

        v int8 [M, K] -> int32 [M, N].
        """
        ...

    def linear(self, x: Tensor, weights: Sequence[LinearWeight]) -> list[Tensor]:
        """x [M, K] float32, bfloat16 or float16 -> for each weight [M, N] in the same type, x being quantised once.

        All weights have the same `InputSpec`. QuotaError for NaN or infinity in x.
        """
        ...

    def quantize_kv(self, x: Tensor, bits: int, hadamard: int, transform: HeadTransform | None = None) -> PackedTensor:
        """[B, G, T, D] -> packed. QuotaError for NaN, infinity and what float16 cannot hold."""
        ...

    def dequantize_kv(self, stored: PackedTensor, dtype: Any) -> Tensor:
        """Rotated and transformed back, less the transform's center: [B, G, T, D] in `dtype`."""
        ...

    def store_kv(
        self, keys: Tensor, values: Tensor, stored: tuple[PackedTensor, PackedTensor], at: int, read: bool
    ) -> tuple[Tensor, Tensor] | None:
        """`quantize_kv` of keys and values [B, G, T, D] into slots at .. at + T - 1 of `stored`, in place.

        With `read` the two as `dequantize_kv` makes them of what was stored, in their type. QuotaError as for
        `quantize_kv`; the slots then hold anything.
        """
        ...

    def decode_attention(
        self,
        query: Tensor,
        keys: PackedTensor,
        values: PackedTensor,
        valid: Tensor | None,
        scaling: float,
        tokens: int | None = None,
        added: Tensor | None = None,
    ) -> Tensor:
        """query [B, H, 1, D] (G divides H), valid bool [B, T] -> [B, H, 1, D] in the query's type.

        T is `tokens`, the first of the cache, or all. `added` float32 [B, H, T] goes to the logits, behind `scaling`.
        """
        ...

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: Tensor,
        visible: Tensor,
        scaling: float,
        causal: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Attention of the last T of S tokens, and the attention that each of the S receives.

        query [B, H, T, D], key and value [B, G, S, D], rows bool [B, R, T] (R sets of queries), visible bool [B, S]
        (keys that may be attended to; if `causal`, by no token before them) -> output [B, H, T, D], sums float32
        [B, R, S] averaged over heads.
        """
        ...

    def leads_attention(self, dtype: Any) -> bool:
        """Whether `attention` is faster than torch's own in this type, also where nobody asks for sums."""
        ...

    def activation_error(self, x: Tensor, inputs: InputSpec) -> Tensor:
        """||Q(x H) - x H||_2 of each row of x [M, K] -> [M] float32, Q the activation quantiser (the scores' risk)."""
        ...

    def information(self, hidden: Tensor, valid: Tensor, counts: Tensor, noise: float) -> Tensor:
        """Score of the V visual tokens of each image, hidden [B, V, D] -> [B, V] float32, 0 at padding.

        valid bool [B, V]; counts int64 [B], how many of each image are chosen; the noise relative to the mean square
        of a token's length.
        """
        ...

    def cut(self, score: Tensor, counts: Sequence[int], valid: Tensor, places: Tensor, others: Tensor) -> Cut:
        """Keep of each row the `counts` [R] highest scores [R, V], ties by index, and all `others` bool [B, T].

        valid bool [R, V]: the rest is never chosen. places int64 [R, V]: in the flattened batch. QuotaError for a NaN
        score.
        """
        ...

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, spec: NormSpec) -> Tensor:
        """x [..., K], weight and bias [K], all float32, bfloat16 or float16 -> as x, without a gradient."""
        ...

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """One of `ACTIVATIONS` of each number of x, float32, bfloat16 or float16 -> as x, without a gradient."""
        ...

    def gated(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """`activate(gate)`, rounded, times `up`; both of one shape and type -> as gate, without a gradient."""
        ...
