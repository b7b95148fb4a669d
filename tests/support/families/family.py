"""What a tiny family must offer, so that one set of tests can run it in every mode.

A prompt is built by hand, as its processor would have built it: token ids, the image that each token belongs to, and
the arguments that bring the pictures. `row` says once more, without hooks, masks or caches, what enters the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from support.naive import Row

PAD, IMAGE, VIDEO, START, END, NEWLINE, FIRST_WORD, VOCABULARY = 0, 3, 4, 5, 6, 7, 8, 96
LAYERS = 5
WORDS = tuple(range(FIRST_WORD, VOCABULARY))


@dataclass(frozen=True)
class Picture:
    """One picture or video in a prompt."""

    ids: list[int]
    images: list[int]
    """The image, counted from 0, of each id; -1 for words around it."""
    vision: dict[str, Tensor]


@dataclass(frozen=True)
class Prompt:
    """One sample."""

    ids: Tensor
    images: Tensor
    vision: list[dict[str, Tensor]] = field(default_factory=list)

    def __add__(self, other: Prompt) -> Prompt:
        shifted = torch.where(other.images < 0, -1, other.images + int(self.images.max()) + 1)
        return Prompt(torch.cat([self.ids, other.ids]), torch.cat([self.images, shifted]), self.vision + other.vision)

    def say(self, words: Tensor) -> Prompt:
        return self + Prompt(words, torch.full_like(words, -1))


class TinyFamily:
    """Defaults fit families whose arguments are rows of images, one after another over the batch."""

    architecture: type
    sizes: tuple[Any, Any] = (0, 1)
    """Two sizes of pictures, unequal where the family can."""

    def config(self) -> PreTrainedConfig:
        raise NotImplementedError

    def picture(self, size: Any, generator: torch.Generator) -> Picture:
        raise NotImplementedError

    def video(self, generator: torch.Generator) -> Picture | None:
        return None

    def extras(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Arguments made from the padded ids [B, L]."""
        return {}

    def collate(self, visions: Sequence[Sequence[Mapping[str, Tensor]]]) -> dict[str, Tensor]:
        """The pictures of each sample of a batch as arguments."""
        flat = [vision for sample in visions for vision in sample]
        names = dict.fromkeys(name for vision in flat for name in vision)
        return {name: torch.cat([vision[name] for vision in flat if name in vision]) for name in names}

    def rotary(self, model: Any, prompt: Prompt) -> list[tuple[Tensor, Tensor]]:
        """cos and sin [L, W] of every layer."""
        decoder = decoder_of(model)
        cos, sin = decoder.rotary_emb(torch.zeros(1), self.positions(model, prompt))
        return [(cos[0], sin[0])] * len(decoder.layers)

    def positions(self, model: Any, prompt: Prompt) -> Tensor:
        return torch.arange(len(prompt.ids))[None]

    def blocks(self, prompt: Prompt, passes: Sequence[int]) -> Tensor | None:
        """[L]: tokens of one block see one another, -1 is in none."""
        return None

    def build(self, implementation: str = "sdpa", seed: int = 0, tied: bool = False) -> Any:
        """A random float32 model in evaluation mode, whose attention is far from uniform.

        If `tied`, the head is the embedding.
        """
        config = self.config()
        if tied:
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = True
        config._attn_implementation = implementation
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            model = self.architecture(config).eval()
            for name, parameter in model.named_parameters():
                draw(name, parameter)
        model.generation_config.pad_token_id = PAD
        model.generation_config.eos_token_id = None
        return model

    def prompt(self, pictures: Sequence[Any], question: int = 5, seed: int = 0) -> Prompt:
        """Two words, pictures (sizes, or "video") one after another, a question."""
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(FIRST_WORD, VOCABULARY, (2 + question,), generator=generator).tolist()
        ids, images, vision = words[:2], [-1, -1], []
        for size in pictures:
            picture = self.video(generator) if size == "video" else self.picture(size, generator)
            assert picture is not None
            ids = ids + picture.ids
            images = images + [image if image < 0 else image + max(images) + 1 for image in picture.images]
            vision.append(picture.vision)
        return Prompt(torch.tensor(ids + words[2:]), torch.tensor(images + [-1] * question), vision)

    def batch(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The model's arguments, padded on the left."""
        length = max(len(prompt.ids) for prompt in prompts)
        ids = torch.stack([torch.nn.functional.pad(p.ids, (length - len(p.ids), 0), value=PAD) for p in prompts])
        mask = (ids != PAD).long()
        visions = [prompt.vision for prompt in prompts]
        pictures = self.collate(visions) if any(visions) else {}
        return {"input_ids": ids, "attention_mask": mask, **pictures, **self.extras(ids, mask)}

    def later(self, model: Any, whole: Sequence[Prompt], new: Sequence[Prompt], mask: Tensor) -> dict[str, Tensor]:
        """Arguments of a later turn: the pictures that are `new` in conversations that are now `whole`."""
        pictures = self.collate([prompt.vision for prompt in new]) if any(prompt.vision for prompt in new) else {}
        ids = torch.zeros_like(mask)
        ids[mask.bool()] = torch.cat([prompt.ids for prompt in whole])
        return {**pictures, **self.extras(ids, mask)}

    @torch.no_grad()
    def row(self, model: Any, prompt: Prompt, passes: Sequence[int]) -> Row:
        """What the naive decoder needs of one sample."""
        hidden = model.get_input_embeddings()(prompt.ids[None])[0]
        deep: list[Tensor] = []
        given = self.collate([prompt.vision]) if prompt.vision else {}
        for token, modality, pixels in ((IMAGE, "image", "pixel_values"), (VIDEO, "video", "pixel_values_videos")):
            if pixels not in given:
                continue
            function = getattr(model.model, f"get_{modality}_features")
            names = [name for name in given if name in features_of(modality)]
            output = function(**{name: given[name] for name in names}, return_dict=True)
            there = prompt.ids == token
            hidden[there] = flat(output.pooler_output)
            for level, features in enumerate(getattr(output, "deepstack_features", None) or []):
                if level == len(deep):
                    deep.append(torch.zeros_like(hidden))
                deep[level][there] = flat(features)
        blocks = self.blocks(prompt, passes)
        return Row(hidden, prompt.images, self.rotary(model, prompt), blocks, deep)


def features_of(modality: str) -> tuple[str, ...]:
    if modality == "video":
        return ("pixel_values_videos", "video_grid_thw")
    return ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask", "batch_num_images")


def flat(features: Tensor | Sequence[Tensor]) -> Tensor:
    """All visual tokens in order, [n, D]."""
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in features])


def decoder_of(model: Any) -> Any:
    return model.model.text_model if hasattr(model.model, "text_model") else model.model.language_model


def draw(name: str, parameter: Tensor) -> None:
    """Weights that make every layer matter, queries and keys a little larger; with 0.02 all tokens look alike."""
    if parameter.ndim == 2 and "position" not in name:
        gain = 1.5 if "q_proj" in name or "k_proj" in name or "qkv" in name else 1.0
        parameter.normal_(0, 1.0 if "embed" in name else gain * parameter.shape[1] ** -0.5)
    elif parameter.ndim >= 2:
        parameter.normal_(0, 0.1)
    elif "newline" in name:
        parameter.normal_()
