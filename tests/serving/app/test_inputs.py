"""What clients send by hand: no file of the machine is read, no address fetched. `make test-app` runs this."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from quota.checkpoint.named import load_model
from quota.errors import QuotaError
from quota.serving.app.inputs import check_percent, check_picture, check_text

META = {"_type": "gradio.FileData"}
ADDRESS = "http://example.com/a.png"
LOOK, ASK = 0, 1
"""Numbers of the page's events."""


def named(path: Any, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": META, **more}


def test_a_picture_is_a_file_that_was_uploaded(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    (uploads / "folder").mkdir(parents=True)
    for file in (uploads / "a.png", tmp_path / "secret.png"):
        file.write_bytes(b"")
    (uploads / "link.png").symlink_to(tmp_path / "secret.png")
    check_picture(None, uploads)
    check_picture(named(str(uploads / "a.png")), uploads)
    outside = [tmp_path / "secret.png", uploads / "../secret.png", uploads / "link.png", uploads / "no", uploads]
    strange = ["a.png", ADDRESS, "\0", "a" * 5000, 3, None]
    for path in [*map(str, outside), str(uploads / "folder"), *strange]:
        with pytest.raises(QuotaError, match="no file that was uploaded"):
            check_picture(named(path), uploads)
    for value in ({"path": str(uploads / "a.png")}, str(uploads / "a.png"), [named(str(uploads / "a.png"))]):
        with pytest.raises(QuotaError, match="no file that was uploaded"):
            check_picture(value, uploads)


def test_a_question_is_text_and_a_budget_a_number() -> None:
    check_text("what")
    check_percent(30)
    for value in (None, 3, named("/etc/hostname"), [named("/etc/hostname")]):
        with pytest.raises(QuotaError, match="no text"):
            check_text(value)
    for value in (None, "30", float("nan"), named("/etc/hostname")):
        with pytest.raises(QuotaError, match="no number"):
            check_percent(value)


@pytest.fixture(scope="module")
def client(quota_folder: Path) -> Iterator[Any]:
    """Of the page's application, in this process, with a folder of its own for uploads."""
    pytest.importorskip("gradio", reason="run by `make test-app`")
    from starlette.testclient import TestClient  # pyright: ignore[reportMissingImports]

    from quota.serving.app.conversation import Conversation
    from quota.serving.app.launch import application

    with tempfile.TemporaryDirectory() as uploads, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", uploads)
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        model, processor, label = load_model(str(quota_folder))
        app, _ = application(Conversation(model, processor), label)
        with TestClient(app) as running:
            yield running


@pytest.fixture(autouse=True)
def fetched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that the server would have fetched."""
    found: list[str] = []
    if "client" in request.fixturenames:
        from gradio import processing_utils, routes  # pyright: ignore[reportMissingImports]

        async def fetch(address: str, *_: Any, **__: Any) -> None:
            found.append(address)

        monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
        monkeypatch.setattr(routes, "secure_url_stream_response", fetch)
    return found


def event(client: Any, number: int, data: list[Any], session: str = "s") -> tuple[bool, str]:
    """Whether an event came to its end, and what it said last."""
    body = {"fn_index": number, "data": data, "session_hash": session}
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200
    lines = client.get("/gradio_api/queue/data", params={"session_hash": session}).text.splitlines()
    messages = [json.loads(line[5:]) for line in lines if line.startswith("data:")]
    [last] = [message for message in messages if message["msg"] == "process_completed"]
    return last["success"], json.dumps(last["output"])


def upload(client: Any, name: str, data: bytes) -> str:
    return client.post("/gradio_api/upload", files={"files": (name, data)}).json()[0]


def png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(data, "PNG")
    return data.getvalue()


def test_a_file_that_was_not_uploaded_is_neither_shown_nor_served(
    client: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    for number, data in (
        (LOOK, [named(str(secret))]),
        (LOOK, [named(str(secret), is_stream=True)]),
        (LOOK, [named(str(tmp_path))]),
        (LOOK, [named(str(uploads / "nothing.png"))]),
        (LOOK, [named(str(uploads))]),
        (ASK, [named(str(secret)), 50]),
        (ASK, [[named(str(secret))], 50]),
        (ASK, ["what", named(str(secret))]),
    ):
        done, said = event(client, number, data)
        assert not done and any(words in said for words in ("uploaded here", "no text", "no number"))
    assert not list(uploads.rglob("secret*"))
    assert client.get(f"/gradio_api/file={secret}").status_code == 403
    assert "Traceback" not in "".join(capfd.readouterr())


def test_gradio_itself_asks_where_a_file_comes_from(client: Any) -> None:
    from gradio import processing_utils  # pyright: ignore[reportMissingImports]
    from gradio.context import LocalContext  # pyright: ignore[reportMissingImports]

    token = LocalContext.blocks.set(client.app._app.routes[-1].app.get_blocks())
    try:
        with pytest.raises(ValueError, match="not uploaded"):
            processing_utils._check_allowed("/etc/hostname", check_in_upload_folder=True)
    finally:
        LocalContext.blocks.reset(token)


def test_no_address_is_fetched(client: Any, fetched: list[str]) -> None:
    assert not event(client, LOOK, [named(ADDRESS)])[0]
    assert not event(client, ASK, [named(ADDRESS), 50])[0]
    for place in ("file=", "file/", "file=/", "proxy="):
        assert client.get(f"/gradio_api/{place}{ADDRESS}").status_code == 403
    assert not fetched


def test_what_was_uploaded_is_asked_about(client: Any) -> None:
    file = upload(client, "a.png", png())
    done, said = event(client, LOOK, [named(file)], "asks")
    assert done and "There is no" not in said
    done, said = event(client, ASK, ["what colour is the ball", 50], "asks")
    assert done and "quota-problem" not in said and "Kept tokens" in said


def test_a_question_without_end_is_refused_before_it_becomes_tokens(client: Any) -> None:
    event(client, LOOK, [named(upload(client, "a.png", png()))], "long")
    done, said = event(client, ASK, ["what " * 1_000_000, 50], "long")
    assert done and "the text has 5,000,000 characters, more than fit in the 256 tokens" in said


def test_a_script_that_was_uploaded_is_not_run(client: Any) -> None:
    file = upload(client, "a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    event(client, LOOK, [named(file)])
    assert "sandbox" in client.get(f"/gradio_api/file={file}").headers["content-security-policy"]
