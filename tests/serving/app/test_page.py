"""The page as people use it, in a browser without a window: `make test-app`."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.paged import MISSING, Page, browser, served_page
from support.tiny_llava import make_samples

from quota.checkpoint.named import load_model
from quota.prompts import answer
from quota.samples import Sample
from quota.serving.requests import DEFAULT_TOKENS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

AXE = Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js"
QUESTION = "what colour is the ball"


@pytest.fixture(scope="module")
def served(quota_folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with served_page(quota_folder) as running:
        yield running


@pytest.fixture(scope="module")
def running_browser() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture
def opened(served: tuple[str, subprocess.Popen[str]], running_browser: Any) -> Iterator[Callable[..., Page]]:
    """Opens pages, and closes them. Nothing may have been asked of another host, and no script of ours have failed."""
    pages: list[Page] = []

    def make(**options: Any) -> Page:
        pages.append(Page(running_browser, served[0], **options))
        return pages[-1]

    yield make
    for page in pages:
        assert not page.faults
        assert {url.split("/")[2] for url in page.requests if url.startswith("http")} == {served[0].split("/")[2]}
        page.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "picture.png"
    make_samples(1, seed=5)[0].pictures()[0].save(file)
    return file


def resident(process: subprocess.Popen[str]) -> int:
    """Bytes of memory."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def move(page: Page, percent: int) -> None:
    """The slider, as somebody does who writes the number."""
    number = page.page.locator("#quota-budget input[type=number]")
    number.fill(str(percent))
    number.press("Enter")


def test_a_picture_is_asked_about_twice_and_under_another_budget(
    opened: Callable[..., Page], picture: Path, quota_folder: Path
) -> None:
    model, processor, _ = load_model(str(quota_folder))
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in quota_folder.iterdir()}
    page = opened()
    page.choose(picture)
    page.chosen()
    page.ask(QUESTION)
    # As far as the positions of the tiny model go.
    said = page.answered(QUESTION)
    assert said and answer(model, processor, Sample(picture, QUESTION), DEFAULT_TOKENS).startswith(said)
    page.compared()
    figures = page.page.inner_text(".quota-figures")
    assert all(word in figures for word in ("time to first token", "tokens a second", "KB", "every token"))

    panels = page.page.locator("#quota-kept figure")
    assert panels.count() == 1 + len(model.quota_pruner.recipe.layers)
    recipe = page.page.inner_text("#quota-recipe")
    move(page, 100)
    page.page.locator("#quota-recipe", has_text="none are dropped").wait_for()
    page.page.locator("#quota-kept figcaption", has_text="after").nth(1).wait_for(state="detached")
    page.page.locator(".quota-same").wait_for()
    assert page.answered(QUESTION) == page.compared().removesuffix("the same").strip()

    handle = page.page.locator("#quota-budget input[type=range]")
    handle.focus()
    for _ in range(40):
        handle.press("ArrowLeft")
    page.page.locator("#quota-recipe", has_text="Visual tokens kept").wait_for()
    assert page.page.inner_text("#quota-recipe") != recipe

    page.ask("how many cats")
    page.answered("how many cats")
    page.compared()
    assert before == {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in quota_folder.iterdir()}


def test_a_picture_is_pasted_also_over_another(opened: Callable[..., Page], picture: Path) -> None:
    page = opened()
    for _ in range(2):
        with page.page.expect_response("**/upload?*"):
            page.page.evaluate(
                """async (bytes) => {
                    const files = new DataTransfer();
                    files.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
                    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: files, bubbles: true }));
                }""",
                list(picture.read_bytes()),
            )
        page.chosen()
    page.ask(QUESTION)
    page.answered(QUESTION)


def test_markup_stays_text(opened: Callable[..., Page], picture: Path) -> None:
    page = opened()
    page.choose(picture)
    page.chosen()
    question = "<img src=x onerror=alert(1)> ${alert(2)} {{3}} <script>alert(4)</script> &lt;"
    page.ask(question)
    page.answered("onerror")
    assert page.page.inner_text(".quota-question") == question
    assert not page.page.locator(".quota-question *").count()


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a kilobyte or so."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(90_000))) + chunk(b"IEND", b"")
    )


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(2)</script></svg>'
HOSTILE = {
    "text.png": (lambda: b"not a picture", "no picture that is read here"),
    "nothing.png": (lambda: b"", "the file is empty"),
    "broken.png": (lambda: encoded(Image.effect_noise((99, 99), 50), "PNG")[:2000], "cannot read the image of yours"),
    "bomb.png": (bomb, "pixels"),
    "huge.png": (lambda: encoded(Image.new("1", (6000, 5000)), "PNG"), "30,000,000 pixels, at most 25,000,000"),
    "script.svg": (lambda: SVG, "no picture that is read here"),
    "script.png": (lambda: SVG, "no picture that is read here"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_line_and_the_page_goes_on(
    name: str, opened: Callable[..., Page], picture: Path, tmp_path: Path
) -> None:
    make, words = HOSTILE[name]
    file = tmp_path / name
    file.write_bytes(make())
    page = opened()
    page.choose(file)
    message = page.message()
    assert words in message and "\n" not in message and "Traceback" not in message and str(tmp_path) not in message
    page.ask(QUESTION)
    page.page.locator("#quota-message", has_text="There is no picture").wait_for()
    page.choose(picture)
    page.chosen()
    page.ask(QUESTION)
    page.answered(QUESTION)


def test_an_animated_picture_is_its_first_frame(opened: Callable[..., Page], tmp_path: Path) -> None:
    file = tmp_path / "two.gif"
    Image.new("RGB", (40, 40), "red").save(file, save_all=True, append_images=[Image.new("RGB", (40, 40), "blue")])
    page = opened()
    page.choose(file)
    assert page.message() == "The file holds several pictures; the first is asked about."
    page.ask(QUESTION)
    page.answered(QUESTION)


def test_questions_that_cannot_be_asked(opened: Callable[..., Page], picture: Path) -> None:
    page = opened()
    page.choose(picture)
    page.chosen()
    for question, words in {
        "   ": "There is no question",
        "what " * 250: "tokens, the model knows",
        "what " * 20_000: "more than fit in the 256 tokens",
        "what <image> is": "stands for a picture",
    }.items():
        page.ask(question)
        page.page.locator("#quota-message", has_text=words).wait_for(timeout=60_000)
    page.ask(QUESTION)
    page.answered(QUESTION)


def test_two_browsers_are_answered_together_each_with_its_own_budget(
    opened: Callable[..., Page], picture: Path
) -> None:
    pages = [opened(), opened()]
    for page, percent in zip(pages, (100, 40), strict=True):
        page.choose(picture)
        page.chosen()
        move(page, percent)
        page.ask(QUESTION)
        page.answered(QUESTION)
        page.compared()
    expected = [page.page.inner_text(".quota-answer") for page in pages]
    captions = [page.page.inner_text("#quota-kept .quota-panels") for page in pages]
    assert captions[0] != captions[1]
    for page in pages:
        page.ask(QUESTION)
    assert [page.answered(QUESTION) for page in pages] == expected
    assert [page.page.inner_text("#quota-kept .quota-panels") for page in pages] == captions


def test_a_closed_page_is_forgotten(
    opened: Callable[..., Page],
    served: tuple[str, subprocess.Popen[str]],
    running_browser: Any,
    tmp_path: Path,
) -> None:
    """Pages with 15 MB each, closed while they are answered: of all their files a third does not stay."""
    file = tmp_path / "noise.png"
    Image.effect_noise((3900, 3900), 90).save(file)
    assert file.stat().st_size > 14_000_000

    def visit() -> None:
        page = Page(running_browser, served[0])
        page.choose(file)
        page.chosen()
        page.ask(QUESTION)
        page.page.wait_for_selector(".quota-question")
        page.close()

    for _ in range(3):
        visit()
    time.sleep(4)
    before = resident(served[1])
    for _ in range(12):
        visit()
    time.sleep(4)
    assert resident(served[1]) - before < 12 * file.stat().st_size / 3


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed; `make test-app` brings it where npm is")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_of_accessibility_is_ours(scheme: str, opened: Callable[..., Page], picture: Path) -> None:
    page = opened(scheme=scheme, bypass_csp=True)
    page.choose(picture)
    page.chosen()
    page.ask(QUESTION)
    page.answered(QUESTION)
    page.compared()
    page.page.add_script_tag(path=AXE)
    found = page.page.evaluate("axe.run().then((result) => result.violations)")
    serious = [
        (fault["id"], node["html"][:300])
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
    assert not serious


def test_it_ends_in_order(quota_folder: Path, running_browser: Any) -> None:
    with served_page(quota_folder) as (address, process):
        page = Page(running_browser, address)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "Traceback" not in process.communicate()[0]
        page.close()
