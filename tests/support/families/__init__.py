"""Tiny random models of every supported family."""

from support.families.family import TinyFamily
from support.families.gemma import TinyGemma3, TinyPaliGemma
from support.families.llava import TinyLlava, TinyLlavaNext, TinyLlavaOnevision
from support.families.qwen import TinyQwen2VL, TinyQwen3VL, TinyQwen25VL
from support.families.tiled import TinyIdefics3, TinyInternVL, TinySmolVLM

TINY: dict[str, TinyFamily] = {
    tiny.architecture.__name__: tiny
    for tiny in (
        TinyLlava(),
        TinyLlavaNext(),
        TinyLlavaOnevision(),
        TinyQwen2VL(),
        TinyQwen25VL(),
        TinyQwen3VL(),
        TinyInternVL(),
        TinyIdefics3(),
        TinySmolVLM(),
        TinyGemma3(),
        TinyPaliGemma(),
    )
}
