"""Options of transformers' server that `quota serve` refuses, before anything is loaded, and what it gives itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quota.cli import main
from quota.errors import QuotaError
from quota.serving import serve as serving
from quota.serving.serve import listening, serve


@pytest.mark.parametrize(
    "option",
    [
        "--continuous-batching",
        "--cb-block-size=32",
        "--compile",
        "--quantization",
        "--trust-remote-code",
        "--non-blocking",
    ],
)
def test_what_would_change_the_checkpoint_is_refused_in_one_line(option: str, capsys) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["serve", "nothing-here/", option])
    assert raised.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"quota: {option} is refused: ")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What transformers' server is made with; it goes no further."""
    pytest.importorskip("fastapi", reason="run by `make test-serve`")
    found: list[dict[str, Any]] = []

    def make(server: Any) -> Any:
        def unstarted(**given: Any) -> None:
            found.append(given)
            raise QuotaError("made")

        return unstarted

    monkeypatch.setattr(serving, "_unstarted", make)
    yield found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prot", "3"], "No such option: --prot"),
        (["--port", "many"], "'--port'"),
        (["--port"], "'--port' requires an argument"),
        (["--port", "99999"], "--port must be from 0 to 65535, got 99999"),
        (["--reasoning", "maybe"], "'maybe' is not one of"),
        (["--log-level", "loud"], "--log-level must be one of"),
        (["--chat-template-kwargs", "{"], "--chat-template-kwargs is not valid JSON"),
        (["--chat-template-kwargs", "[]"], "--chat-template-kwargs is no JSON object"),
        (["--device", "tpu"], "there is no device 'tpu' here"),
        (["another"], "unexpected extra argument"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_mistaken_option_is_one_line_that_does_not_blame_the_checkpoint(
    options: list[str], message: str, made: list[Any], quota_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["serve", str(quota_folder), "--port", "0", *options])
    assert raised.value.code == 1 and not made
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("quota: ") and message in line and "cannot load" not in line


def test_it_computes_on_the_cpu_unless_told_otherwise(made: list[Any], quota_folder: Path) -> None:
    for options in ([], ["--device", "auto"]):
        with pytest.raises(QuotaError, match="made"):
            serve(str(quota_folder), ["--port", "0", *options])
    assert [given["device"] for given in made] == ["cpu", "auto"]


def test_an_address_that_is_taken_is_one_line() -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(QuotaError, match=f"cannot listen on localhost:{port}: Address already in use"):  # noqa: SIM117
            with listening("localhost", port):
                pass
    with listening("localhost", port) as again:
        assert again.getsockname()[1] == port
