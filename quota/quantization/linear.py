"""The quantised linear layer: rotate, quantise activations on the fly, multiply integers, scale, add bias.

    y_tn = s_t s_n sum_k v_tk w_nk + b_n       v of x H, w of W H      (docs/method.md)

H is the block Hadamard rotation, an identity in exact arithmetic, as it stands on both sides. All of it is one
operator of `quota.ops`, whose backends read the weights as they are stored. Tensors have the names and the layout
of compressed-tensors' "pack-quantized" format, so the state dict is the checkpoint: `weight_scale` is s_n g_nj,
exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quota import ops
from quota.errors import QuotaError
from quota.ops.hadamard import block_hadamard
from quota.ops.interface import InputSpec, LinearSpec, LinearWeight
from quota.ops.packing import pack_int32, unpack_int32
from quota.ops.source import Source
from quota.ops.weights import dequantize_weight, join_scales, quantize_weight, split_scales
from quota.quantization.gptq import gptq
from quota.quantization.siblings import Siblings, shared
from quota.scheme import QuantizationScheme

FLOATS = torch.bfloat16, torch.float16, torch.float32, torch.float64
_DAMAGED = "copy the checkpoint again or compress again"
_ROWS = 1 << 14


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], positive: bool = False
) -> None:
    """QuotaError, which names the tensor, if a stored one has another type or shape, or holds what cannot be meant.

    Floating numbers must be finite, and above zero if `positive`.
    """
    if tensor.dtype not in dtypes:
        raise QuotaError(f"{name} is {tensor.dtype}, not {' or '.join(map(str, dtypes))}; {_DAMAGED}")
    if tensor.shape != shape:
        raise QuotaError(f"{name} has shape {list(tensor.shape)}, not {list(shape)}; {_DAMAGED}")
    if not tensor.is_floating_point():
        return
    if not bool(tensor.isfinite().all()):
        raise QuotaError(f"{name} holds NaN or infinity; {_DAMAGED}")
    if positive and not bool((tensor > 0).all()):
        raise QuotaError(f"{name} holds numbers that are not above zero; {_DAMAGED}")


def input_spec(scheme: QuantizationScheme, columns: int) -> InputSpec:
    """How layers with so many input channels quantise their inputs."""
    group, block = scheme.activation_group_for(columns), scheme.hadamard_for(columns)
    return InputSpec(columns, scheme.activation_bits, group, block)


class W4A4Linear(nn.Module):
    """A linear layer under a `QuantizationScheme`, whatever its bits; the name is that of the default.

    Buffers: weight_packed int32 [N, ceil(K * bits / 32)], weight_scale [N, K / group], weight_shape int64 (N, K) and
    bias [N] or None.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_shape: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        scheme: QuantizationScheme,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        """An empty layer, for loaders to fill; `dtype` is that of the bias. QuotaError for 16-bit weights."""
        super().__init__()
        if scheme.weight_bits == 16:
            raise QuotaError(f"{scheme.name} leaves linear layers as they are; use 4- or 8-bit weights to quantise one")
        self.in_features = in_features
        self.out_features = out_features
        self.scheme = scheme
        inputs = input_spec(scheme, in_features)
        self.spec = LinearSpec(out_features, scheme.weight_bits, scheme.weight_group_for(in_features), inputs)
        self._made: tuple[LinearWeight, Source] | None = None
        self.siblings = Siblings()
        words = -(-in_features * scheme.weight_bits // 32)
        groups = in_features // self.spec.group
        packed = torch.zeros(out_features, words, dtype=torch.int32, device=device)
        self.register_buffer("weight_packed", packed)
        scale = torch.ones(out_features, groups, dtype=torch.bfloat16, device=device)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_shape", torch.tensor([out_features, in_features], device=device))
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype, device=device) if bias else None)

    @classmethod
    def empty_like(
        cls, linear: nn.Linear | W4A4Linear, scheme: QuantizationScheme, device: torch.device | str
    ) -> W4A4Linear:
        """An empty layer in place of `linear`, for loaders to fill."""
        dtype = torch.float32 if linear.bias is None else linear.bias.dtype
        return cls(linear.in_features, linear.out_features, linear.bias is not None, scheme, dtype, device)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        scheme: QuantizationScheme,
        hessian: Tensor | None = None,
        correction: Tensor | None = None,
    ) -> W4A4Linear:
        """Quantise `linear`, which stays as it is.

        `hessian` [K, K] is x^T x over calibration tokens x [tokens, K], rotated by `block_hadamard` with
        `scheme.hadamard_for(K)`. All roundings but "rtn" need it (QuotaError without). What is rounded by it is W + W C
        of the rotated weights, C the `correction` [K, K] (quota/calibration/moments.py).
        """
        weight, bias = linear.weight.detach(), linear.bias
        layer = cls.empty_like(linear, scheme, weight.device)
        if bias is not None:
            layer.bias = bias.detach().clone()
        spec = layer.spec
        if scheme.weight_rounding == "rtn":
            layer.weight_packed, layer.weight_scale = nearest(weight, spec)
            return layer
        if hessian is None:
            raise QuotaError(f'weight rounding "{scheme.weight_rounding}" needs calibration data; choose "rtn"')
        rotated = block_hadamard(weight.float(), spec.inputs.hadamard)
        if correction is not None:
            rotated = rotated + rotated @ correction
        q, step, scale = gptq(rotated, hessian, spec.bits, spec.group)
        layer.weight_packed, layer.weight_scale = pack_int32(q, spec.bits), join_scales(step, scale)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] to [..., N] in x's dtype, without a gradient; QuotaError if x holds NaN or infinity."""
        return shared(self, x, lambda layers: self._run(x.detach(), layers))

    def _run(self, x: Tensor, layers: list[W4A4Linear]) -> list[Tensor]:
        """What each of `layers`, all `alike`, makes of x."""
        rows = x.reshape(-1, self.in_features)
        if rows.dtype == torch.float64:
            rows = rows.float()
        outputs = ops.for_linear(self.spec, x.device).linear(rows, [layer._operand() for layer in layers])
        shape = x.shape[:-1]
        return [y.view(*shape, layer.out_features).to(x.dtype) for y, layer in zip(outputs, layers, strict=True)]

    def alike(self, other: W4A4Linear) -> bool:
        """Whether both quantise what they read in one way, and by one backend."""
        mine, others = self.spec, other.spec
        if (mine.bits, mine.group) != (others.bits, others.group) or mine.inputs != others.inputs:
            return False
        return self.weight_packed.device == other.weight_packed.device

    def dequantized_weight(self) -> Tensor:
        """What the packed weights stand for, float32 [N, K], in the rotated basis."""
        operand = self._operand()
        q = unpack_int32(operand.packed, self.spec.bits, self.in_features)
        return dequantize_weight(q, operand.step, operand.scale)

    def check(self, name: str = "") -> None:
        """Raise QuotaError, which names the tensor, if one is not what this layer holds: type, shape and values.

        `name` is the layer's own in its model. Scales and biases may be of any floating type, as a model can be cast.
        """
        self._checked(name)

    def _checked(self, name: str = "") -> tuple[Tensor, Tensor]:
        """g uint8 [N, K / group] and s float32 [N], which `weight_scale` stands for; errors as `check`."""
        rows, columns = self.out_features, self.in_features
        words, groups = -(-columns * self.spec.bits // 32), columns // self.spec.group
        place = f"{name}." if name else ""
        check_tensor(f"{place}weight_packed", self.weight_packed, (rows, words), (torch.int32,))
        check_tensor(f"{place}weight_scale", self.weight_scale, (rows, groups), FLOATS, positive=True)
        check_tensor(f"{place}weight_shape", self.weight_shape, (2,), (torch.int64,))
        if (said := self.weight_shape.tolist()) != [rows, columns]:
            raise QuotaError(f"{place}weight_shape says {said}, the layer is {[rows, columns]}; {_DAMAGED}")
        if self.bias is not None:
            check_tensor(f"{place}bias", self.bias, (rows,), FLOATS)
        if self.spec.bits == 8:
            return torch.ones_like(self.weight_scale, dtype=torch.uint8), self.weight_scale[:, 0].float()
        try:
            return split_scales(self.weight_scale)
        except QuotaError as error:
            raise QuotaError(f"{place}weight_scale: {error}") from None

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, scheme={self.scheme.name}"
        )

    def _operand(self) -> LinearWeight:
        """The buffers as backends take them; made anew when a buffer was replaced, moved or written to."""
        stored, made = self._buffers, self._made
        buffers = stored["weight_packed"], stored["weight_scale"], stored["bias"]
        if made is None or not made[1].is_still(*buffers):
            step, rows = self._checked()
            packed, bias = self.weight_packed.contiguous(), self.bias
            weight = LinearWeight(self.spec, packed, step, rows, None if bias is None else bias.float().contiguous())
            self._made = made = weight, Source(*buffers)
        return made[0]

    def __getstate__(self) -> dict[str, Any]:
        # What backends prepared is theirs, and may not be copied or pickled.
        return self.__dict__ | {"_made": None}


def nearest(weight: Tensor, spec: LinearSpec) -> tuple[Tensor, Tensor]:
    """`weight` [N, K] rotated and rounded to nearest: weight_packed and weight_scale of a layer."""
    packed, scales = [], []
    # In parts, as a vocabulary in float32 is far larger than what comes of it.
    for rows in weight.split(_ROWS):
        q, step, scale = quantize_weight(block_hadamard(rows.float(), spec.inputs.hadamard), spec.bits, spec.group)
        packed.append(pack_int32(q, spec.bits))
        scales.append(join_scales(step, scale))
    return torch.cat(packed), torch.cat(scales)
