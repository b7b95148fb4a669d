"""A tiny random LLaVA and questions for it, for tests of the whole pipeline."""

from __future__ import annotations

import random

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    BatchFeature,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from quota.prompts import build_inputs
from quota.samples import Sample
from support.processors import WORDS, make_processor

IMAGE_TOKEN = 3
VISUAL_TOKENS = 16
LAYERS = 6


def make_model(
    seed: int = 0, inner: int = 96, layers: int = LAYERS, tower: type[PreTrainedConfig] = CLIPVisionConfig
) -> LlavaForConditionalGeneration:
    """Tower of 2 blocks, decoder of `layers` with MLPs of `inner` channels; 16 visual tokens; tied embeddings."""
    torch.manual_seed(seed)
    blocks = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = LlavaConfig(
        vision_config=tower(**blocks, **({"intermediate_size": 128} if tower is CLIPVisionConfig else {})),
        text_config=LlamaConfig(
            vocab_size=96,
            hidden_size=64,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=2,
        ),
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-1,
        image_seq_length=VISUAL_TOKENS,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        # Random weights of the usual size leave all tokens alike; larger ones make attention choose.
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def make_samples(count: int = 6, seed: int = 0) -> list[Sample]:
    """Questions of unequal length about noise."""
    chance = random.Random(seed)
    words = WORDS.split()
    samples = []
    for _ in range(count):
        pixels = bytes(chance.randrange(256) for _ in range(32 * 32 * 3))
        question = " ".join(chance.choices(words, k=chance.randint(3, 9)))
        samples.append(Sample(Image.frombytes("RGB", (32, 32), pixels), question))
    return samples


def processor() -> LlavaProcessor:
    """The processor that goes with `make_model`."""
    return make_processor(image_size=32, patch_size=8, vocabulary=96)


def batch() -> BatchFeature:
    """Three questions of unequal length, so two of them are padded."""
    return build_inputs(processor(), make_samples(3))


def answers(model: PreTrainedModel) -> Tensor:
    """Eight tokens for each question of `batch`, greedily; with the prompt, [3, L + 8]."""
    return model.generate(**batch(), max_new_tokens=8, min_new_tokens=8, do_sample=False)


def logits(model: PreTrainedModel) -> Tensor:
    """Logits [3, L, 96] for `batch`."""
    with torch.no_grad():
        return model(**batch()).logits
