"""`quota app` in a process of its own, and a browser without a window to look at its page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = (
    next((f"{name} is not installed; `make test-app`" for name in ("gradio", "playwright") if not find_spec(name)), "")
    or ("" if CHROMIUM else "there is no chromium; apt-get install chromium")
)  # fmt: skip
"""Why nothing can be looked at; empty if it can."""


@contextmanager
def served_page(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Address and process of a page that asks the model in `folder`."""
    command = [sys.executable, "-m", "quota", "app", str(folder), "--port", "0"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert running.stdout is not None
    try:
        said = ""
        while not (found := re.search(r"http://\S+", said)):
            line = running.stdout.readline()
            assert line, said
            said += line
        yield found[0], running
    finally:
        running.kill()
        running.wait()


@contextmanager
def browser() -> Iterator[Any]:
    """A browser; its pages are closed with it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Page:
    """A page of the app as somebody uses it."""

    def __init__(self, browser: Any, address: str, width: int = 1280, scheme: str = "light", **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))
        self.page.goto(address)
        self.page.wait_for_selector("#quota-picture input[type=file]", state="attached")

    def choose(self, file: Path) -> None:
        """Choose a picture, in place of an earlier one."""
        if (clear := self.page.locator("#quota-picture button[aria-label=Clear]")).count():
            clear.click()
        self.page.set_input_files("#quota-picture input[type=file]", file)

    def chosen(self) -> None:
        """Wait until the picture is shown."""
        self.page.wait_for_selector("#quota-picture img")

    def ask(self, question: str) -> None:
        self.page.fill("#quota-ask textarea", question)
        self.page.click("#quota-send")

    def answered(self, question: str) -> str:
        """Wait for the whole answer to the question, and what was kept; its text."""
        asked = self.page.locator("#quota-answer-card", has=self.page.locator(".quota-question", has_text=question))
        asked.locator(".quota-answer:not(:has(.quota-caret))").wait_for(timeout=60_000)
        self.page.wait_for_selector("#quota-kept figure", timeout=60_000)
        return self.page.inner_text(".quota-answer")

    def compared(self) -> str:
        """Wait for the answer that every token gives; it and the verdict."""
        self.page.wait_for_selector(".quota-same, .quota-other", timeout=60_000)
        return self.page.inner_text(".quota-everything dd")

    def message(self) -> str:
        """Wait for a line on the page."""
        return self.page.wait_for_selector("#quota-message p", timeout=30_000).inner_text()

    def close(self) -> None:
        self.context.close()
