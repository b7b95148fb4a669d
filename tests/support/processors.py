"""A processor for tiny LLaVA models: a word tokenizer, a chat template and a CLIP image processor, made in memory."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<unk>", "</s>", "<image>", "user:", "assistant:")
WORDS = (
    "what is this colour shape how many cats are in the picture where ball there a an red green blue yes no "
    "zero one two three four left right top bottom circle square animal word reads"
)
TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }}: {% for part in turn.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def make_processor(image_size: int = 32, patch_size: int = 8, vocabulary: int = 96) -> LlavaProcessor:
    """Every token below `vocabulary` decodes to some word, as a random model may say any of them.

    The tower has a class token that the model drops ("default"), so an image is (image_size / patch_size)^2 tokens.
    """
    words = [*SPECIAL, *WORDS.split()]
    words += [f"w{number}" for number in range(len(words), vocabulary)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    size = {"height": image_size, "width": image_size}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    return LlavaProcessor(
        images,
        fast,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
