"""`quota serve` in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Served = tuple[str, subprocess.Popen[str]]
"""Address and process of a server."""


@contextmanager
def served_folder(folder: Path) -> Iterator[Served]:
    """A server of the model in `folder`, killed at the end if it has not ended."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "quota", "serve", str(folder), "--port", str(port)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address = f"http://localhost:{port}"
    try:
        while True:
            assert running.poll() is None, running.communicate()[0]
            try:
                assert fetch(f"{address}/health") == '{"status":"ok"}'
                break
            except OSError:
                time.sleep(0.2)
        yield address, running
    finally:
        running.kill()
        running.wait()


def fetch(address: str | urllib.request.Request) -> str:
    """What a server answers."""
    with urllib.request.urlopen(address) as reply:
        return reply.read().decode()
