"""Quantised towers attend by the backend where it leads, and by what the user has chosen everywhere else."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import TINY
from support.families.family import TinyFamily
from support.tiny import tiny_batch, tiny_llava, tiny_prompt
from support.tiny_llava import make_model, make_samples, processor
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import quota
from quota import ops
from quota.attention.function import whole
from quota.attention.state import NAME
from quota.attention.tower import attach_tower
from quota.models import family
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

# Smooth: with 4-bit activations a rounded bit here and there would move whole levels.
SCHEME = QuantizationScheme(weight_rounding="rtn", activation_bits=16)


@pytest.fixture(autouse=True)
def leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with products of bfloat16; the operator itself runs everywhere."""
    monkeypatch.setattr(ops, "leads_attention", lambda device, dtype: dtype == torch.bfloat16)


def quantized_tower(model: Any) -> Any:
    for name, linear in family(model).linears(["tower"]):
        model.set_submodule(name, W4A4Linear.from_linear(linear, SCHEME))
    return model


def batch_of(tiny: TinyFamily, dtype: torch.dtype) -> dict[str, Tensor]:
    small, large = tiny.sizes
    batch = tiny.batch([tiny.prompt([small, large], 5, seed=1), tiny.prompt([large], 3, seed=2)])
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in batch.items()}


@cache
def _llava(implementation: str) -> Any:
    return quantized_tower(tiny_llava(implementation))


def llava(dtype: torch.dtype = torch.bfloat16, implementation: str = "sdpa") -> tuple[Any, dict[str, Tensor]]:
    batch = tiny_batch([tiny_prompt(1, 3, seed=1), tiny_prompt(1, 9, seed=2)])
    batch = {name: x.to(dtype) if x.is_floating_point() else x for name, x in batch.items()}
    return copy.deepcopy(_llava(implementation)).to(dtype), batch


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_every_family_is_as_close_to_float32_as_by_sdpa(name: str) -> None:
    tiny = TINY[name]
    model = tiny.build()
    if not family(model).sees:
        pytest.skip("no tower")
    exact = quantized_tower(model)(**batch_of(tiny, torch.float32)).logits
    model, batch = model.bfloat16(), batch_of(tiny, torch.bfloat16)
    by_sdpa = (model(**batch).logits - exact).norm()
    attach_tower(model)
    with ops.record() as used:
        logits = model(**batch).logits
    assert used.calls["attention", "cpu"] + used.calls["attention", "reference"] >= len(family(model).tower_blocks)
    assert not any("attention" in lack for lack in used.lacking)
    assert (logits - exact).norm() < 1.15 * by_sdpa
    assert all(getattr(part, "config", model.config)._attn_implementation == "sdpa" for part in model.modules())


@pytest.mark.parametrize(("dtype", "implementation"), [(torch.float32, "sdpa"), (torch.bfloat16, "eager")], ids=str)
@torch.no_grad()
def test_what_is_not_faster_or_not_sdpa_keeps_every_bit(dtype: torch.dtype, implementation: str) -> None:
    model, batch = llava(dtype, implementation)
    expected = model(**batch, output_attentions=implementation == "eager")
    attach_tower(model)
    with ops.record() as used:
        output = model(**batch, output_attentions=implementation == "eager")
    assert not any(job == "attention" for job, _ in used.calls)
    assert torch.equal(output.logits, expected.logits)


def test_a_tower_in_full_precision_keeps_its_own() -> None:
    model = tiny_llava("sdpa").bfloat16()
    attach_tower(model)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in family(model).tower_blocks)


@torch.no_grad()
def test_attached_twice_detached_once() -> None:
    model, batch = llava()
    names, expected = set(model.state_dict()), model(**batch).logits
    attach_tower(model)
    hook = attach_tower(model)
    with ops.record() as used:
        model(**batch)
    # Once in each of two blocks.
    assert sum(count for (job, _), count in used.calls.items() if job == "attention") == 2
    assert set(model.state_dict()) == names
    hook.detach()
    assert not hasattr(model, "quota_tower")
    with ops.record() as used:
        assert torch.equal(model(**batch).logits, expected)
    assert not any(job == "attention" for job, _ in used.calls)


@torch.no_grad()
def test_a_copy_attends_for_itself() -> None:
    model, batch = llava()
    attach_tower(model)
    expected = model(**batch).logits
    other = copy.deepcopy(model)
    model.quota_tower.detach()
    with ops.record() as used:
        assert torch.equal(other(**batch).logits, expected)
    assert any(job == "attention" for job, _ in used.calls)
    assert other.quota_tower.model is other


@torch.no_grad()
def test_threads_share_a_model() -> None:
    model, batch = llava()
    attach_tower(model)
    expected = model(**batch).logits
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: model(**batch).logits, range(12)):
            assert torch.equal(found, expected)
    assert model.config.vision_config._attn_implementation == "sdpa"


@torch.no_grad()
def test_a_pass_that_fails_in_a_block_leaves_the_users_choice() -> None:
    model, batch = llava()
    attach_tower(model)

    def fail(*_: object) -> None:
        assert model.config.vision_config._attn_implementation == NAME
        raise RuntimeError("no more memory")

    block: Any = family(model).tower_blocks[1]
    handle = block.mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no more memory"):
        model(**batch)
    assert model.config.vision_config._attn_implementation == "sdpa"
    handle.remove()
    model(**batch)


@torch.no_grad()
def test_compressed_saved_and_loaded(tmp_path: Path) -> None:
    model: Any = make_model()
    scheme = QuantizationScheme(weight_rounding="rtn")
    quota.compress(model, processor(), make_samples(2), scheme=scheme, method="paper")
    quota.save_pretrained(model, processor(), tmp_path / "out")
    loaded: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.quota_tower.model is model and loaded.quota_tower.model is loaded
    assert all(block._forward_hooks for block in family(loaded).tower_blocks)
    assert set(loaded.state_dict()) == set(model.state_dict())


class Call:
    """One attention call of a tower, to quota's function and to sdpa."""

    def __init__(self) -> None:
        self.model = tiny_llava("sdpa")
        self.module: Any = family(self.model).tower_blocks[0].self_attn
        generator = torch.Generator().manual_seed(0)
        self.tensors: list[Tensor] = [torch.randn(2, 2, 9, 16, generator=generator) for _ in range(3)]

    def __call__(self, mask: Tensor | None = None, **given: Any) -> tuple[Tensor, Tensor, ops.Usage]:
        arguments = self.module, *self.tensors, mask
        with ops.record() as used, whole(self.module.config):
            found, weights = ALL_ATTENTION_FUNCTIONS[NAME](*arguments, **given)
        assert weights is None
        torch.manual_seed(0)
        return found, ALL_ATTENTION_FUNCTIONS["sdpa"](*arguments, **given)[0], used


def padding() -> Tensor:
    seen = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    seen[1, ..., 6:] = False
    return seen


MASKS = {
    "none": None,
    "one row": padding(),
    "all rows": padding().expand(2, 1, 9, 9),
    "numbers": torch.zeros(2, 1, 9, 9).masked_fill(~padding(), torch.finfo(torch.float32).min),
    "infinity": torch.zeros(2, 1, 9, 9).masked_fill(~padding(), -torch.inf),
    "one for all": padding()[1:],
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@torch.no_grad()
def test_masks_that_fit(mask: Tensor | None) -> None:
    found, expected, used = Call()(mask, scaling=0.3, dropout=0.0, is_causal=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert used.calls.total() == 1 and not used.lacking


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "dropout": ({"dropout": 0.5}, "drops attention weights out"),
    "bias": ({"position_bias": torch.ones(2, 2, 9, 9).triu()}, "adds a bias to its logits"),
    "causal": ({"is_causal": True}, "is causal"),
    "of each query": ({"mask": torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()}, "has a mask for each query"),
    "of each head": ({"mask": padding() | torch.eye(2, 1, dtype=torch.bool)[None, :, None]}, "mask for each query"),
    "weights": ({"mask": torch.linspace(-1, 0, 9).expand(2, 1, 9, 9)}, "has a mask for each query"),
}


@pytest.mark.parametrize(("given", "said"), MISFITS.values(), ids=MISFITS)
@torch.no_grad()
def test_what_does_not_fit_is_named_and_stays_with_sdpa(given: dict[str, Any], said: str) -> None:
    call = Call()
    torch.manual_seed(0)
    found, expected, used = call(**given)
    assert torch.equal(found, expected)
    [lack] = used.lacking
    assert lack.startswith("attention: CLIPAttention ") and said in lack
    assert not used.calls


def test_gradients_are_sdpas() -> None:
    call = Call()
    call.tensors[0].requires_grad_()
    found, expected, used = call(is_causal=False)
    assert found.requires_grad and torch.equal(found, expected)
    assert used.lacking == {"attention: CLIPAttention needs gradients"}


@torch.no_grad()
def test_values_of_another_width_stay_with_sdpa() -> None:
    call = Call()
    call.tensors[2] = call.tensors[2][..., :8]
    found, expected, used = call(is_causal=False)
    assert torch.equal(found, expected)
    assert any("width" in lack for lack in used.lacking)


def test_modules_are_found_by_their_configuration() -> None:
    """A block that names none, as no family has, is left alone."""
    hook = attach_tower(llava()[0])
    hook._before(nn.Identity(), (torch.zeros(1, 2, 3, dtype=torch.bfloat16),), {})
    assert hook._inside is None
