"""Qwen2.5-VL in vLLM: M-RoPE positions outlive cuts, pictures of any size, several a prompt, and no video."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.engines import Beside, configured, in_pairs, noise
from support.families.family import IMAGE
from support.families.own import OWN
from support.families.qwen import TinyQwen25VL

import quota
from quota.attention.turns import turn_table
from quota.checkpoint.save import mark
from quota.compress import quantize_only
from quota.models import fingerprint
from quota.prompts import build_inputs
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from quota.pruning.trace import Trace
from quota.samples import Sample

pytest.importorskip("vllm", reason="run by `make test-vllm`")

NEW = 8
"""Tokens of an answer."""
LONG = 60
"""Tokens of an answer that outgrows a narrow cache."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model at W4A4KV4, with two cuts."""
    folder = tmp_path_factory.mktemp("models") / "small"
    model, processor = TinyQwen25VL().build(), OWN["Qwen2_5_VLForConditionalGeneration"]()
    quantize_only(model, processor, noise(5))
    recipe = PruningRecipe(
        layers=(1, 3), keep_ratios=(0.6, 0.3), keep=0.3, reference_tokens=24, scheme=quota.QuantizationScheme(),
        scorer="information", model_fingerprint=fingerprint(model),
    )  # fmt: skip
    Pruner(model, recipe, recipe.scheme).attach()
    mark(model, recipe.scheme, recipe=True)
    quota.save_pretrained(model, processor, folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Beside:
    """On the model of `folder`."""
    # As in conftest.py.
    gc.collect()
    return Beside(folder, 8 << 20, max_num_seqs=8)


def words(engine: Beside, count: int) -> list[Any]:
    """Prompts without pictures."""
    turns = [{"role": "user", "content": [{"type": "text", "text": sample.question}]} for sample in noise(count)]
    return [{"prompt": engine.processor.apply_chat_template([turn], add_generation_prompt=True)} for turn in turns]


def check_turns(engine: Beside, request: str, sample: Sample, trace: Trace, new_tokens: int) -> None:
    """Every stage of a request has turned its tokens by their M-RoPE positions in the whole prompt."""
    inputs = build_inputs(engine.processor, [sample])
    ids, base = inputs["input_ids"], engine.model.model
    grids = {name: inputs[name] for name in ("mm_token_type_ids", "image_grid_thw")}
    prompt = base.get_rope_index(ids, **grids)[0][:, 0]
    # The last token of an answer is not read.
    given = (prompt.max() + torch.arange(1, new_tokens)).expand(3, -1)
    visual = ids[0] == IMAGE
    # A picture takes up fewer positions than it has tokens.
    assert prompt.max() < visual.sum()
    cuts = [kept[0] for kept in trace.kept.values()]
    assert len(cuts[-1]) < visual.sum()
    for stage, kept in enumerate([torch.arange(int(visual.sum())), *cuts]):
        present = ~visual
        present[visual.nonzero()[kept, 0]] = True
        positions = torch.cat([prompt[:, present], given], dim=1)
        expected = turn_table(*base.language_model.rotary_emb(torch.zeros(1), positions[:, None]))
        assert torch.equal(engine.served.decoder.turns.of([request], stage, positions.shape[1]), expected)


def test_tokens_stand_where_they_stood_before_the_cut(engine: Beside) -> None:
    [sample] = noise(1)
    with engine.served.record() as traces:
        engine.generate(engine.prompts([sample]), NEW, ignore_eos=True)
    [(request, trace)] = traces.items()
    check_turns(engine, request, sample, trace, NEW)


def test_pictures_are_cut_each_by_itself(engine: Beside) -> None:
    engine.check_tokens_and_places(in_pairs(noise(12)), NEW)


def test_words_alone_are_answered_as_quota_does(engine: Beside) -> None:
    prompts = words(engine, 3)
    for prompt, found in zip(prompts, engine.generate(prompts, NEW, ignore_eos=True), strict=True):
        ids = engine.processor.tokenizer(prompt["prompt"], return_tensors="pt")["input_ids"]
        own = engine.model.generate(ids, max_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :].tolist()
        assert found[: len(own)] == own


def test_many_at_once_answer_as_each_does_alone(engine: Beside) -> None:
    prompts = [*engine.prompts(in_pairs(noise(20))), *words(engine, 4)]
    alone = [engine.generate([prompt], NEW, ignore_eos=True)[0] for prompt in prompts]
    assert engine.generate(prompts, NEW, ignore_eos=True) == alone


def test_a_video_is_refused(engine: Beside) -> None:
    from vllm.exceptions import VLLMValidationError

    [prompt] = engine.prompts(noise(1))
    frames = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    video = {"prompt": prompt["prompt"].replace("image", "video"), "multi_modal_data": {"video": [(frames, {})]}}
    with pytest.raises(VLLMValidationError, match=r"At most 0 video\(s\)"):
        engine.generate([video])


def test_bytes_of_pictures_are_scaled_by_models_of_vllm_alone(folder: Path, tmp_path: Path) -> None:
    TinyQwen25VL().build().save_pretrained(tmp_path / "full")
    OWN["Qwen2_5_VLForConditionalGeneration"]().save_pretrained(tmp_path / "full")
    full, ours = (configured(path).model_config for path in (tmp_path / "full", folder))
    assert full.architecture == "Qwen2_5_VLForConditionalGeneration"
    assert full.multimodal_config.mm_device_do_normalize
    assert ours.architecture == "QuotaQwen2_5_VLForConditionalGeneration"
    assert not ours.multimodal_config.mm_device_do_normalize


# After those that share an engine: a second one takes from the first what vLLM has once in a process.
def test_a_preempted_request_finds_its_positions_again(folder: Path) -> None:
    gc.collect()
    # Room for the prompts, and not for all answers.
    narrow = Beside(folder, max_model_len=192, num_gpu_blocks_override=100, max_num_seqs=6)
    preempted = []
    preempt = narrow.scheduler._preempt_request
    narrow.scheduler._preempt_request = lambda request, *args, **kwargs: (
        preempted.append((request.request_id, request.num_output_tokens)),
        preempt(request, *args, **kwargs),
    )
    samples = noise(6)
    with narrow.served.record() as traces:
        found = narrow.generate(narrow.prompts(samples), LONG, ignore_eos=True)
    # What was preempted first ends last, and so is still to be seen.
    request, answered = preempted[0]
    assert answered > 0
    number = int(request.split("-")[0])
    assert len(found[number]) == LONG
    check_turns(narrow, request, samples[number], traces[request], LONG)


def test_without_cuts(tmp_path: Path) -> None:
    model, processor = TinyQwen25VL().build(), OWN["Qwen2_5_VLForConditionalGeneration"]()
    quantize_only(model, processor, noise(5))
    quota.save_pretrained(model, processor, tmp_path / "whole")
    gc.collect()
    engine = Beside(tmp_path / "whole", 8 << 20)
    assert engine.served.decoder.recipe is None
    samples = in_pairs(noise(9))
    found = engine.generate(engine.prompts(samples), NEW, ignore_eos=True)
    for sample, tokens in zip(samples, found, strict=True):
        alone = engine.alone(sample, NEW)
        assert tokens[: len(alone)] == alone
