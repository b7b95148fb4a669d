"""Every family at W4A4KV4: compressed, saved and loaded again, and run block by block as the sweep does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import TINY
from support.families.family import IMAGE, PAD, VIDEO
from support.families.processor import SAMPLES, HandWritten
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

import quota
from quota import ops
from quota.calibration.blocks import capture, run
from quota.models import family
from quota.pruning.pruner import record
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

families = pytest.mark.parametrize("name", TINY)


def generate(model: Any, batch: dict[str, Tensor]) -> Any:
    return model.generate(
        **batch,
        max_new_tokens=5,
        do_sample=False,
        suppress_tokens=[IMAGE, VIDEO, PAD],
        return_dict_in_generate=True,
        output_logits=True,
    )


@families
def test_compressed_saved_and_loaded(name: str, tmp_path: Path) -> None:
    tiny = TINY[name]
    model = tiny.build()
    linears = [linear for linear, _ in family(model).linears()]
    # All in the tower and the decoder; of the rest only embeddings and lm_head are left.
    assert {name for name, module in model.named_modules() if isinstance(module, nn.Linear)} - set(linears) == {
        "lm_head"
    }
    scheme = QuantizationScheme(weight_rounding="rtn")
    result = quota.compress(
        model, HandWritten(tiny), SAMPLES, keep=0.3, scheme=scheme, layers=[1, 2, 3], method="paper"
    )
    assert result.quantized == len(linears)
    assert all(isinstance(model.get_submodule(linear), W4A4Linear) for linear in linears)

    small, large = tiny.sizes
    batch = tiny.batch([tiny.prompt([small, large], 5, seed=1), tiny.prompt([large], 3, seed=2)])
    with ops.record() as used, record(model) as trace:
        expected = generate(model, batch)
    assert {job for job, _ in used.calls} >= {"linear", "cache", "attention"}
    assert trace.tokens_per_layer[-1] < trace.tokens_per_layer[0]

    quota.save_pretrained(model, HandWritten(tiny), tmp_path / "out")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    output = generate(loaded, batch)
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(torch.stack(output.logits), torch.stack(expected.logits))


@families
def test_layers_one_by_one_are_the_whole_model(name: str) -> None:
    tiny = TINY[name]
    model = tiny.build()
    parts = family(model)
    batch = tiny.batch([tiny.prompt([tiny.sizes[1]], 5, seed=3)])
    with torch.no_grad():
        hidden, beside = capture(model, parts.decoder_layers, batch)
        for layer, one in zip(parts.decoder_layers, beside, strict=True):
            hidden = run(layer, hidden, one)
        assert torch.equal(model.lm_head(parts.text_model.norm(hidden)), model(**batch).logits)


@families
def test_layers_that_read_one_tensor_run_together(name: str) -> None:
    tiny = TINY[name]
    model = tiny.build()
    scheme = QuantizationScheme(weight_rounding="rtn")
    for linear, module in family(model).linears():
        model.set_submodule(linear, W4A4Linear.from_linear(module, scheme))
    batch = tiny.batch([tiny.prompt([tiny.sizes[0]], 3, seed=2)])
    readers: list[tuple[Tensor, list[nn.Module]]] = []

    def reads(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not readers or readers[-1][0] is not args[0]:
            readers.append((args[0], []))
        readers[-1][1].append(layer)

    layers = [module for module in model.modules() if isinstance(module, W4A4Linear)]
    handles = [layer.register_forward_pre_hook(reads) for layer in layers]
    with torch.no_grad():
        expected = model(**batch).logits
    for handle in handles:
        handle.remove()
    found = {layer: layer.siblings.layers() for layer in layers if len(layer.siblings)}
    assert found == {first: others for _, (first, *others) in readers if others}
    assert len(found) >= len(family(model).decoder_layers) * 2
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)
    assert found == {layer: layer.siblings.layers() for layer in layers if len(layer.siblings)}
