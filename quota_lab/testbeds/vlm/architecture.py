"""The testbed: a LLaVA in stock layout of DINOv2-S/14 at 224 pixels and SmolLM2-135M-Instruct.

256 visual tokens: the hidden states behind block LAYER of the tower, without the class token, through an MLP of two
layers. The decoder's vocabulary stays as it is: the image token takes the place of a special token that SmolLM2
reserves for data sets of code and that no chat uses.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessorPil,
    Dinov2Config,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from quota_lab.testbeds.vlm.labels import PATCH
from quota_lab.testbeds.vlm.pictures import PICTURE

LAYER = 8
IMAGE, UNUSED = "<image>", "<empty_output>"
START, END = "<|im_start|>", "<|im_end|>"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# SmolLM2's own format without its system message. Answers begin with a space: so a word is the same token as inside
# a sentence. It loops over `message.content` itself: by that vLLM knows a template that takes pictures as parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is not string %}"
    "{% for part in message.content if part.type == 'image' %}<image>{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %} {% endif %}"
    "{% if message.content is string %}{{ message.content | trim }}"
    "{% else %}{% for part in message.content if part.type == 'text' %}{{ part.text | trim }}{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_config(tower: Dinov2Config, text: LlamaConfig, image_token: int, layer: int = LAYER) -> LlavaConfig:
    """`tower` at PICTURE pixels before `text`."""
    vision = Dinov2Config(**(tower.to_dict() | {"image_size": PICTURE}))
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=(PICTURE // PATCH) ** 2,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def assemble(tower: Any, decoder: Any, tokenizer: Any, layer: int = LAYER) -> Any:
    """A LLaVA of a `Dinov2Model` and a `LlamaForCausalLM`, in float32, with a projector that is not trained yet."""
    text = LlamaConfig(
        **{key: value for key, value in decoder.config.to_dict().items() if key != "quantization_config"}
    )
    config = build_config(tower.config, text, int(tokenizer.convert_tokens_to_ids(IMAGE)), layer)
    model: Any = LlavaForConditionalGeneration(config)
    seen = dict(tower.state_dict())
    key = "embeddings.position_embeddings"
    seen[key] = resize_positions(seen[key], PICTURE // PATCH)
    # Strict: a name that does not fit would leave random weights behind in silence.
    model.model.vision_tower.load_state_dict(seen, strict=True)
    model.model.language_model.load_state_dict(decoder.model.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, max_new_tokens=32,
    )  # fmt: skip
    return model.eval()


def resize_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """[1, 1 + S * S, D] -> [1, 1 + side * side, D], as Dinov2 itself would do at every call."""
    width, old = positions.shape[-1], round((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, old, old, width).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat((positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, width).to(positions.dtype)), 1)


def with_image_token(tokenizer: Any) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer with its token `<empty_output>` renamed `<image>`."""
    written = tokenizer.backend_tokenizer.to_str().replace(f'"{UNUSED}"', f'"{IMAGE}"')
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(written),
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token="<|endoftext|>",
        additional_special_tokens=[IMAGE],
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, patch: int = PATCH) -> LlavaProcessor:
    """Picture and text to model inputs, in the stock LLaVA way (one <image> becomes 256 of them)."""
    size = {"height": PICTURE, "width": PICTURE}
    image_processor = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=list(MEAN), image_std=list(DEVIATION)
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
