"""Compressed checkpoints in lmms-eval: `python -m lmms_eval --model quota --model_args pretrained=small/ --tasks ...`

lmms-eval finds this model by the entry point `lmms_eval.models` of the package (extra `quota-vlm[eval]`). It passes
chats; here they become prompts by the model's own chat template, and answers by its own `generate`, on the code path
that every other command takes. Any model that quota loads is taken: what is not compressed is measured as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]
from lmms_eval.protocol import ChatMessages  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from quota.checkpoint.named import load_model
from quota.errors import QuotaError

MANIFEST = ModelManifest(model_id="quota", chat_class_path="quota.evaluation.lmms.QuotaModel")

MAX_NEW_TOKENS = 1024
"""Where the task does not say: what lmms-eval's own models take."""

_SAMPLING = ("temperature", "top_p", "top_k", "num_beams")


class QuotaModel(lmms):
    """A checkpoint in the form that lmms-eval asks questions in."""

    is_simple = False

    def __init__(
        self, pretrained: str, batch_size: int | str = 1, device: str | None = None, max_batch_size: int | None = None
    ) -> None:
        """`pretrained` is what every command takes: a folder, a hub id, `reference`. QuotaError if it cannot be loaded.

        `max_batch_size`, which lmms-eval passes for automatic batch sizes, has to be left out.
        """
        super().__init__()
        if max_batch_size is not None or not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise QuotaError(f"batch_size {batch_size} is not a number of questions; give one from 1 up")
        self.batch_size = int(batch_size)
        model, self.processor, self.label = load_model(pretrained)
        self.model: Any = model
        self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, in the order of the requests; those with equal generation settings are asked together."""
        answers: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[2].items())), []).append(number)
        with tqdm(total=len(requests), desc=f"{self.label} answers") as bar:
            for group in groups.values():
                for start in range(0, len(group), self.batch_size):
                    numbers = group[start : start + self.batch_size]
                    told = self._answer(
                        [self._chat(requests[number]) for number in numbers], requests[numbers[0]].args[2]
                    )
                    answers |= zip(numbers, told, strict=True)
                    bar.update(len(numbers))
        return [answers[number] for number in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused: tasks for models that talk ask for answers."""
        raise QuotaError(
            "quota answers questions in lmms-eval, but does not score given answers; take a generation task"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused."""
        raise QuotaError("quota does not play tasks of several rounds in lmms-eval; take a generation task")

    def _chat(self, request: Any) -> ChatMessages:
        _, to_messages, _, document, task, split = request.args
        return ChatMessages(messages=to_messages(self.task_dict[task][split][document]))

    def _answer(self, chats: list[ChatMessages], settings: dict[str, Any]) -> list[str]:
        for chat in chats:
            _, videos, sounds = chat.extract_media()
            if videos or sounds:
                raise QuotaError("quota takes pictures in lmms-eval, not video or sound; take a task with images")
        inputs = self.processor.apply_chat_template(
            [chat.to_hf_messages() for chat in chats],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(self.model.device, self.model.dtype)
        given = {name: settings[name] for name in _SAMPLING if settings.get(name) is not None}
        # lmms-eval says "greedy" by a temperature of zero, which `generate` refuses.
        sampled = bool(given.get("temperature")) and settings.get("do_sample") is not False
        if not sampled:
            given = {name: value for name, value in given.items() if name == "num_beams"}
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs,
                **given,
                do_sample=sampled,
                max_new_tokens=settings.get("max_new_tokens", MAX_NEW_TOKENS),
                pad_token_id=self.processor.tokenizer.pad_token_id,
            )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        return [_until(text, settings.get("until")).strip() for text in texts]


def _until(text: str, ends: str | Sequence[str] | None) -> str:
    """`text` up to the first of `ends`."""
    for end in [ends] if isinstance(ends, str) else ends or ():
        text = text.split(end)[0] if end else text
    return text
