"""Every family that is served, as a tiny random model with its own processor: keys with a bias, tiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.engines import Beside
from support.families import TINY
from support.families.own import OWN

import quota
from quota.prompts import build_inputs, generate
from quota.samples import Sample
from quota.serving.vllm.plugin import SERVED

pytest.importorskip("vllm", reason="run by `make test-vllm`")


def samples(count: int) -> list[Sample]:
    """Questions about noise of several sizes."""
    import numpy as np
    from PIL import Image

    def noise(seed: int) -> Image.Image:
        height, width = 200 + 40 * (seed % 3), 300 - 50 * (seed % 2)
        pixels = np.random.default_rng(seed).integers(90, 160, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels, "RGB")

    return [
        Sample(noise(seed), " ".join(f"w{20 + seed + word}" for word in range(2 + seed % 3))) for seed in range(count)
    ]


@pytest.mark.parametrize("name", [name for name in SERVED if name != "LlavaForConditionalGeneration"])
def test_tokens_and_places_are_those_of_quota(name: str, tmp_path: Path) -> None:
    model, processor = TINY[name].build(), OWN[name]()
    asked = samples(5)
    quota.compress(model, processor, asked, keep=0.4)
    quota.save_pretrained(model, processor, tmp_path / "small")
    engine = Beside(tmp_path / "small", 8 << 20, max_num_seqs=4, limit_mm_per_prompt={"image": 1})
    with engine.served.record() as traces:
        found = engine.generate(engine.prompts(asked), 8, ignore_eos=True)
    kept = [trace for _, trace in sorted(traces.items(), key=lambda item: int(item[0].split("-")[0]))]
    for sample, tokens, trace in zip(asked, found, kept, strict=True):
        inputs = build_inputs(engine.processor, [sample])
        with quota.record(engine.model) as own:
            alone = generate(engine.model, engine.processor, inputs, 8)[0].tolist()
        assert trace.tokens_per_layer == own.tokens_per_layer
        assert {layer: chosen.tolist() for layer, chosen in trace.kept.items()} == {
            layer: chosen.tolist() for layer, chosen in own.kept.items()
        }
        # quota's own answers end where the end is.
        end = engine.processor.tokenizer.eos_token_id
        length = alone.index(end) + 1 if end in alone else len(alone)
        assert tokens[:length] == alone[:length]
    # The worker hears of requests that have ended with the next pass.
    engine.generate(engine.prompts(asked[:1]), 2)
    assert len(engine.served.decoder.turns) == 1
