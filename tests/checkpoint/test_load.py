from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_llava import batch, logits, make_model, make_samples, processor
from torch import nn
from transformers import AutoModelForImageTextToText, CompressedTensorsConfig, Dinov2Config

import quota
from quota import QuantizationScheme, QuotaError
from quota.checkpoint import manifest
from quota.checkpoint import save as checkpoint
from quota.checkpoint.manifest import MANIFEST_FILE, seal
from quota.checkpoint.named import load_model
from quota.compress import quantize_only
from quota.quantization.embedding import TiedHead
from quota.quantization.linear import W4A4Linear

SAMPLES = make_samples(5)


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, **options)


@pytest.fixture
def copy(quota_folder: Path, tmp_path: Path) -> Path:
    """A copy of a compressed checkpoint, to be spoilt."""
    return Path(shutil.copytree(quota_folder, tmp_path / "copy"))


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_a_tensor(folder: Path) -> None:
    file = folder / "model.safetensors"
    stored = load_file(file)
    del stored["language_model.model.layers.0.mlp.up_proj.weight_scale"]
    save_file(stored, file, metadata={"format": "pt"})


UP = "language_model.model.layers.0.mlp.up_proj"
EMBEDDING = "language_model.model.embed_tokens"
NORM = "language_model.model.layers.1.input_layernorm.weight"
CLASS = "vision_tower.embeddings.class_embedding"
KEYS = "language_model.model.layers.2.self_attn.key_transform.matrix"


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        stored = load_file(file)
        change(stored)
        save_file(stored, file, metadata={"format": "pt"})

    return edit


def rename(name: str, other: str) -> Callable[[Path], None]:
    return edit_tensors(lambda stored: stored.update({other: stored.pop(name)}))


def put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return edit_tensors(lambda stored: stored.update({name: change(stored[name]).contiguous()}))


def edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def edit_recipe(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        recipe = json.loads((folder / "recipe.json").read_text())
        (folder / "recipe.json").write_text(json.dumps(recipe | changes))

    return edit


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(truncate, "not whole", id="truncated weights"),
        pytest.param(drop_a_tensor, "lacks .*up_proj.weight_scale", id="missing tensor"),
        pytest.param(lambda folder: (folder / "recipe.json").unlink(), "holds no recipe.json", id="missing recipe"),
        pytest.param(lambda folder: (folder / "recipe.json").write_text("{"), "not a whole recipe", id="cut recipe"),
        pytest.param(edit_recipe(model_fingerprint="0" * 64), "another model", id="recipe of another model"),
        pytest.param(edit_recipe(taste="sweet"), "unknown key 'taste'", id="unknown key in the recipe"),
        pytest.param(
            edit_config(lambda config: config["quota"]["scheme"].update(kv_bits=8)),
            "another scheme",
            id="recipe of another scheme",
        ),
        pytest.param(
            edit_config(lambda config: config["quota"]["scheme"].update(weight_bits=5)),
            "weight_bits",
            id="impossible scheme",
        ),
        pytest.param(
            edit_config(lambda config: config["quota"].update(version=3)), "version", id="settings of a later version"
        ),
        pytest.param(
            edit_config(lambda config: config["quota"].update(version=1)),
            "of an older version of quota, .* compress the original model again",
            id="settings of the version before",
        ),
        pytest.param(
            edit_config(lambda config: config["quota"].update(colour="red")),
            "unknown key 'colour'",
            id="unknown setting",
        ),
        pytest.param(
            edit_config(lambda config: config.pop("quantization_config")), "quantization_config", id="not described"
        ),
        pytest.param(
            edit_config(lambda config: config.update(quantization_config=None)),
            "quantization_config",
            id="described as nothing",
        ),
        pytest.param(rename(NORM, f"{NORM}s"), "lacks .*1.input_layernorm.weight", id="renamed norm"),
        pytest.param(rename(CLASS, f"{CLASS}s"), "lacks .*class_embedding", id="renamed class embedding"),
        pytest.param(
            edit_tensors(lambda stored: stored.update(extra=torch.zeros(2))),
            "holds extra, which",
            id="unexpected",
        ),
        pytest.param(
            edit_tensors(lambda stored: stored.update({f"model.{NORM}": stored[NORM].clone()})),
            "holds model.language_model|a second time",
            id="a tensor twice",
        ),
        *(
            pytest.param(
                put(f"{UP}.weight_packed", lambda t, to=to: t.to(to)), "up_proj.weight_packed holds", id=f"{to}"
            )
            for to in (torch.int8, torch.uint8, torch.bool, torch.int16, torch.int64, torch.float32)
        ),
        pytest.param(put(f"{UP}.weight_scale", lambda t: t.int()), "weight_scale holds I32", id="integer scales"),
        pytest.param(put(f"{UP}.weight_packed", lambda t: t[:, :-1]), "has the shape", id="narrow weights"),
        pytest.param(put(NORM, lambda t: t[None]), "has the shape", id="a norm of two dimensions"),
        pytest.param(
            put(f"{UP}.weight_scale", lambda t: -t),
            "weight_scale holds numbers that are not above zero",
            id="negative scales",
        ),
        pytest.param(put(f"{UP}.weight_scale", lambda t: t * torch.nan), "NaN or infinity", id="NaN scales"),
        pytest.param(put(NORM, lambda t: t * torch.inf), "input_layernorm.weight holds NaN or infinity", id="infinite"),
        pytest.param(put(f"{UP}.weight_shape", lambda t: t.flip(0)), r"weight_shape says \[64, 96\]", id="turned"),
        pytest.param(put(f"{EMBEDDING}.weight_packed", lambda t: t[:-1]), "has the shape", id="a token short"),
        pytest.param(
            put(f"{EMBEDDING}.weight_scale", torch.zeros_like), "embed_tokens.weight_scale holds", id="rows of no scale"
        ),
        pytest.param(
            edit_tensors(lambda stored: stored.pop(f"{EMBEDDING}.weight_scale")),
            "lacks .*embed_tokens.weight_scale",
            id="no scales of the embedding",
        ),
        pytest.param(put(KEYS, torch.zeros_like), "key_transform.matrix cannot be inverted", id="zero key transform"),
    ],
)
def test_spoilt_checkpoint_is_refused_in_one_line(spoil: Callable[[Path], object], message: str, copy: Path) -> None:
    spoil(copy)
    with pytest.raises(QuotaError, match=f"{MANIFEST_FILE}|{message}") as raised:
        load(copy)
    assert "\n" not in str(raised.value)
    if message != "not whole":
        seal(copy)
        with pytest.raises(QuotaError, match=message) as raised:
            load(copy)
        assert "\n" not in str(raised.value)


def flip(file: Path, place: int) -> None:
    """One bit of the byte at `place`, counted from the end."""
    data = bytearray(file.read_bytes())
    data[-place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.json", "generation_config.json"])
def test_a_flipped_bit_is_found_on_loading(name: str, copy: Path) -> None:
    flip(copy / name, 5)
    with pytest.raises(QuotaError, match=rf"{name} is damaged"):
        load(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja"])
def test_commands_find_it_in_all_other_files(name: str, copy: Path) -> None:
    flip(copy / name, 5)
    with pytest.raises(QuotaError, match=rf"{name} is damaged"):
        load_model(str(copy))


def test_weights_above_the_limit_are_compared_when_asked_for(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "HASHED_ON_LOAD", 1000)
    flip(copy / "model.safetensors", 5)
    load(copy)
    monkeypatch.setenv("QUOTA_VERIFY", "all")
    with pytest.raises(QuotaError, match=r"model\.safetensors is damaged"):
        load(copy)


def test_a_checkpoint_without_a_manifest_loads_with_a_note(copy: Path, quota_folder: Path) -> None:
    (copy / MANIFEST_FILE).unlink()
    with pytest.warns(UserWarning, match=rf"has no {MANIFEST_FILE}, so damage"):
        old = load(copy)
    assert torch.equal(logits(old), logits(load(quota_folder)))


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_a_tower_whose_weights_transformers_can_split_loads(tmp_path: Path) -> None:
    """DINOv2 has a kind of MLP that is stored as one weight and loaded as two."""
    model = make_model(tower=Dinov2Config)
    quota.compress(model, processor(), SAMPLES[:2])
    quota.save_pretrained(model, processor(), tmp_path / "out")
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))


def test_dequantizing_is_refused(quota_folder: Path) -> None:
    with pytest.raises(QuotaError, match="cannot be dequantised"):
        load(quota_folder, quantization_config=CompressedTensorsConfig(dequantize=True))


def stock_checkpoint(folder: Path) -> Any:
    """A scheme that compressed-tensors computes to the last rounding, without pruning; returns our model."""
    model = make_model()
    scheme = QuantizationScheme(activation_bits=16, hadamard=0, kv_bits=16, head_bits=16, embedding_bits=16)
    quantize_only(model, processor(), SAMPLES, scheme)
    quota.save_pretrained(model, processor(), folder)
    return model


def test_foreign_checkpoint_is_left_to_transformers(tmp_path: Path) -> None:
    model = stock_checkpoint(tmp_path / "out")
    edit_config(lambda config: config.pop("quota"))(tmp_path / "out")
    foreign = load(tmp_path / "out")
    assert type(foreign.model.vision_tower.encoder.layers[0].mlp.fc1) is nn.Linear
    assert not any(isinstance(module, W4A4Linear) for module in foreign.modules())
    assert not hasattr(foreign, "quota_cache")
    torch.testing.assert_close(logits(foreign), logits(model), rtol=1e-4, atol=1e-5)


LOAD_WITHOUT_QUOTA = """
import re, sys, torch
from pathlib import Path
from transformers import AutoModelForImageTextToText, CompressedTensorsConfig

folder, inputs, how = sys.argv[1], torch.load(sys.argv[2]), sys.argv[3]
if how == "card":
    blocks = re.findall("```python\\n(.*?)```", (Path(folder) / "README.md").read_text(), re.DOTALL)
    exec(blocks[-1].replace("this/folder", folder))
else:
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if how == "dequantize" else {}
    model = AutoModelForImageTextToText.from_pretrained(folder, **options)
assert "quota" not in sys.modules
with torch.no_grad():
    torch.save(model(**inputs).logits, sys.argv[2])
"""


def run_without_quota(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that never imports quota loads `folder` and writes logits of `batch()` beside it.

    `how`: as it is ("plain"), with dequantised weights ("dequantize"), or by the lines of the folder's card ("card").
    """
    exchange = folder.with_suffix(".pt")
    torch.save(dict(batch()), exchange)
    command = [sys.executable, "-c", LOAD_WITHOUT_QUOTA, str(folder), str(exchange), how]
    return subprocess.run(command, capture_output=True, text=True)


def logits_without_quota(folder: Path, how: str) -> torch.Tensor:
    done = run_without_quota(folder, how)
    assert done.returncode == 0, done.stderr
    return torch.load(folder.with_suffix(".pt"))


def test_without_quota_an_unrotated_checkpoint_gives_the_same_logits(tmp_path: Path) -> None:
    model = stock_checkpoint(tmp_path / "out")
    stock = logits_without_quota(tmp_path / "out", "plain")
    torch.testing.assert_close(stock, logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transforms", ["hadamard", "learned"])
def test_without_quota_the_lines_of_the_card_give_the_same_logits(transforms: Any, tmp_path: Path) -> None:
    model = make_model()
    # Of 16 bits, as other loaders round activations in their own way; those of a quantised head have 8.
    scheme = QuantizationScheme(activation_bits=16, kv_bits=16, transforms=transforms, head_bits=16)
    quantize_only(model, processor(), SAMPLES, scheme)
    quota.save_pretrained(model, processor(), tmp_path / "out")
    stock = logits_without_quota(tmp_path / "out", "card")
    torch.testing.assert_close(stock, logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hadamard", [64, 0], ids=["rotated", "unrotated"])
def test_without_quota_the_lines_of_the_card_tie_the_head_again(hadamard: int, tmp_path: Path) -> None:
    model: Any = make_model()
    quantize_only(model, processor(), SAMPLES, QuantizationScheme(activation_bits=16, kv_bits=16, hadamard=hadamard))
    assert isinstance(model.lm_head, TiedHead)
    quota.save_pretrained(model, processor(), tmp_path / "out", max_shard_size="60KB")
    assert run_without_quota(tmp_path / "out", "plain").returncode == 1
    stock, ours = logits_without_quota(tmp_path / "out", "card"), logits(model)
    # Both round what enters the head to 8 bits, each in its own way.
    assert (stock - ours).norm() < 0.05 * ours.norm()


def test_without_quota_and_those_lines_a_rotated_checkpoint_is_refused_in_one_line(quota_folder: Path) -> None:
    done = run_without_quota(quota_folder, "plain")
    assert done.returncode == 1
    assert checkpoint.REFUSED in done.stderr.strip().splitlines()[-1]


def test_without_quota_a_rotated_checkpoint_cannot_be_dequantized(quota_folder: Path) -> None:
    done = run_without_quota(quota_folder, "dequantize")
    assert done.returncode == 1
    assert "RuntimeError" in done.stderr


def test_without_quota_the_weights_are_the_real_ones(tmp_path: Path) -> None:
    """KV4 and pruning are ours alone; with both off, what is left of a compressed checkpoint is the same.

    Activations have 16 bits, as one on the edge between two codes may fall on either side of it.
    """
    model: Any = make_model()
    quota.compress(model, processor(), SAMPLES, scheme=QuantizationScheme(activation_bits=16, head_bits=16))
    quota.save_pretrained(model, processor(), tmp_path / "out")
    stock = logits_without_quota(tmp_path / "out", "card")
    ours = load(tmp_path / "out")
    ours.quota_pruner.detach()
    ours.quota_cache.detach()
    torch.testing.assert_close(stock, logits(ours), rtol=1e-4, atol=1e-5)
