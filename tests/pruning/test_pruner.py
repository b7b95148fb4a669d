"""What the Pruner keeps, what it returns and what it leaves in the KV cache."""

from __future__ import annotations

import pytest
import torch
from support.pruned import (
    PROMPTS,
    Batch,
    assert_close,
    generate,
    implementations,
    kept_of,
    plain,
    prompts,
    pruned,
    recipe_for,
)
from support.tiny import IMAGE, PAD, TOKENS_PER_IMAGE, tiny_batch, tiny_llava, tiny_prompt
from transformers import DynamicCache, LlavaForConditionalGeneration

from quota.models import family
from quota.pruning.pruner import Pruner, record
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme


@implementations
@prompts
def test_keep_all_changes_no_bit(batch: Batch, implementation: str) -> None:
    arguments = tiny_batch(batch)
    expected = generate(tiny_llava(implementation), arguments)
    model = pruned(implementation, keep_ratios=(1.0, 1.0, 1.0), keep=1.0)
    with record(model) as trace:
        output = generate(model, arguments)
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(torch.stack(output.logits), torch.stack(expected.logits))
    assert trace.tokens_per_layer == [TOKENS_PER_IMAGE * sum(len(pixels) for _, pixels in batch)] * 5


@prompts
def test_a_batch_keeps_what_each_sample_keeps_alone(batch: Batch) -> None:
    model = pruned()
    with record(model) as together, torch.no_grad():
        model(**tiny_batch(batch))
    for sample, prompt in enumerate(batch):
        with record(model) as alone, torch.no_grad():
            model(**tiny_batch([prompt]))
        for layer in together.kept:
            expected = kept_of(alone.kept[layer][0]) if len(prompt[1]) else []
            assert kept_of(together.kept[layer][sample]) == expected


def test_each_image_has_its_own_budget() -> None:
    model = pruned()
    with record(model) as trace, torch.no_grad():
        model(**tiny_batch([tiny_prompt(3, 5, seed=1)]))
    for layer, count in zip((1, 2, 3), (13, 8, 5), strict=True):
        images = [number // TOKENS_PER_IMAGE for number in kept_of(trace.kept[layer][0])]
        assert [images.count(image) for image in range(3)] == [count] * 3
    assert trace.tokens_per_layer == [48, 48, 39, 24, 15]


def test_scores_rank_what_was_kept() -> None:
    model = pruned()
    with record(model) as trace, torch.no_grad():
        model(**tiny_batch(PROMPTS["left padding"]))
    present = torch.ones(2, TOKENS_PER_IMAGE, dtype=torch.bool)
    for layer in (1, 2, 3):
        scores, kept = trace.scores[layer], torch.zeros_like(present)
        kept[torch.arange(2)[:, None], trace.kept[layer]] = True
        assert torch.equal(~scores.isnan(), present)
        for sample in range(2):
            assert scores[sample][kept[sample]].min() >= scores[sample][present[sample] & ~kept[sample]].max()
        present = kept


class TestFullLength:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_logits_and_loss(self, side: str) -> None:
        model = pruned()
        batch = PROMPTS["two images and one"]
        arguments = tiny_batch(batch, side)
        # Words alone, and none that an image or padding would have to predict.
        unused = torch.isin(arguments["input_ids"], torch.tensor([IMAGE, PAD]))
        labels = arguments["input_ids"].masked_fill(unused | unused.roll(1, dims=1), -100)
        with torch.no_grad():
            output = model(**arguments, labels=labels)
        assert output.logits.shape[:2] == arguments["input_ids"].shape
        losses = []
        for sample, (ids, pixels) in enumerate(batch):
            expected = plain(model)(ids, pixels, [len(ids)])
            real = arguments["attention_mask"][sample].bool()
            text = ids != IMAGE
            assert_close(output.logits[sample][real][text], expected.logits[text])
            target = labels[sample][real][1:]
            loss = torch.nn.functional.cross_entropy(expected.logits[:-1], target, reduction="none")
            losses.append(loss[target >= 0])
        assert_close(output.loss, torch.cat(losses).mean())

    def test_hidden_states(self) -> None:
        model = pruned()
        ids, pixels = tiny_prompt(1, 5, seed=1)
        with record(model) as trace, torch.no_grad():
            states = model(**tiny_batch([(ids, pixels)]), output_hidden_states=True).hidden_states
        assert [state.shape[1] for state in states] == [len(ids)] * 6
        visual = (ids == IMAGE).nonzero().flatten()
        for entering in (2, 3, 4):
            there = (states[entering][0].abs().sum(dim=-1) > 0)[visual].nonzero().flatten()
            assert there.tolist() == kept_of(trace.kept[entering - 1][0])

    def test_tuples_instead_of_outputs(self) -> None:
        model = pruned()
        arguments = tiny_batch(PROMPTS["one sample"])
        with torch.no_grad():
            assert torch.equal(model(**arguments, return_dict=False)[0], model(**arguments).logits)


class TestCache:
    def test_holds_four_bits_of_kept_tokens_only(self) -> None:
        scheme = QuantizationScheme(weight_bits=16, activation_bits=16)
        model = tiny_llava()
        Pruner(model, recipe_for(model, scheme=scheme), scheme).attach()
        batch = PROMPTS["two images and one"]
        arguments = tiny_batch(batch)
        with record(model) as trace, torch.no_grad():
            layers = model(**arguments).past_key_values.layers
        text = arguments["attention_mask"].bool() & (arguments["input_ids"] != IMAGE)
        for index, layer in enumerate(layers):
            assert layer.keys.dtype == layer.values.dtype == torch.uint8
            assert layer.keys.shape == layer.values.shape == (2, 1, layer.held, 32)
            if index == 0:
                continue
            # Layers 1 to 3 are candidates themselves; layer 4 gets what layer 3 left.
            for sample in range(2):
                visual = (arguments["input_ids"][sample] == IMAGE).nonzero().flatten()
                kept = visual[kept_of(trace.kept[min(index, 3)][sample])]
                expected = torch.cat([text[sample].nonzero().flatten(), kept]).sort().values
                assert kept_of(layer.positions[sample]) == expected.tolist()
            assert layer.held == int((layer.positions >= 0).sum(dim=1).max())

    def test_nothing_of_it_needs_use_cache(self) -> None:
        model = pruned()
        arguments = tiny_batch(PROMPTS["two images and one"])
        with torch.no_grad():
            cached, free = model(**arguments), model(**arguments, use_cache=False)
        assert torch.equal(cached.logits, free.logits)
        assert free.past_key_values is None

    def test_cropping_forgets_the_newest_tokens(self) -> None:
        model = pruned()
        arguments = tiny_batch(PROMPTS["two images and one"])
        length = arguments["input_ids"].shape[1]
        more = torch.randint(6, 90, (2, 4), generator=torch.Generator().manual_seed(0))
        mask = torch.cat([arguments["attention_mask"], torch.ones_like(more)], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with torch.no_grad():
            cache = model(**arguments, position_ids=positions[:, :length]).past_key_values
            step = {"input_ids": more, "attention_mask": mask, "position_ids": positions[:, length:]}
            expected = model(**step, past_key_values=cache).logits
            cache.crop(-4)
            assert cache.get_seq_length() == length
            assert torch.equal(model(**step, past_key_values=cache).logits, expected)
            # Into the pruned prompt: only what is left of its last word can go.
            cache.crop(-5)
        assert [kept_of(layer.positions[0])[-1] for layer in cache.layers] == [length - 2] * 5


class TestQuantised:
    """Everything in four bits, where a rounding may fall on the other side and nothing can be compared to 1e-5."""

    scheme = QuantizationScheme(weight_rounding="rtn")

    def model(self) -> LlavaForConditionalGeneration:
        model = tiny_llava()
        for name, linear in family(model).linears(self.scheme.modules):
            model.set_submodule(name, W4A4Linear.from_linear(linear, self.scheme))
        Pruner(model, recipe_for(model, scheme=self.scheme), self.scheme).attach()
        return model

    def test_generates_what_its_prefill_says(self) -> None:
        model = self.model()
        arguments = tiny_batch(PROMPTS["one sample"])
        with record(model) as first, torch.no_grad():
            logits = model(**arguments, logits_to_keep=1).logits[:, 0]
        with record(model) as second:
            output = generate(model, arguments, past_key_values=DynamicCache())
        assert torch.equal(output.logits[0], logits)
        assert all(torch.equal(first.kept[layer], second.kept[layer]) for layer in (1, 2, 3))
        assert len(second.kept[3][0]) == 5

    @pytest.mark.parametrize("seed", [0, 1])
    def test_a_batch_keeps_what_each_sample_keeps_alone(self, seed: int) -> None:
        model = self.model()
        batch = [tiny_prompt(1, 3, seed), tiny_prompt(1, 9, seed + 10)]
        with record(model) as together:
            generate(model, tiny_batch(batch))
        for sample, prompt in enumerate(batch):
            with record(model) as alone:
                generate(model, tiny_batch([prompt]))
            for layer in (1, 2, 3):
                assert torch.equal(together.kept[layer][sample], alone.kept[layer][0])
