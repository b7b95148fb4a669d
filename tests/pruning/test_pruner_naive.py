"""Pruned, cached generation against a plain loop over the decoder layers of one sample."""

from __future__ import annotations

import pytest
import torch
from support.fake_quantize import fake_quantize
from support.pruned import (
    NEW,
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
from support.tiny import tiny_batch, tiny_llava, tiny_prompt
from torch import Tensor

from quota.ops.kv_integer import dequantize_kv, quantize_kv
from quota.pruning.pruner import Pruner, record
from quota.scheme import QuantizationScheme


class TestAgreesWithTheNaiveLoop:
    @implementations
    @prompts
    def test_greedy(self, batch: Batch, implementation: str) -> None:
        model = pruned(implementation)
        arguments = tiny_batch(batch)
        with record(model) as trace:
            output = generate(model, arguments)
        for sample, (ids, pixels) in enumerate(batch):
            new = output.sequences[sample, arguments["input_ids"].shape[1] :]
            expected = plain(model)(torch.cat([ids, new]), pixels, [len(ids)] + [1] * NEW)
            assert_close(torch.stack(output.logits)[:, sample], expected.logits[len(ids) - 1 : -1])
            assert {layer: kept_of(trace.kept[layer][sample]) for layer in trace.kept} == expected.kept

    @implementations
    @prompts
    def test_cut_before_the_first_layer(self, batch: Batch, implementation: str) -> None:
        model = pruned(implementation, layers=(-1, 2), keep_ratios=(0.6, 0.3), weights={"mag": 1.0})
        arguments = tiny_batch(batch)
        with record(model) as trace:
            output = generate(model, arguments)
        for sample, (ids, pixels) in enumerate(batch):
            new = output.sequences[sample, arguments["input_ids"].shape[1] :]
            expected = plain(model)(torch.cat([ids, new]), pixels, [len(ids)] + [1] * NEW)
            assert_close(torch.stack(output.logits)[:, sample], expected.logits[len(ids) - 1 : -1])
            assert {layer: kept_of(trace.kept[layer][sample]) for layer in trace.kept} == expected.kept
        assert trace.tokens_per_layer[0] == sum(10 * len(pixels) for _, pixels in batch)

    @implementations
    @prompts
    def test_beam_search(self, batch: Batch, implementation: str) -> None:
        model = pruned(implementation)
        arguments = tiny_batch(batch)
        output = generate(model, arguments, num_beams=3, length_penalty=0.0, output_scores=True)
        for sample, (ids, pixels) in enumerate(batch):
            new = output.sequences[sample, arguments["input_ids"].shape[1] :]
            expected = plain(model)(torch.cat([ids, new]), pixels, [len(ids)] + [1] * NEW)
            chances = expected.logits[len(ids) - 1 : -1].log_softmax(dim=-1)
            total = chances[torch.arange(NEW), new].sum()
            assert_close(output.sequences_scores[sample] / NEW, total / NEW)

    @implementations
    @pytest.mark.parametrize("images", [0, 1], ids=["text follows", "another image follows"])
    @pytest.mark.parametrize("samples", [1, 2])
    def test_second_turn_with_the_cache_kept(self, implementation: str, images: int, samples: int) -> None:
        model = pruned(implementation)
        first = [tiny_prompt(2, 5, seed=1), tiny_prompt(1, 9, seed=2)][:samples]
        second = [tiny_prompt(images, 4, seed=3), tiny_prompt(images, 4, seed=4)][:samples]
        arguments = tiny_batch(first)
        answer = generate(model, arguments)
        said = answer.sequences[:, arguments["input_ids"].shape[1] :]

        ids = torch.cat([answer.sequences, torch.stack([ids for ids, _ in second])], dim=1)
        mask = torch.ones_like(ids)
        mask[:, : arguments["input_ids"].shape[1]] = arguments["attention_mask"]
        pixels = {"pixel_values": torch.cat([pixels for _, pixels in second])} if images else {}
        output = generate(
            model,
            {"input_ids": ids, "attention_mask": mask, **pixels},
            past_key_values=answer.past_key_values,
        )
        for sample in range(samples):
            (start, shown), (asked, more) = first[sample], second[sample]
            new = output.sequences[sample, ids.shape[1] :]
            row = torch.cat([start, said[sample], asked, new])
            # The last word of the first answer was not fed before the second turn.
            passes = [len(start)] + [1] * (NEW - 1) + [1 + len(asked)] + [1] * NEW
            expected = plain(model)(row, torch.cat([shown, more]), passes)
            assert_close(torch.stack(output.logits)[:, sample], expected.logits[-NEW - 1 : -1])

    def test_drafted_words_are_taken_back(self) -> None:
        """Prompt lookup feeds several guesses at once and crops the cache when they were wrong."""
        model = pruned()
        arguments = tiny_batch(PROMPTS["one sample"])
        drafted = generate(model, arguments, prompt_lookup_num_tokens=3)
        assert torch.equal(drafted.sequences, generate(model, arguments).sequences)

    @implementations
    @pytest.mark.parametrize("layers", [(0, 2), (3, 4)], ids=["first layer", "last layer"])
    def test_any_layer_may_be_a_candidate(self, layers: tuple[int, int], implementation: str) -> None:
        model = pruned(implementation, layers=layers, keep_ratios=(0.5, 0.3))
        batch = PROMPTS["two images and one"]
        arguments = tiny_batch(batch)
        output = generate(model, arguments)
        for sample, (ids, pixels) in enumerate(batch):
            new = output.sequences[sample, arguments["input_ids"].shape[1] :]
            expected = plain(model)(torch.cat([ids, new]), pixels, [len(ids)] + [1] * NEW)
            assert_close(torch.stack(output.logits)[:, sample], expected.logits[len(ids) - 1 : -1])

    @pytest.mark.parametrize(
        "batch", [PROMPTS["left padding"], PROMPTS["two images and one"]], ids=["padded", "ragged"]
    )
    def test_with_a_quantised_cache(self, batch: Batch) -> None:
        """Decoding reads packed slots, of which the samples hold different numbers."""
        scheme = QuantizationScheme(weight_bits=16, activation_bits=16, hadamard=0)
        model = tiny_llava()
        weights = {"inter": 0.45, "mag": 0.25, "intra": 0.10}
        Pruner(model, recipe_for(model, scheme=scheme, weights=weights), scheme).attach()
        arguments = tiny_batch(batch)
        output = generate(model, arguments)

        def stored(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return dequantize_kv(*quantize_kv(keys, 4)), dequantize_kv(*quantize_kv(values, 4))

        for sample, (ids, pixels) in enumerate(batch):
            new = output.sequences[sample, arguments["input_ids"].shape[1] :]
            expected = plain(model)(torch.cat([ids, new]), pixels, [len(ids)] + [1] * NEW, stored=stored)
            # Rounded numbers are summed in another order.
            logits = torch.stack(output.logits)[:, sample]
            torch.testing.assert_close(logits, expected.logits[len(ids) - 1 : -1], atol=1e-4, rtol=0)


class TestRisk:
    def test_is_the_error_of_the_deployed_activation_quantiser(self) -> None:
        scheme = QuantizationScheme(kv_bits=16)
        model = tiny_llava()
        recipe = recipe_for(model, scheme=scheme, weights={"inter": 0.1, "risk": 0.9}, layers=(2,), keep_ratios=(0.3,))
        Pruner(model, recipe, scheme).attach()
        ids, pixels = tiny_prompt(1, 5, seed=1)
        with record(model) as trace, torch.no_grad():
            model(**tiny_batch([(ids, pixels)]))

        def risk(hidden: Tensor) -> Tensor:
            return (fake_quantize(hidden, scheme) - hidden).norm(dim=-1)

        plain_recipe = recipe.model_copy(update={"weights": {"inter": 0.1, "mag": 0.0, "intra": 0.0, "risk": 0.9}})
        expected = plain(model, plain_recipe)(ids, pixels, [len(ids)], risk=risk)
        assert kept_of(trace.kept[2][0]) == expected.kept[2]
        without = plain(model, plain_recipe)(ids, pixels, [len(ids)])
        assert without.kept != expected.kept

    def test_a_part_that_is_not_quantised_has_none(self) -> None:
        scheme = QuantizationScheme(weight_rounding="rtn", modules=("tower",), kv_bits=16)
        model = tiny_llava()
        Pruner(model, recipe_for(model, scheme=scheme, weights={"risk": 1.0}), scheme).attach()
        with record(model) as trace, torch.no_grad():
            model(**tiny_batch(PROMPTS["one sample"]))
        # No token stands out: ties go to the lower index.
        assert kept_of(trace.kept[3][0]) == [0, 1, 2, 3, 4]
