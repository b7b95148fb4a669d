"""vLLM's OpenAI server, started as a user would, on a checkpoint of ours: pictures through the `openai` client."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from support.engines import suite

from quota.checkpoint.named import load_model, load_processor
from quota.prompts import answer, prompt_text
from quota.samples import Sample

pytest.importorskip("vllm", reason="run by `make test-vllm`")

PATIENCE = 600
"""Seconds to start in."""


@pytest.fixture(scope="module")
def client(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of a server on a free port."""
    from openai import OpenAI

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(reference_folder)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "quota", "--dtype", "float32"]
    options += ["--max-model-len", "512", "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(64 << 20)]
    # Workers in processes of their own, as they are by default.
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file:
        server = subprocess.Popen([*command, *options], env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(server, f"{address}/health", log)
        yield OpenAI(base_url=f"{address}/v1", api_key="none", timeout=PATIENCE)
    finally:
        server.terminate()
        server.wait(PATIENCE)


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    for _ in range(PATIENCE):
        if server.poll() is not None:
            break
        try:
            urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")


def _messages(sample: Sample) -> list[dict[str, Any]]:
    file = io.BytesIO()
    sample.pictures()[0].save(file, "PNG")
    picture = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": sample.question}]
    return [{"role": "user", "content": content}]


def _ask(client: Any, sample: Sample, stream: bool) -> str:
    found = client.chat.completions.create(
        model="quota", messages=_messages(sample), temperature=0, max_tokens=24, stream=stream
    )
    if not stream:
        return found.choices[0].message.content.strip()
    return "".join(piece.choices[0].delta.content or "" for piece in found if piece.choices).strip()


def test_pictures_half_of_them_streamed(client: Any, reference_folder: Path) -> None:
    model, processor, _ = load_model(str(reference_folder))
    samples = suite(12)
    answers = [_ask(client, sample, stream=number % 2 == 1) for number, sample in enumerate(samples)]
    assert answers == [answer(model, processor, sample) for sample in samples]


def test_the_prompt_is_that_of_quota_run(client: Any, reference_folder: Path) -> None:
    processor, [sample] = load_processor(reference_folder), suite(1)
    body = json.dumps({"model": "quota", "messages": _messages(sample)}).encode()
    root = str(client.base_url).removesuffix("/v1/")
    asked = Request(f"{root}/tokenize", data=body, headers={"Content-Type": "application/json"})
    tokens = json.load(urlopen(asked, timeout=PATIENCE))["tokens"]
    picture = processor.image_token_id
    # However many places a picture has by then.
    once = [one for one, before in zip(tokens, [None, *tokens], strict=False) if not one == before == picture]
    assert once == processor.tokenizer(prompt_text(processor, sample), add_special_tokens=False)["input_ids"]


def test_the_server_says_how_it_is(client: Any) -> None:
    root = str(client.base_url).removesuffix("/v1/")
    assert urlopen(f"{root}/health").status == 200
    assert b"vllm:kv_cache_usage_perc" in urlopen(f"{root}/metrics").read()
