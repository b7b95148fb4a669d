"""What a Pruner refuses, and what it leaves behind: nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from support.pruned import (
    NEW,
    PROMPTS,
    generate,
    pruned,
    recipe_for,
)
from support.tiny import IMAGE, tiny_batch, tiny_llava, tiny_prompt
from torch import Tensor
from transformers import StaticCache

from quota.attention.hook import attach_cache
from quota.errors import QuotaError
from quota.pruning.pruner import Pruner, is_pruned, record
from quota.scheme import QuantizationScheme


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"cache_implementation": "static"}, "StaticCache"),
            ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
            ({"prefill_chunk_size": 18}, "prefill_chunk_size"),
        ],
        ids=["static cache", "chunks within an image", "chunks between image and question"],
    )
    def test_generate(self, options: dict[str, object], reason: str) -> None:
        with pytest.raises(QuotaError, match=reason):
            generate(pruned(), tiny_batch(PROMPTS["one sample"]), **options)

    def test_chunks_from_the_generation_config(self) -> None:
        model = pruned()
        model.generation_config.prefill_chunk_size = 18
        with pytest.raises(QuotaError, match="prefill_chunk_size"):
            generate(model, tiny_batch(PROMPTS["one sample"]))

    def test_a_part_of_an_image(self) -> None:
        arguments = tiny_batch(PROMPTS["one sample"])
        with pytest.raises(QuotaError, match="part of an image"):
            pruned()(input_ids=arguments["input_ids"][:, :10], pixel_values=arguments["pixel_values"])

    def test_a_static_cache_that_was_given(self) -> None:
        model = pruned()
        cache = StaticCache(config=model.config, max_cache_len=64)
        with pytest.raises(QuotaError, match="StaticCache"), torch.no_grad():
            model(**tiny_batch(PROMPTS["one sample"]), past_key_values=cache)

    def test_a_cache_filled_without_us(self) -> None:
        model = tiny_llava()
        arguments = tiny_batch(PROMPTS["one sample"])
        with torch.no_grad():
            cache = model(**arguments).past_key_values
            Pruner(model, recipe_for(model)).attach()
            with pytest.raises(QuotaError, match="new cache"):
                model(input_ids=torch.tensor([[7]]), past_key_values=cache)

    def test_embeddings(self) -> None:
        with pytest.raises(QuotaError, match="input_ids"):
            pruned()(inputs_embeds=torch.zeros(1, 4, 128))

    @pytest.mark.parametrize("shape", [(1, 5), (1, 1, 23, 23)], ids=["too short", "four dimensions"])
    def test_an_attention_mask_that_does_not_fit(self, shape: tuple[int, ...]) -> None:
        arguments = tiny_batch(PROMPTS["one sample"]) | {"attention_mask": torch.ones(shape)}
        with pytest.raises(QuotaError, match="attention_mask"):
            pruned()(**arguments)

    def test_another_models_recipe(self) -> None:
        recipe = recipe_for(tiny_llava(layers=4))
        with pytest.raises(QuotaError, match="another model"):
            Pruner(tiny_llava(), recipe)

    def test_another_scheme(self) -> None:
        model = tiny_llava()
        with pytest.raises(QuotaError, match="another scheme"):
            Pruner(model, recipe_for(model), QuantizationScheme())

    def test_a_cache_under_another_scheme(self) -> None:
        model = tiny_llava()
        attach_cache(model, QuantizationScheme())
        with pytest.raises(QuotaError, match="another scheme"):
            Pruner(model, recipe_for(model)).attach()

    def test_a_layer_that_does_not_exist(self) -> None:
        model = tiny_llava()
        with pytest.raises(QuotaError, match="layer 5"):
            Pruner(model, recipe_for(model, layers=(3, 4, 5)))

    def test_a_second_pruner(self) -> None:
        model = pruned()
        with pytest.raises(QuotaError, match="already"):
            Pruner(model, recipe_for(model)).attach()

    def test_recording_without_a_pruner(self) -> None:
        with pytest.raises(QuotaError, match="not pruned"), record(tiny_llava()):
            pass


def failing(*_: object) -> None:
    raise RuntimeError("out of memory")


def interrupting(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("failure", [failing, interrupting])
@pytest.mark.parametrize("place", ["layers.1.self_attn.o_proj", "layers.2.mlp", "layers.4"])
def test_a_failed_pass_leaves_nothing_behind(place: str, failure: Callable[..., None]) -> None:
    model = pruned()
    arguments = tiny_batch(PROMPTS["two images and one"])
    text = {"input_ids": torch.tensor([[7, 8, 9]])}
    with torch.no_grad():
        expected, expected_text = model(**arguments).logits, model(**text).logits
        hook = model.model.language_model.get_submodule(place).register_forward_pre_hook(failure)
        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            model(**arguments)
        hook.remove()
        assert torch.equal(model(**text).logits, expected_text)
        assert torch.equal(model(**arguments).logits, expected)
    assert model.model.language_model.config._attn_implementation == "sdpa"


def test_detach_restores_the_model() -> None:
    model = tiny_llava()
    arguments = tiny_batch(PROMPTS["two images and one"])
    expected = generate(model, arguments)

    def state() -> dict[str, object]:
        hooks = {
            name: [len(module._forward_hooks), len(module._forward_pre_hooks)] for name, module in model.named_modules()
        }
        return {"attributes": set(vars(model)), "hooks": hooks, "config": model.config.to_dict()}

    before = state()
    pruner = Pruner(model, recipe_for(model)).attach()
    assert is_pruned(model)
    assert not torch.equal(generate(model, arguments).logits[0], expected.logits[0])
    pruner.detach()
    pruner.detach()
    assert not is_pruned(model)
    assert state() == before
    after = generate(model, arguments)
    assert torch.equal(torch.stack(after.logits), torch.stack(expected.logits))
    assert type(after.past_key_values.layers[0]).__name__ == "DynamicLayer"


@pytest.mark.parametrize("failure", [None, ValueError], ids=["ends", "fails"])
def test_a_with_block_detaches(failure: type[Exception] | None) -> None:
    model = tiny_llava()
    with suppress(ValueError), attach_cache(model, None) as cache, Pruner(model, recipe_for(model)) as pruner:
        assert model.quota_pruner is pruner and model.quota_cache is cache
        if failure is not None:
            raise failure
    assert not is_pruned(model) and not hasattr(model, "quota_cache")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_block_that_cannot_be_entered_leaves_the_pruner_before_it() -> None:
    model = pruned()
    with pytest.raises(QuotaError, match="already"), Pruner(model, recipe_for(model)):
        pass
    assert is_pruned(model)


def test_detach_leaves_a_cache_that_was_attached_before() -> None:
    model = tiny_llava()
    hook = attach_cache(model, QuantizationScheme(weight_bits=16, activation_bits=16))
    recipe = recipe_for(model, scheme=hook.scheme)
    Pruner(model, recipe, hook.scheme).attach().detach()
    assert model.quota_cache is hook


def test_text_alone_is_not_touched() -> None:
    arguments = tiny_batch([tiny_prompt(0, 6, seed=1), tiny_prompt(0, 3, seed=2)])
    model = pruned()
    with record(model) as trace:
        output = generate(model, arguments)
    assert torch.equal(torch.stack(output.logits), torch.stack(generate(tiny_llava(), arguments).logits))
    assert trace.kept == {}


def test_an_image_token_that_the_model_says_is_a_word() -> None:
    arguments = tiny_batch(PROMPTS["one sample"])
    model = pruned()
    said = model.generate(
        **arguments, max_new_tokens=3, do_sample=False, logits_processor=[lambda _, logits: only(logits, IMAGE)]
    )
    assert said[0, -3:].tolist() == [IMAGE] * 3


def only(logits: Tensor, token: int) -> Tensor:
    return torch.full_like(logits, -math.inf).index_fill(1, torch.tensor([token]), 0.0)


def test_changing_the_attention_later() -> None:
    arguments = tiny_batch(PROMPTS["two images and one"])
    model = pruned("sdpa")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        assert torch.equal(model(**arguments).logits, pruned("eager")(**arguments).logits)


def test_a_copy_is_pruned_on_its_own() -> None:
    model = pruned()
    arguments = tiny_batch(PROMPTS["two images and one"])
    other = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(**arguments).logits
        model.quota_pruner.detach()
        with record(other) as trace:
            assert torch.equal(other(**arguments).logits, expected)
        assert generate(other, arguments).sequences.shape[1] == arguments["input_ids"].shape[1] + NEW
        assert set(trace.kept) == {1, 2, 3}
        assert not is_pruned(model)
        other.quota_pruner.detach()
        assert torch.equal(other(**arguments).logits, model(**arguments).logits)
