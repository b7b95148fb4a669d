"""The reference tokenizer and processor: byte-level BPE, so any English goes in and comes out.

Two choices serve the small model. Words of the reference world are one token each, so a patch of a cat can be
pulled towards the embedding of " cat". Runs of capitals are split into letters, so a sign is read letter by letter.
"""

from __future__ import annotations

from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from quota_lab.reference.pictures import PICTURE, draw
from quota_lab.reference.questions import TASKS, ask, describe
from quota_lab.reference.words import CELLS, COLORS, EMOJI, LETTERS, NUMBERS, SCENES, SHAPES

VOCABULARY = 768
SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<user>", "<assistant>")
PAD, BOS, EOS, IMAGE, USER, ASSISTANT = range(len(SPECIAL))

# Loops over `message.content` itself: by that vLLM knows a template that takes pictures as parts.
CHAT_TEMPLATE = (
    "<s>{% for message in messages %}"
    "{% if message.content is not string %}"
    "{% for part in message.content if part.type == 'image' %}<image>{% endfor %}{% endif %}"
    "<{{ 'assistant' if message.role == 'assistant' else 'user' }}>"
    "{% if message.content is string %} {{ message.content | trim }}"
    "{% else %}{% for part in message.content if part.type == 'text' %} {{ part.text | trim }}{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def words() -> list[str]:
    """Every word that must be one token."""
    cells = {word for cell in CELLS for word in cell.split()}
    return sorted({*EMOJI, *SHAPES, *COLORS, *SCENES, *cells, *NUMBERS, "yes", "no", "sign", "rectangle"})


def build_tokenizer(seed: int = 0, pictures: int = 4000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on questions about `pictures` pictures; deterministic for a seed."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[A-Z]{2,}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(Random(seed), pictures), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>", "<user>", "<assistant>"],
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    for word in words():
        if len(tokenizer.encode(f" {word}", add_special_tokens=False)) != 1:
            raise RuntimeError(f"the tokenizer splits {word!r}: train it on more pictures")
    return tokenizer


def _corpus(rng: Random, pictures: int) -> list[str]:
    """Text without plurals and without words in capitals, so that neither earns merges of its own."""
    known, lines = set(words()), []
    for _ in range(pictures):
        _, scene = draw(rng)
        scene.sign = None
        asked = [ask(task, scene, rng) for task in TASKS if task != "reading"]
        for question in (*filter(None, asked), describe(scene)):
            for text in (question.text, question.answer):
                split = text.replace("?", " ?").replace(".", " .").replace(",", " ,").split(" ")
                split = [word[:-1] if word.endswith("s") and word[:-1] in known else word for word in split]
                lines.append(" " + " ".join(split).replace(" ?", "?").replace(" .", ".").replace(" ,", ","))
    lines += [f" {word}" for word in words()] * 40
    lines += [
        f" {form}" for form in ("Read the sign.", "What does the sign say?", "What is written on the sign?")
    ] * 400
    lines += [f" What is the {which} letter on the sign?" for which in ("first", "last")] * 200
    lines += [" does the image not contain a shape?", " is there no shape present in the image?"] * 400
    lines += [" what color is the shape?", " what shape is in the image?", " what is the shape?"] * 100
    lines += [f" {letter}." for letter in LETTERS[:4]] * 40
    return lines


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Picture and text to model inputs, in the stock LLaVA way (one <image> becomes 144 of them)."""
    size = {"height": PICTURE, "width": PICTURE}
    image_processor = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
