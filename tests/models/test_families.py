"""Every family in every mode: pruned, cached generation against a plain loop over the layers of one sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.families import TINY
from support.families.family import IMAGE, PAD, Prompt, TinyFamily
from support.families.family import VIDEO as VIDEO_TOKEN
from support.naive import Outcome, naive
from torch import Tensor

from quota.models import FAMILIES, fingerprint
from quota.models.support import VIDEO
from quota.ops.kv_integer import dequantize_kv, quantize_kv
from quota.pruning.pruner import Pruner, record
from quota.pruning.recipe import PruningRecipe
from quota.scheme import QuantizationScheme

NEW = 4

families = pytest.mark.parametrize("name", TINY)
implementations = pytest.mark.parametrize("implementation", ["sdpa", "eager"])
modes = pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name, support in FAMILIES.items() for mode in support.prompts]
)


def test_every_supported_family_is_tested() -> None:
    assert list(TINY) == list(FAMILIES)
    with_video = {name for name, tiny in TINY.items() if tiny.video(torch.Generator()) is not None}
    assert with_video == {name for name, support in FAMILIES.items() if VIDEO in support.prompts}


def batch_of(tiny: TinyFamily, mode: str) -> list[Prompt]:
    small, large = tiny.sizes
    if mode == "video":
        return [tiny.prompt(["video"], 4, seed=1), tiny.prompt([large, "video"], 3, seed=2)]
    return {
        "batch 1": [tiny.prompt([small], 5, seed=3)],
        "left padding": [tiny.prompt([small], 3, seed=4), tiny.prompt([small], 9, seed=5)],
        "two images": [tiny.prompt([small, large], 5, seed=6), tiny.prompt([large], 4, seed=7)],
    }[mode]


def recipe_for(model: Any, keep_ratios: tuple[float, ...] = (0.8, 0.5, 0.3), **changes: Any) -> PruningRecipe:
    return PruningRecipe(
        layers=(1, 2, 3),
        keep_ratios=keep_ratios,
        keep=keep_ratios[-1],
        reference_tokens=16,
        model_fingerprint=fingerprint(model),
        **changes,
    )


def pruned(tiny: TinyFamily, implementation: str) -> Any:
    model = tiny.build(implementation)
    Pruner(model, recipe_for(model)).attach()
    return model


def generate(model: Any, batch: dict[str, Tensor], **options: Any) -> Any:
    return model.generate(
        **batch,
        max_new_tokens=NEW,
        do_sample=False,
        suppress_tokens=[IMAGE, VIDEO_TOKEN, PAD],
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


def plain(tiny: TinyFamily, model: Any, prompt: Prompt, passes: list[int], **options: Any) -> Outcome:
    return naive(model, model.quota_pruner.recipe, tiny.row(model, prompt, passes), passes, **options)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@implementations
@modes
def test_greedy(name: str, mode: str, implementation: str) -> None:
    tiny = TINY[name]
    model, prompts = pruned(tiny, implementation), batch_of(tiny, mode)
    batch = tiny.batch(prompts)
    with record(model) as trace:
        output = generate(model, batch)
    for sample, prompt in enumerate(prompts):
        new = output.sequences[sample, batch["input_ids"].shape[1] :]
        expected = plain(tiny, model, prompt.say(new), [len(prompt.ids)] + [1] * NEW)
        kept = {layer: [token for token in trace.kept[layer][sample].tolist() if token >= 0] for layer in trace.kept}
        assert kept == expected.kept
        assert_close(torch.stack(output.logits)[:, sample], expected.logits[len(prompt.ids) - 1 : -1])


@implementations
@modes
def test_keep_all_changes_no_bit(name: str, mode: str, implementation: str) -> None:
    tiny = TINY[name]
    batch = tiny.batch(batch_of(tiny, mode))
    model = tiny.build(implementation)
    expected = generate(model, batch)
    Pruner(model, recipe_for(model, (1.0, 1.0, 1.0))).attach()
    output = generate(model, batch)
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(torch.stack(output.logits), torch.stack(expected.logits))


@implementations
@modes
def test_beam_search(name: str, mode: str, implementation: str) -> None:
    tiny = TINY[name]
    model, prompts = pruned(tiny, implementation), batch_of(tiny, mode)
    batch = tiny.batch(prompts)
    output = generate(model, batch, num_beams=3, length_penalty=0.0, output_scores=True)
    for sample, prompt in enumerate(prompts):
        new = output.sequences[sample, batch["input_ids"].shape[1] :]
        expected = plain(tiny, model, prompt.say(new), [len(prompt.ids)] + [1] * NEW)
        chances = expected.logits[len(prompt.ids) - 1 : -1].log_softmax(dim=-1)
        total = chances[torch.arange(NEW), new].sum()
        assert_close(output.sequences_scores[sample] / NEW, total / NEW)


@implementations
@pytest.mark.parametrize("images", [0, 1], ids=["text follows", "another image follows"])
@families
def test_second_turn_with_the_cache_kept(name: str, images: int, implementation: str) -> None:
    tiny = TINY[name]
    model = pruned(tiny, implementation)
    small, large = tiny.sizes
    first = [tiny.prompt([small, large], 5, seed=1), tiny.prompt([small], 9, seed=2)]
    second = [tiny.prompt([large] * images, 4, seed=seed) for seed in (3, 4)]
    batch = tiny.batch(first)
    answer = generate(model, batch)
    before = batch["input_ids"].shape[1]
    said = answer.sequences[:, before:]

    ids = torch.cat([answer.sequences, torch.stack([prompt.ids for prompt in second])], dim=1)
    mask = torch.ones_like(ids)
    mask[:, :before] = batch["attention_mask"]
    whole = [start.say(words) + asked for start, words, asked in zip(first, said, second, strict=True)]
    arguments = {"input_ids": ids, "attention_mask": mask, **tiny.later(model, whole, second, mask)}
    output = generate(model, arguments, past_key_values=answer.past_key_values)
    for sample, prompt in enumerate(whole):
        new = output.sequences[sample, ids.shape[1] :]
        # The last word of the first answer was not fed before the second turn.
        passes = [len(first[sample].ids)] + [1] * (NEW - 1) + [1 + len(second[sample].ids)] + [1] * NEW
        expected = plain(tiny, model, prompt.say(new), passes)
        assert_close(torch.stack(output.logits)[:, sample], expected.logits[-NEW - 1 : -1])


@families
def test_text_follows_as_generate_alone_would_have_it(name: str) -> None:
    """Nothing but the words, the mask and the cache: transformers then makes positions of text, also for M-RoPE."""
    tiny = TINY[name]
    model = pruned(tiny, "sdpa")
    first = tiny.batch([tiny.prompt([tiny.sizes[0]], 5, seed=1)])
    answer = generate(model, first)
    ids = torch.cat([answer.sequences, torch.tensor([[10, 11, 12]])], dim=1)
    mask = torch.ones_like(ids)
    output = generate(model, {"input_ids": ids, "attention_mask": mask}, past_key_values=answer.past_key_values)
    assert output.sequences.shape[1] > ids.shape[1]


@families
def test_drafted_words_are_taken_back(name: str) -> None:
    """Prompt lookup feeds several guesses at once and crops the cache when they were wrong."""
    tiny = TINY[name]
    model = pruned(tiny, "sdpa")
    batch = tiny.batch(batch_of(tiny, "batch 1"))
    drafted = generate(model, batch, prompt_lookup_num_tokens=3)
    assert torch.equal(drafted.sequences, generate(model, batch).sequences)


@families
def test_with_a_quantised_cache(name: str) -> None:
    """Prefill and decoding attend by quota's own operators, under the family's masks.

    Float noise, of which every kind of processor has its own, moves a few scales by a step of float16, hence the wide
    tolerance; a wrong mask is off by 0.3.
    """
    tiny = TINY[name]
    model, prompts = tiny.build(), batch_of(tiny, "two images")
    scheme = QuantizationScheme(weight_bits=16, activation_bits=16, hadamard=0)
    weights = {"inter": 0.45, "mag": 0.25, "intra": 0.10}
    Pruner(model, recipe_for(model, scheme=scheme, weights=weights), scheme).attach()
    batch = tiny.batch(prompts)
    output = generate(model, batch)

    def stored(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return dequantize_kv(*quantize_kv(keys, 4)), dequantize_kv(*quantize_kv(values, 4))

    for sample, prompt in enumerate(prompts):
        new = output.sequences[sample, batch["input_ids"].shape[1] :]
        expected = plain(tiny, model, prompt.say(new), [len(prompt.ids)] + [1] * NEW, stored=stored)
        logits = torch.stack(output.logits)[:, sample]
        torch.testing.assert_close(logits, expected.logits[len(prompt.ids) - 1 : -1], atol=0.05, rtol=0)
