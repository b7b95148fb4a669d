"""Every family that is served, as a tiny random model with its own processor: keys with a bias, tiles, M-RoPE."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.engines import Beside, noise
from support.families import TINY
from support.families.own import OWN

import quota
from quota.serving.vllm.plugin import SERVED

pytest.importorskip("vllm", reason="run by `make test-vllm`")


@pytest.mark.parametrize("name", [name for name in SERVED if name != "LlavaForConditionalGeneration"])
def test_tokens_and_places_are_those_of_quota(name: str, tmp_path: Path) -> None:
    model, processor = TINY[name].build(), OWN[name]()
    asked = noise(5)
    quota.compress(model, processor, asked, keep=0.4)
    quota.save_pretrained(model, processor, tmp_path / "small")
    engine = Beside(tmp_path / "small", 8 << 20, max_num_seqs=4, limit_mm_per_prompt={"image": 1})
    engine.check_tokens_and_places(asked, 8)
    # The worker hears of requests that have ended with the next pass.
    engine.generate(engine.prompts(asked[:1]), 2)
    assert len(engine.served.decoder.turns) == 1
