"""What cannot be done is refused in one line before anything is loaded; what nobody asked for is set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.engines import configured

from quota_lab import reference

pytest.importorskip("vllm", reason="run by `make test-vllm`")

REFUSED: dict[str, dict[str, Any]] = {
    "prefix caching": {"enable_prefix_caching": True},
    "chunked prefill": {"enable_chunked_prefill": True},
    "parallelism": {"tensor_parallel_size": 2},
    "speculative decoding": {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    },
    "LoRA": {"enable_lora": True},
    "--kv-cache-dtype": {"kv_cache_dtype": "fp8"},
    "--compilation-config": {"compilation_config": {"mode": 3}},
    "--load-format": {"load_format": "dummy"},
    "hybrid KV cache manager": {"disable_hybrid_kv_cache_manager": True},
    "embeddings": {"enable_prompt_embeds": True},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wish_that_cannot_be_honoured_is_refused(name: str, quota_folder: Path) -> None:
    with pytest.raises(ValueError, match=f"quota in vLLM: .*{name}"):
        configured(quota_folder, **REFUSED[name])


def test_what_nobody_asked_for_is_set(quota_folder: Path) -> None:
    config = configured(quota_folder)
    assert not config.cache_config.enable_prefix_caching
    assert not config.scheduler_config.enable_chunked_prefill
    assert config.model_config.enforce_eager
    assert config.cache_config.block_size == 16
    assert config.model_config.quantization == "quota"
    assert configured(quota_folder, block_size=32).cache_config.block_size == 32


def test_other_checkpoints_are_left_alone() -> None:
    config = configured(reference.model_path())
    assert config.model_config.architecture == "LlavaForConditionalGeneration"
    assert config.model_config.quantization is None
    assert config.cache_config.enable_prefix_caching
    assert config.scheduler_config.enable_chunked_prefill
    assert not config.model_config.enforce_eager
    assert config.scheduler_config.scheduler_cls is None


def test_an_architecture_that_is_not_served_is_refused(quota_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(quota_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["LlavaNextForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="LlavaNextForConditionalGeneration is not served; served are LlavaFor"):
        configured(folder)
