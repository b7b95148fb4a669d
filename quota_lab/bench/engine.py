"""An engine of vLLM in this process: what one asks it, and what can be seen of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quota.checkpoint.named import load_processor
from quota.errors import QuotaError
from quota.prompts import MAX_NEW_TOKENS, prompt_text
from quota.samples import Sample

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
_QUIET = {"VLLM_LOGGING_LEVEL": "ERROR"}
MAX_LENGTH = 512


class Engine:
    """vLLM on the checkpoint in a folder."""

    def __init__(self, folder: Path, cache_bytes: int, **options: Any) -> None:
        """`options` are those of vLLM's `LLM`. QuotaError if it is not installed."""
        prepare()
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        given: dict[str, Any] = {
            "max_model_len": MAX_LENGTH,
            "max_num_seqs": 32,
            "kv_cache_memory_bytes": cache_bytes,
            "limit_mm_per_prompt": {"image": 2},
        }
        self.llm: Any = LLM(str(folder), **given | options)
        self.processor = load_processor(folder)

    @property
    def scheduler(self) -> Any:
        """vLLM's own."""
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    @property
    def served(self) -> Any:
        """The model that it runs."""
        return self.llm.apply_model(lambda model: model)[0]

    def prompts(self, samples: Sequence[Sample]) -> list[Any]:
        """What the engine is asked."""
        return [
            {"prompt": prompt_text(self.processor, sample), "multi_modal_data": {"image": sample.pictures()}}
            for sample in samples
        ]

    def generate(
        self, prompts: Sequence[Any], new_tokens: int = MAX_NEW_TOKENS, ignore_eos: bool = False
    ) -> list[list[int]]:
        """The tokens of each greedy answer, all asked at once."""
        outputs = self.llm.generate(list(prompts), _greedy(new_tokens, ignore_eos), use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Answers as one reads them."""
        return [self.processor.decode(list(each), skip_special_tokens=True).strip() for each in tokens]

    def begin(self, samples: Sequence[Sample], new_tokens: int) -> list[str]:
        """Ask without waiting; the names of the requests, which go on behind the ends of their answers."""
        return self.llm.enqueue(self.prompts(samples), _greedy(new_tokens, ignore_eos=True), use_tqdm=False)

    def step(self) -> None:
        """One pass of all requests that have room."""
        self.llm.llm_engine.step()

    def give_up(self, names: Sequence[str]) -> None:
        """End these requests."""
        self.llm.llm_engine.abort_request(list(names), internal=True)

    @property
    def bytes_in_use(self) -> int:
        """Of the cache, by the blocks that vLLM has given to requests."""
        pool, config = self.scheduler.kv_cache_manager.block_pool, self.scheduler.kv_cache_manager.kv_cache_config
        # One block is nobody's.
        blocks = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        groups = config.kv_cache_groups
        return blocks * max(len(group.layer_names) * group.kv_cache_spec.page_size_bytes for group in groups)


def prepare() -> None:
    """Have vLLM in this process when it is imported. QuotaError if it is not installed."""
    for name, value in (_ENVIRONMENT | _QUIET).items():
        os.environ.setdefault(name, value)
    try:
        import vllm  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise QuotaError("vLLM is not installed; pip install 'quota-vlm[vllm]'") from None


def _greedy(new_tokens: int, ignore_eos: bool) -> Any:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    return SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=ignore_eos)
