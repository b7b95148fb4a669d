"""All that decides an outcome of the study, as one SHA-256.

The variant, the model's weights, the questions, the calibration set, the operators' backends, and the code of this
package that runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from quota import ops
from quota.checkpoint.named import load_model
from quota.ops import device
from quota.samples import Sample, digest, fingerprint
from quota_lab.digest import code_digest
from quota_lab.study.variants import Variant

# What cannot change an outcome.
OUTSIDE = frozenset({"ablation", "bench", "cli", "report", "reference", "serving", "testbeds"})


class Keys:
    """The keys of the variants of one study, 64 hexadecimal digits each."""

    def __init__(
        self, model: str, questions: Sequence[Sample], calibration: Callable[[int, int], list[Sample]]
    ) -> None:
        """`calibration(count, seed)` draws calibration samples."""
        self._name = model
        self._questions = questions
        self._calibration = calibration
        self._drawn: dict[tuple[int, int], str] = {}

    def outcome(self, variant: Variant) -> str:
        """The key of what a variant answers."""
        return self._key(variant, {"questions": self._asked})

    def model(self, variant: Variant) -> str:
        """The key of a variant's model."""
        return self._key(variant, {})

    def _key(self, variant: Variant, facts: dict[str, Any]) -> str:
        facts = facts | {
            "variant": variant.model_dump(mode="json"),
            "model": self._weights,
            "code": code_digest(OUTSIDE),
            "backend": ops.backend(device=device.chosen()).name,
        }
        if variant.calibrated:
            facts["calibration"] = self._calibrated_on(variant.samples, variant.seed)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _calibrated_on(self, count: int, seed: int) -> str:
        if (count, seed) not in self._drawn:
            self._drawn[count, seed] = fingerprint(self._calibration(count, seed))
        return self._drawn[count, seed]

    @cached_property
    def _asked(self) -> str:
        # In their order, as outcomes are.
        return hashlib.sha256("".join(map(digest, self._questions)).encode()).hexdigest()

    @cached_property
    def _weights(self) -> str:
        model, _, _ = load_model(self._name)
        digest = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.float().cpu().numpy().tobytes())
        return digest.hexdigest()
