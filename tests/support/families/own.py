"""The processor that a checkpoint of each family brings, with a toy tokenizer and the sizes of the tiny models.

transformers has two of every image processor, on torchvision and on PIL; the first is made where torchvision is
installed. Processors of families with videos need it, and that of SmolVLM num2words too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import is_torchvision_available

from support.families.family import END, IMAGE, NEWLINE, START, VIDEO, VOCABULARY
from support.families.gemma import PATCH, SIDE
from support.families.qwen import MERGE
from support.families.qwen import PATCH as QWEN_PATCH
from support.families.tiled import TOKENS

SQUARE = {"height": SIDE, "width": SIDE}
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
TEMPLATE = (
    "{%% for turn in messages %%}{{ turn.role }}: {%% for part in turn.content %%}"
    "{%% if part.type == 'image' %%}%s {%% elif part.type == 'video' %%}%s {%% else %%}{{ part.text }} {%% endif %%}"
    "{%% endfor %%}{%% endfor %%}{%% if add_generation_prompt %%}assistant: {%% endif %%}"
)


def tokenizer(places: dict[int, str], **special: str) -> PreTrainedTokenizerFast:
    """Words split at spaces, with these strings at these ids; `special` names further tokens of the tokenizer."""
    words = {0: "<pad>", 1: "<unk>", 2: "</s>", NEWLINE: "<bos>"} | places
    words |= {number: f"w{number}" for number in range(VOCABULARY) if number not in words}
    model = models.WordLevel({word: number for number, word in words.items()}, unk_token="<unk>")
    whole = Tokenizer(model)
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        bos_token="<bos>",
        additional_special_tokens=list(places.values()),
        **special,
    )


def images(name: str, **fields: Any) -> Any:
    return getattr(transformers, name if is_torchvision_available() else f"{name}Pil")(**fields)


def template(image: str, video: str = "") -> str:
    return TEMPLATE % (image, video)


def llava() -> Any:
    # As that of the published checkpoints it cuts what sticks out of the middle square.
    return transformers.LlavaProcessor(
        images("CLIPImageProcessor", size={"shortest_edge": SIDE}, crop_size=SQUARE),
        tokenizer({IMAGE: "<image>"}),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=template("<image>"),
        num_additional_image_tokens=1,
    )


def llava_next() -> Any:
    return transformers.LlavaNextProcessor(
        images(
            "LlavaNextImageProcessor",
            size={"shortest_edge": SIDE},
            crop_size=SQUARE,
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer({IMAGE: "<image>"}),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=template("<image>"),
        num_additional_image_tokens=1,
    )


def llava_onevision() -> Any:
    return transformers.LlavaOnevisionProcessor(
        images("LlavaOnevisionImageProcessor", size=SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer({IMAGE: "<image>", VIDEO: "<video>"}),
        transformers.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=template("<image>", "<video>"),
    )


def qwen(kind: str, pictures: str, videos: str) -> Callable[[], Any]:
    def make() -> Any:
        sizes = {"patch_size": QWEN_PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
        pixels = {"shortest_edge": 8 * 8, "longest_edge": 40 * 40}
        ends = {START: "<|vision_start|>", END: "<|vision_end|>"}
        words = tokenizer({IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>"} | ends)
        around = "<|vision_start|>%s<|vision_end|>"
        return getattr(transformers, kind)(
            images(pictures, size=pixels, **sizes),
            words,
            getattr(transformers, videos)(size=pixels, **sizes),
            chat_template=template(
                around % "<|image_pad|>", around % "<|video_pad|>" if kind != "Qwen3VLProcessor" else "<|video_pad|>"
            ),
        )

    return make


def internvl() -> Any:
    words = tokenizer(
        {IMAGE: "<IMG_CONTEXT>", VIDEO: "<video>", START: "<img>", END: "</img>"},
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    return transformers.InternVLProcessor(
        images("GotOcr2ImageProcessor", size=SQUARE, max_patches=4),
        words,
        transformers.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=TOKENS,
        chat_template=template("<IMG_CONTEXT>", "<video>"),
    )


def idefics3(kind: str = "Idefics3", *more: Callable[[], Any]) -> Any:
    side = {"longest_edge": SIDE}
    return getattr(transformers, f"{kind}Processor")(
        images(f"{kind}ImageProcessor", size={"longest_edge": 3 * SIDE}, max_image_size=side),
        tokenizer({IMAGE: "<image>", START: "<fake_token_around_image>", END: "<end_of_utterance>"}),
        *(make() for make in more),
        image_seq_len=TOKENS,
        chat_template=template("<image>", "<video>"),
    )


def smolvlm() -> Any:
    side = {"longest_edge": SIDE}
    return idefics3(
        "SmolVLM",
        lambda: transformers.SmolVLMVideoProcessor(
            size=side, max_image_size=side, video_sampling={"max_frames": 8, "fps": 1, "video_size": side}
        ),
    )


def gemma3() -> Any:
    words = tokenizer(
        {IMAGE: "<image_soft_token>", START: "<start_of_image>", END: "<end_of_image>"},
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
    return transformers.Gemma3Processor(
        images("Gemma3ImageProcessor", size=SQUARE),
        words,
        image_seq_length=(SIDE // PATCH) ** 2,
        chat_template=template("<start_of_image>"),
    )


def paligemma() -> Any:
    # Published ones have no chat template.
    return transformers.PaliGemmaProcessor(
        images("SiglipImageProcessor", size=SQUARE, image_seq_length=(SIDE // PATCH) ** 2),
        tokenizer({IMAGE: "<image>"}),
    )


OWN: dict[str, Callable[[], Any]] = {
    "LlavaForConditionalGeneration": llava,
    "LlavaNextForConditionalGeneration": llava_next,
    "LlavaOnevisionForConditionalGeneration": llava_onevision,
    "Qwen2VLForConditionalGeneration": qwen("Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
    "Qwen2_5_VLForConditionalGeneration": qwen("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
    "Qwen3VLForConditionalGeneration": qwen("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor"),
    "InternVLForConditionalGeneration": internvl,
    "Idefics3ForConditionalGeneration": idefics3,
    "SmolVLMForConditionalGeneration": smolvlm,
    "Gemma3ForConditionalGeneration": gemma3,
    "PaliGemmaForConditionalGeneration": paligemma,
}
