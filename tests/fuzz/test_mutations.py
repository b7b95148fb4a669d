"""Mutations are the same for the same seed, and spoil what they are given."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save

sys.path.append(str(Path(__file__).resolve().parents[2] / "fuzz"))
import mutations

TEXT = json.dumps({"layers": [1, 2], "name": "x", "inner": {"deep": None}})
WEIGHTS = save({"a": torch.ones(4, 8), "b": torch.arange(6, dtype=torch.int32)}, metadata={"format": "pt"})
WORDS = (["model"], ["file"], ["new"])


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda chance: mutations.json_text(chance, TEXT), id="json"),
        pytest.param(lambda chance: mutations.any_bytes(chance, WEIGHTS), id="bytes"),
        *(
            pytest.param(lambda chance, kind=kind: getattr(mutations, kind)(chance, WEIGHTS), id=kind)
            for kind in ("header", "dtype", "shape", "body")
        ),
        pytest.param(mutations.picture, id="picture"),
        pytest.param(lambda chance: mutations.template(chance, "{% for a in b %} {{ a }} {% endfor %}"), id="template"),
        pytest.param(lambda chance: mutations.command(chance, *WORDS), id="command"),
    ],
)
def test_a_seed_decides_and_seeds_differ(spoil: Callable[[Random], object]) -> None:
    first, again = ([spoil(Random(f"0/{number}")) for number in range(40)] for _ in range(2))
    assert first == again
    assert len({str(found) for found in first}) > 10
