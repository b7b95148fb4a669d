"""A compressed model says what it cannot do, in one line."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_llava import answers, batch
from transformers import AutoModelForImageTextToText

from quota.errors import QuotaError


@pytest.fixture(scope="module")
def model(quota_folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(quota_folder)


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("labels", [True, False])
def test_backward(return_dict: bool, labels: bool, model: Any) -> None:
    inputs = batch()
    given = {"labels": inputs["input_ids"]} if labels else {}
    output = model(**inputs, **given, return_dict=return_dict)
    with pytest.raises(QuotaError, match="has no gradients; train the original"):
        output[0].sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "write", [pickle.dumps, lambda model: torch.save(model, io.BytesIO())], ids=["pickle", "torch"]
)
def test_pickling(write: Callable[[Any], object], model: Any) -> None:
    with pytest.raises(QuotaError, match=r"cannot be pickled; use quota\.save_pretrained"):
        write(model)


def test_a_copy_in_memory_is_allowed_and_says_the_same(model: Any) -> None:
    twin = copy.deepcopy(model)
    assert torch.equal(answers(twin), answers(model))
    with pytest.raises(QuotaError, match="cannot be pickled"):
        pickle.dumps(twin)


def test_float64(model: Any) -> None:
    with pytest.raises(QuotaError, match="does not run in float64"):
        answers(copy.deepcopy(model).to(torch.float64))


@pytest.mark.parametrize("shape", [(1, 0), (0, 4), (0, 0)])
def test_an_empty_prompt(shape: tuple[int, int], model: Any) -> None:
    with pytest.raises(QuotaError, match="hold no token"):
        model(input_ids=torch.zeros(shape, dtype=torch.long))
    with pytest.raises(QuotaError, match="hold no token"):
        model(torch.zeros(shape, dtype=torch.long))
