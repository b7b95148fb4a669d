"""Tiny random models of every supported family."""

from families.family import TinyFamily
from families.llava import TinyLlava, TinyLlavaNext, TinyLlavaOnevision

TINY: dict[str, TinyFamily] = {
    tiny.architecture.__name__: tiny
    for tiny in (
        TinyLlava(),
        TinyLlavaNext(),
        TinyLlavaOnevision(),
    )
}
