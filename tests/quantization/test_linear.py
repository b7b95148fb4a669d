"""The quantised linear layer: what it computes, under which schemes, and its tensors as others read them."""

from __future__ import annotations

import copy

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization import QuantizationScheme as StockScheme
from compressed_tensors.transform import TransformArgs, TransformConfig, TransformScheme, apply_transform_config
from support.fake_quantize import fake_quantize
from support.layers import expected_output, random_input, random_linear, relative
from torch import Tensor, nn

from quota import ops
from quota.errors import QuotaError
from quota.ops.hadamard import block_hadamard
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

RTN = QuantizationScheme(weight_rounding="rtn")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("in_features", [256, 576, 96, 20, 7], ids=lambda size: f"K{size}")
@pytest.mark.parametrize("hadamard", [64, 0], ids=["rotated", "plain"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_it_computes_what_its_tensors_stand_for(in_features: int, hadamard: int, bias: bool) -> None:
    scheme = QuantizationScheme(weight_rounding="rtn", hadamard=hadamard)
    layer = W4A4Linear.from_linear(random_linear(in_features, bias=bias), scheme)
    x = random_input(2, 3, in_features)
    torch.testing.assert_close(layer(x).double(), expected_output(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("bits", "bound"),
    [((4, 4), 0.2), ((4, 16), 0.15), ((8, 8), 0.012), ((8, 4), 0.15)],
    ids=lambda value: f"W{value[0]}A{value[1]}" if isinstance(value, tuple) else "",
)
def test_other_bits_are_honoured_and_come_close_to_the_layer(bits: tuple[int, int], bound: float) -> None:
    linear = random_linear(256, 64)
    scheme = QuantizationScheme(weight_bits=bits[0], activation_bits=bits[1], weight_rounding="rtn")
    layer = W4A4Linear.from_linear(linear, scheme)
    x = random_input(50, 256)
    error = relative(layer(x), linear(x))
    assert bound / 10 < error <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 128), (1, 128), (0, 128), (2, 0, 128), (2, 3, 128), (128,)], ids=str)
def test_output_has_the_dtype_and_the_shape_of_the_input(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    layer = W4A4Linear.from_linear(random_linear().to(dtype), RTN)
    y = layer(random_input(*shape).to(dtype))
    assert y.dtype == dtype
    assert y.shape == (*shape[:-1], 24)
    assert bool(torch.isfinite(y).all())


@pytest.mark.parametrize("name", ["cpu", "torch", "reference"])
@pytest.mark.parametrize(
    "x",
    [torch.randn(128, 9).T, torch.randn(9, 256)[:, ::2], torch.randn(2, 128, 5).transpose(1, 2), torch.ones(128)[None]],
    ids=["transposed", "every other channel", "three dimensions", "one row"],
)
def test_an_input_may_lie_in_memory_as_it_likes(name: str, x: Tensor) -> None:
    if ops.why_not(name) is not None:
        pytest.skip("not here")
    layer = W4A4Linear.from_linear(nn.Linear(128, 64), QuantizationScheme(weight_rounding="rtn"))
    with ops.use(name):
        assert torch.equal(layer(x), layer(x.contiguous()))


def test_the_result_is_the_same_under_autocast() -> None:
    layer = W4A4Linear.from_linear(random_linear(), RTN)
    x = random_input(4, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = layer(x)
    assert torch.equal(under_autocast, layer(x))


def test_an_outlier_costs_less_with_the_rotation() -> None:
    linear = random_linear(256, 64)
    x = random_input(40, 256)
    x[:, 17] = 60.0
    errors = {
        block: relative(W4A4Linear.from_linear(linear, RTN.model_copy(update={"hadamard": block}))(x), linear(x))
        for block in (0, 64)
    }
    assert errors[64] < errors[0]


def test_a_hessian_makes_the_output_better_and_is_asked_for() -> None:
    linear = random_linear(128, 64)
    mixing = random_input(24, 128, seed=3)
    seen, unseen = random_input(2000, 24, seed=4) @ mixing, random_input(500, 24, seed=5) @ mixing
    weights_only = {"activation_bits": 16}
    rotated = block_hadamard(seen, 64)
    gptq = QuantizationScheme(**weights_only)
    calibrated = W4A4Linear.from_linear(linear, gptq, hessian=rotated.T @ rotated)
    nearest = W4A4Linear.from_linear(linear, RTN.model_copy(update=weights_only))
    assert relative(calibrated(unseen), linear(unseen)) < 0.5 * relative(nearest(unseen), linear(unseen))
    with pytest.raises(QuotaError, match="needs calibration"):
        W4A4Linear.from_linear(linear, gptq)


def test_the_original_layer_is_left_as_it_was() -> None:
    linear = random_linear()
    before = copy.deepcopy(linear.state_dict())
    layer = W4A4Linear.from_linear(linear, RTN)
    assert layer.bias is not None
    layer.bias += 1
    assert all(torch.equal(before[name], tensor) for name, tensor in linear.state_dict().items())


@pytest.mark.parametrize("weight_bits", [4, 8], ids=["W4", "W8"])
def test_the_state_dict_fills_an_empty_layer(weight_bits: int) -> None:
    scheme = QuantizationScheme(weight_bits=weight_bits, weight_rounding="rtn")
    layer = W4A4Linear.from_linear(random_linear(96), scheme)
    empty = W4A4Linear.empty_like(random_linear(96), scheme, "cpu")
    empty.load_state_dict(layer.state_dict())
    x = random_input(3, 96)
    assert torch.equal(empty(x), layer(x))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_an_empty_layer_has_the_sizes_and_types_of_another(bias: bool) -> None:
    linear = random_linear(96, bias=bias).to(torch.bfloat16)
    expected = {
        name: (tensor.shape, tensor.dtype) for name, tensor in W4A4Linear.from_linear(linear, RTN).named_buffers()
    }
    first = W4A4Linear.empty_like(linear, RTN, "meta")
    for empty in (first, W4A4Linear.empty_like(first, RTN, "meta")):
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in empty.named_buffers()} == expected
        assert all(tensor.is_meta for tensor in empty.buffers())


def test_a_scheme_that_leaves_layers_as_they_are_has_none() -> None:
    scheme = QuantizationScheme(weight_bits=16, activation_bits=16)
    with pytest.raises(QuotaError, match="W16A16KV4 leaves linear layers as they are"):
        W4A4Linear.from_linear(random_linear(), scheme)


def broken(tensor: Tensor, value: float) -> Tensor:
    """With one number replaced."""
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


DAMAGE = {
    **{
        f"{dtype} weights": ("weight_packed", lambda t, dtype=dtype: t.to(dtype), f"is {dtype}, not torch.int32")
        for dtype in (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int64, torch.float32)
    },
    "too few rows": ("weight_packed", lambda t: t[:-1], r"has shape \[23, 16\], not \[24, 16\]"),
    "too few words": ("weight_packed", lambda t: t[:, :-1], r"has shape \[24, 15\], not \[24, 16\]"),
    "flat weights": ("weight_packed", torch.flatten, "has shape"),
    "integer scales": ("weight_scale", Tensor.int, "is torch.int32, not torch.bfloat16 or"),
    "too few scales": ("weight_scale", lambda t: t[:, :1], r"has shape \[24, 1\], not \[24, 2\]"),
    "a negative scale": ("weight_scale", lambda t: broken(t, -1.0), "not above zero"),
    "a scale of zero": ("weight_scale", lambda t: broken(t, 0.0), "not above zero"),
    "a scale that is not a number": ("weight_scale", lambda t: broken(t, float("nan")), "NaN or infinity"),
    "another shape": ("weight_shape", lambda t: t.flip(0), r"says \[128, 24\], the layer is \[24, 128\]"),
    "three sizes": ("weight_shape", lambda t: torch.cat((t, t[:1])), "has shape"),
    "a floating shape": ("weight_shape", Tensor.float, "is torch.float32, not torch.int64"),
    "too long a bias": ("bias", lambda t: torch.cat((t, t)), "has shape"),
    "an integer bias": ("bias", Tensor.int, "is torch.int32"),
    "an infinite bias": ("bias", lambda t: broken(t, float("inf")), "NaN or infinity"),
    "scales of an older version": ("weight_scale", lambda t: broken(t, 0.0123), "compress the model again"),
}


@pytest.mark.parametrize(("place", "change", "says"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_tensor_that_cannot_be_meant_is_named_before_a_kernel_reads_it(place: str, change, says: str) -> None:
    layer = W4A4Linear.from_linear(random_linear(), RTN)
    layer.check()
    setattr(layer, place, change(layer.get_buffer(place)))
    with pytest.raises(QuotaError, match=f"^{place}.*{says}"):
        layer(random_input(2, 128))
    with pytest.raises(QuotaError, match=f"^model.layers.0.{place}.*{says}") as raised:
        layer.check("model.layers.0")
    assert len(str(raised.value)) <= 300


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layer_may_be_cast(dtype: torch.dtype) -> None:
    layer = W4A4Linear.from_linear(random_linear(), RTN).to(dtype)
    layer.check()


def test_it_is_for_inference_and_gives_no_gradient() -> None:
    layer = W4A4Linear.from_linear(random_linear(), RTN)
    assert not layer(random_input(2, 128).requires_grad_()).requires_grad


def test_casting_a_model_keeps_scales_exact() -> None:
    layer = W4A4Linear.from_linear(random_linear(), RTN)
    x = random_input(3, 128)
    before = layer(x)
    assert layer.bias is not None
    layer.bias = None
    without_bias = layer(x)
    assert torch.equal(layer.to(torch.float32)(x), without_bias)
    assert torch.equal(layer.to(torch.bfloat16)(x), without_bias)
    assert not torch.equal(before, without_bias)


@pytest.mark.parametrize("weight_bits", [4, 8], ids=["W4", "W8"])
@pytest.mark.parametrize("in_features", [128, 20], ids=["K128", "K20"])
def test_compressed_tensors_reads_the_same_weights(weight_bits: int, in_features: int) -> None:
    scheme = QuantizationScheme(weight_bits=weight_bits, weight_rounding="rtn")
    layer = W4A4Linear.from_linear(random_linear(in_features), scheme)
    group = {"strategy": "group", "group_size": scheme.weight_group_for(in_features)}
    strategy = group if weight_bits == 4 else {"strategy": "channel"}
    stock = StockScheme(
        targets=["Linear"],
        weights=QuantizationArgs(num_bits=weight_bits, symmetric=True, **strategy),
    )
    state = {name: tensor for name, tensor in layer.state_dict().items() if name != "bias"}
    assert set(state) == set(PackedQuantizationCompressor.compression_param_names(stock))
    state["weight_scale"] = state["weight_scale"].float()
    weight = PackedQuantizationCompressor.decompress(state, stock)["weight"]
    assert torch.equal(weight, layer.dequantized_weight())


@pytest.mark.parametrize("hadamard", [64, 0], ids=["rotated", "plain"])
def test_compressed_tensors_computes_an_output_as_close(hadamard: int) -> None:
    layer = W4A4Linear.from_linear(random_linear(256), RTN.model_copy(update={"hadamard": hadamard}))
    stock = nn.Sequential(random_linear(256))
    stock[0].weight.data = layer.dequantized_weight()
    group = {"num_bits": 4, "strategy": "group"}
    scheme = StockScheme(
        targets=["Linear"],
        weights=QuantizationArgs(**group, group_size=RTN.weight_group, symmetric=True),
        input_activations=QuantizationArgs(**group, group_size=RTN.activation_group, symmetric=False, dynamic=True),
    )
    # Status "compressed" means that the weights are quantised already.
    config = QuantizationConfig(config_groups={"all": scheme}, quantization_status="compressed")
    apply_quantization_config(stock, config, show_progress=False)
    if hadamard:
        online = TransformScheme(
            type="hadamard", head_dim=64, apply=[TransformArgs(targets=["Linear"], location="input")]
        )
        apply_transform_config(stock, TransformConfig(config_groups={"rotation": online}))
    x = random_input(2, 9, 256)
    # Its scales of activations are its own: floats for every group, where ours are whole steps.
    exact = x @ block_hadamard(layer.dequantized_weight(), hadamard).T + layer.bias
    assert relative(layer(x), stock(x)) < 1.5 * relative(stock(x), exact)
    assert abs(relative(layer(x), exact) / relative(stock(x), exact) - 1) < 0.1


def test_four_bit_weights_take_less_than_their_share_of_the_disk() -> None:
    layer = W4A4Linear.from_linear(random_linear(256, 64, bias=False), RTN)
    assert sum(tensor.nbytes for tensor in layer.state_dict().values()) <= 0.54 * 256 * 64


def test_fake_quantisation_is_what_the_layer_sees_in_the_basis_of_its_input() -> None:
    linear = random_linear(256, 32, bias=False)
    layer = W4A4Linear.from_linear(linear, QuantizationScheme(weight_bits=8, weight_rounding="rtn"))
    x = random_input(20, 256)
    seen = fake_quantize(x, layer.scheme)
    unrotated = block_hadamard(layer.dequantized_weight(), 64)
    torch.testing.assert_close(layer(x), seen @ unrotated.T, rtol=1e-4, atol=1e-4)
    assert 0.01 < relative(seen, x) < 0.15


def test_fake_quantisation_keeps_dtype_and_leaves_16_bits_alone() -> None:
    x = random_input(3, 64).to(torch.bfloat16)
    assert fake_quantize(x, RTN).dtype == torch.bfloat16
    assert fake_quantize(x, RTN.model_copy(update={"activation_bits": 16})) is x


@pytest.mark.parametrize("weight_bits", [4, 8], ids=["W4", "W8"])
def test_an_input_that_is_not_finite_is_refused(weight_bits: int) -> None:
    layer = W4A4Linear.from_linear(random_linear(), QuantizationScheme(weight_bits=weight_bits, weight_rounding="rtn"))
    x = random_input(2, 128)
    x[1, 3] = float("inf")
    with pytest.raises(QuotaError, match="NaN or infinity"):
        layer(x)


def test_it_names_its_scheme() -> None:
    layer = W4A4Linear.from_linear(random_linear(), RTN)
    assert repr(layer) == "W4A4Linear(in_features=128, out_features=24, bias=True, scheme=W4A4KV4)"


def test_layers_made_in_inference_mode_work() -> None:
    with torch.inference_mode():
        layer = W4A4Linear.from_linear(random_linear(), RTN)
        x = random_input(2, 128)
        y = layer(x)
    torch.testing.assert_close(y.double(), expected_output(layer, x), rtol=1e-5, atol=1e-5)


def test_bits_that_the_fast_backends_lack_are_an_error_only_if_one_is_forced() -> None:
    layer = W4A4Linear.from_linear(random_linear(), RTN.model_copy(update={"activation_bits": 16}))
    with ops.record() as usage:
        layer(random_input(2, 128))
    assert usage.backends() == {"linear": ["reference"]}
    able = [name for name in ops.NAMES if name != "reference" and ops.why_not(name) is None]
    for name in able:
        with ops.use(name), pytest.raises(QuotaError, match=f"'{name}' was asked for"):
            layer(random_input(2, 128))
    assert able or ops.backend().name == "reference"
