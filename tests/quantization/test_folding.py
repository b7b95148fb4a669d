"""Folding leaves what a block computes, and makes it lighter to quantise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support.tiny_llava import make_model, make_samples, processor
from torch import Tensor, nn

from quota.calibration.blocks import capture, run, run_all
from quota.errors import QuotaError
from quota.models import family
from quota.prompts import build_inputs
from quota.quantization.folding import fold, readers

SAMPLES = 3


def block_of(part: str) -> tuple[Any, Callable[[int], Tensor]]:
    """A tower block or decoder layer with outlier channels in front of its linears, and what runs it on a sample."""
    model = make_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter[::7] *= 20
    blocks = list(family(model).tower_blocks if part == "tower" else family(model).decoder_layers)[:1]
    entering = [capture(model, blocks, build_inputs(processor(), [sample])) for sample in make_samples(SAMPLES)]

    def advance(sample: int) -> Tensor:
        hidden, beside = entering[sample]
        return run(blocks[0], hidden, beside[0])

    return blocks[0], advance


def linears(block: nn.Module) -> set[nn.Linear]:
    return {module for module in block.modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("part", ["tower", "decoder"])
@torch.no_grad()
def test_the_block_computes_what_it_did(part: str) -> None:
    block, advance = block_of(part)
    before = [advance(sample) for sample in range(SAMPLES)]
    weights = {name: weight.clone() for name, weight in block.named_parameters()}
    fold(block, linears(block), partial(run_all, advance, SAMPLES), partial(advance, 0))
    for sample, expected in enumerate(before):
        torch.testing.assert_close(advance(sample), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    changed = {name for name, weight in block.named_parameters() if not torch.equal(weight, weights[name])}
    values = {"self_attn.v_proj.weight", "self_attn.q_proj.weight"}
    output = "mlp.down_proj.weight" if part == "decoder" else "self_attn.out_proj.weight"
    assert changed >= values | {output}


@torch.no_grad()
def test_outlier_channels_are_spread_over_input_and_weights() -> None:
    block, advance = block_of("decoder")
    seen: list[Tensor] = []
    block.mlp.gate_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    advance(0)
    fold(block, linears(block), partial(run_all, advance, SAMPLES), partial(advance, 0))
    seen = [seen[0], seen[-1]]
    before, after = (float(x.norm(dim=0).max() / x.norm(dim=0).median()) for x in seen)
    assert after < before / 3


@torch.no_grad()
def test_only_what_is_quantised_is_touched() -> None:
    block, advance = block_of("decoder")
    before = {name: weight.clone() for name, weight in block.named_parameters()}
    fold(block, {block.mlp.gate_proj, block.mlp.down_proj}, partial(run_all, advance, SAMPLES), partial(advance, 0))
    changed = {name for name, weight in block.named_parameters() if not torch.equal(weight, before[name])}
    # gate_proj reads what up_proj reads too, which stays as it is.
    assert changed == {"mlp.up_proj.weight", "mlp.down_proj.weight"}


@torch.no_grad()
def test_values_of_a_quantised_cache_are_balanced_even_alone() -> None:
    block, advance = block_of("decoder")
    before = {name: weight.clone() for name, weight in block.named_parameters()}
    fold(block, set(), partial(run_all, advance, SAMPLES), partial(advance, 0), cached=True)
    changed = {name for name, weight in block.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {"self_attn.v_proj.weight", "self_attn.o_proj.weight"}


class OneMore(nn.Module):
    """A norm that multiplies by 1 + weight, as some models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:]) * (1 + self.weight)


@torch.no_grad()
def test_a_norm_that_is_not_in_proportion_to_its_weight_is_left_alone() -> None:
    block, _ = block_of("decoder")
    assert "input_layernorm" in {place.source for place in readers(block, linears(block))}
    block.input_layernorm = OneMore(64)
    weight = block.input_layernorm.weight.clone()
    assert "input_layernorm" not in {place.source for place in readers(block, linears(block))}
    assert torch.equal(block.input_layernorm.weight, weight)


@torch.no_grad()
def test_a_block_that_is_not_what_its_names_say_is_refused() -> None:
    block, _ = block_of("decoder")
    width = block.input_layernorm.weight.numel()
    x = torch.randn(1, 9, width, generator=torch.Generator().manual_seed(0))

    def twice_normed() -> Tensor:
        # Somebody besides the linears reads the norm.
        normed = block.input_layernorm(x)
        return sum((block.self_attn.get_submodule(f"{name}_proj")(normed) for name in "qkv"[:1]), normed)

    with pytest.raises(QuotaError, match="does not stand learned transforms"):
        fold(
            block, {block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj}, twice_normed, twice_normed
        )
