"""Seeded ways to spoil what users hand in: JSON, bytes, safetensors files, pictures, command lines.

Every function takes a `random.Random` and gives the same result for the same state of it.
"""

from __future__ import annotations

import copy
import io
import json
import struct
from random import Random
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load, save

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**70), 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "a", "0", "nan", "a" * 3000, "\ud800", "<image>", "../../etc/passwd", "{{ 7 * 7 }}", "\x00\x1b[31m"),
    *([], {}, [[]], [None], {"a": {}}, [1] * 50, {"": ""}),
)


def _hostile(chance: Random) -> Any:
    # A copy: what one mutation puts in, the next may change.
    return copy.deepcopy(chance.choice(HOSTILE))


def json_text(chance: Random, text: str) -> bytes:
    """JSON with a value replaced, lost, renamed or added; or no JSON any more."""
    if chance.random() < 0.25:
        return any_bytes(chance, text.encode())
    document = json.loads(text)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        parent, key = _place(chance, document)
        if parent is None:
            return json.dumps(_hostile(chance)).encode()
        action = chance.randrange(5)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, dict):
            parent[key + chance.choice("sx_ ")] = parent.pop(key)
        elif action == 2 and isinstance(parent, dict):
            parent[chance.choice(("extra", "auto_map", "quota", key * 2))] = _hostile(chance)
        elif action == 3 and isinstance(parent[key], int | float):
            parent[key] = chance.choice(
                (parent[key] + 1, -parent[key], parent[key] * 2, str(parent[key]), [parent[key]])
            )
        else:
            parent[key] = _hostile(chance)
    # What `json` itself would not write.
    written = json.dumps(document)
    if chance.random() < 0.05:
        written = written.replace("0", chance.choice(("1" * 5000, "[" * 50_000, "1e999", "0x1")), 1)
    return written.encode()


def _place(chance: Random, document: Any) -> tuple[Any, Any]:
    """A container inside `document` and one of its keys."""
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting and len(places) < 3000:
        found = waiting.pop()
        keys = list(found) if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else ()
        places += [(found, key) for key in keys]
        waiting += [found[key] for key in keys]
    return chance.choice(places) if places else (None, None)


def any_bytes(chance: Random, data: bytes) -> bytes:
    """Flipped bits, a cut, a hole, zeros, noise, a part twice, or nothing at all."""
    changed = bytearray(data)
    at = chance.randrange(len(data) + 1)
    length = chance.choice((1, 1, 4, 16, 100))
    action = chance.randrange(8)
    if action <= 2 and changed:
        for _ in range(chance.choice((1, 1, 3, 20))):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif action == 3:
        del changed[at:]
    elif action == 4:
        del changed[at : at + length]
    elif action == 5:
        changed[at : at + length] = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length)))
    elif action == 6:
        changed[at:at] = changed[at : at + length * 10]
    else:
        changed = bytearray(chance.choice((b"", b"\x00", b"\xff\xfe", b"null", data + data)))
    return bytes(changed)


def header(chance: Random, data: bytes) -> bytes:
    """A safetensors file whose header says something else, or has another length."""
    (length,) = struct.unpack("<Q", data[:8])
    told, body = data[8 : 8 + length], data[8 + length :]
    action = chance.randrange(6)
    if action == 0:
        length = chance.choice((0, 1, length - 1, length + 1, 2**31, 2**63, len(data)))
        return struct.pack("<Q", length) + told + body
    if action == 1:
        told = any_bytes(chance, told)
    else:
        entries = json.loads(told)
        name = chance.choice([name for name in entries if name != "__metadata__"])
        entry = entries[name]
        if action == 2:
            entry["dtype"] = chance.choice(
                ("I8", "U8", "BOOL", "I16", "I32", "I64", "F16", "BF16", "F32", "F64", "F8_E4M3", "")
            )
        elif action == 3:
            entry["shape"] = chance.choice(([], [1, *entry["shape"]], entry["shape"][::-1], [2**40], [-1], [0], "x"))
        elif action == 4:
            begin, end = entry["data_offsets"]
            entry["data_offsets"] = chance.choice(
                ([end, begin], [begin + 1, end], [0, 2**40], [begin, end + 8], [], [-1, 0])
            )
        else:
            entries[chance.choice((name + "s", "", "a." * 50, name.upper()))] = entries.pop(name)
        told = json.dumps(entries).encode()
    return struct.pack("<Q", len(told)) + told + body


def dtype(chance: Random, data: bytes) -> bytes:
    """A well-formed file, one tensor of which has another type."""
    tensors = load(data)
    name = chance.choice(sorted(tensors))
    kinds = (torch.int8, torch.uint8, torch.bool, torch.int16, torch.int32, torch.int64, torch.float16, torch.float64)
    other = chance.choice(kinds)
    # By value or bit for bit, where the bits fit.
    tensor = tensors[name]
    fits = tensor.ndim > 0 and tensor.shape[-1] * tensor.element_size() % other.itemsize == 0 and other != torch.bool
    tensors[name] = tensor.contiguous().view(other) if fits and chance.random() < 0.5 else tensor.to(other)
    return save(tensors, metadata={"format": "pt"})


def shape(chance: Random, data: bytes) -> bytes:
    """A well-formed file, one tensor of which has another shape, is missing, or has joined."""
    tensors = load(data)
    name = chance.choice(sorted(tensors))
    tensor = tensors[name]
    action = chance.randrange(6)
    if action == 0:
        del tensors[name]
    elif action == 1:
        tensors[name + chance.choice(("_", ".extra", "s"))] = tensor.clone()
    elif action == 2:
        tensors[name] = tensor[None]
    elif action == 3:
        tensors[name] = tensor.flatten()
    elif action == 4:
        tensors[name] = tensor[..., :-1].contiguous() if tensor.ndim else tensor
    else:
        tensors[name] = tensor.transpose(0, -1).contiguous() if tensor.ndim else tensor
    return save(tensors, metadata={"format": "pt"})


def body(chance: Random, data: bytes) -> bytes:
    """Bits and bytes behind the header."""
    (length,) = struct.unpack("<Q", data[:8])
    if chance.random() < 0.5:
        tensors = load(data)
        name = chance.choice(sorted(tensors))
        tensor = tensors[name]
        worst = (float("nan"), float("inf"), -1.0, 0.0, 1e30) if tensor.is_floating_point() else (-1, 0, 2**31 - 1)
        value = chance.choice(worst)
        if tensor.ndim and chance.random() < 0.5:
            tensor.view(-1)[chance.randrange(tensor.numel())] = value
        else:
            tensor.fill_(value)
        return save(tensors, metadata={"format": "pt"})
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 10))):
        changed[chance.randrange(8 + length, len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def picture(chance: Random) -> bytes:
    """A picture of some kind and format, mostly spoilt."""
    size = chance.choice(((32, 32), (1, 1), (1, 400), (333, 7), (64, 64)))
    mode = chance.choice(("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "F"))
    drawn = Image.frombytes("L", size, chance.randbytes(size[0] * size[1])).convert("RGB")
    told = chance.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"))
    file = io.BytesIO()
    try:
        drawn.convert(mode).save(file, told)
    except (OSError, ValueError):
        drawn.save(file, told)
    return file.getvalue() if chance.random() < 0.1 else any_bytes(chance, file.getvalue())


def template(chance: Random, text: str) -> bytes:
    """A chat template with parts lost, doubled or replaced."""
    if chance.random() < 0.5:
        return any_bytes(chance, text.encode())
    words = text.split(" ")
    for _ in range(chance.choice((1, 2, 4))):
        wrong = (
            "{%",
            "%}",
            "{{",
            "messages",
            "{{ messages.x.y }}",
            "{{ 1 / 0 }}",
            "{% for a in 3 %}",
            "{{ ''|x }}",
            "",
        )
        words[chance.randrange(len(words))] = chance.choice(wrong)
    return " ".join(words).encode()


def command(chance: Random, models: list[str], files: list[str], news: list[str]) -> list[str]:
    """Words for `quota`: commands and options that exist, with values of every kind."""
    values = [
        "0",
        "1",
        "2",
        "-1",
        "nan",
        "inf",
        "1e9",
        "0.5",
        "x",
        "",
        "9" * 400,
        "\udcff",
        "reference",
        "paper",
        "quota",
        "cpu",
    ]
    name = chance.choice(
        ("run", "run", "eval", "inspect", "inspect", "explain", "compress", "doctor", "compres", "", "--help")
    )
    anything = [*models, *files, *values]
    right: dict[str, list[list[str]]] = {
        "run": [models, ["what"], ["--image"], files],
        "eval": [models, ["--suite"], files, ["--limit"], ["1"]],
        "inspect": [[*models, *files]],
        "explain": [models, ["--image"], files, ["--question"], ["what"], ["--output"], news],
        "compress": [models, news, ["--calibration"], files, ["--samples"], ["1"]],
    }
    words = [name, *(chance.choice(places) for places in right.get(name, []))]
    options = (
        "--image",
        "--suite",
        "--limit",
        "--batch-size",
        "--keep",
        "--compute",
        "--milliseconds",
        "--seed",
        "--samples",
        "--json",
        "--backend",
        "--transforms",
        "--method",
        "--verify",
        "--baseline",
        "--question",
        "--nothing",
    )
    for _ in range(chance.choice((0, 1, 1, 2))):
        option = chance.choice(options)
        # A pipe to write to would wait for its reader, as it should.
        words += [option, chance.choice(news if option == "--json" else anything)]
    if chance.random() < 0.3 and len(words) > 1:
        words[chance.randrange(1, len(words))] = chance.choice(anything)
    if chance.random() < 0.15:
        del words[chance.randrange(len(words))]
    return words
