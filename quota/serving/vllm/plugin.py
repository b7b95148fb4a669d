"""The entry point `vllm.general_plugins`: vLLM calls `register` in each of its processes."""

from __future__ import annotations

SERVED = {
    "LlavaForConditionalGeneration": ("QuotaLlava", "quota.serving.vllm.llava"),
    "LlavaOnevisionForConditionalGeneration": ("QuotaLlavaOnevision", "quota.serving.vllm.llava_onevision"),
    "Qwen2_5_VLForConditionalGeneration": ("QuotaQwen25VL", "quota.serving.vllm.qwen2_5_vl"),
}
"""Architecture of transformers -> class and module that run it."""


def register() -> None:
    """Let vLLM run checkpoints of ours; others are as before. May be called several times."""
    from quota.serving.vllm.redirect import lead

    for architecture, (served, where) in SERVED.items():
        lead(architecture, served, where)
