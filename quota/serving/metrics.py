"""What a server has done so far, in the text format of Prometheus."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

_PAGES = Path("/proc/self/statm")


class Metrics:
    """Counts of one server, from its start."""

    def __init__(self) -> None:
        self.answered: Counter[int] = Counter()
        """Chat requests by the HTTP status of their answer."""
        self.left = 0
        """Of which the client did not wait for the end."""
        self.running = 0
        self.prompt_tokens = 0
        self.answer_tokens = 0
        self.first_tokens = 0
        self.first_token_seconds = 0.0

    def first_token(self, seconds: float) -> None:
        """An answer has begun so long after its request was read."""
        self.first_tokens += 1
        self.first_token_seconds += seconds

    def text(self) -> str:
        lines = [
            "# TYPE quota_requests_total counter",
            *(f'quota_requests_total{{status="{code}"}} {count}' for code, count in sorted(self.answered.items())),
            "# TYPE quota_requests_left_total counter",
            f"quota_requests_left_total {self.left}",
            "# TYPE quota_requests_running gauge",
            f"quota_requests_running {self.running}",
            "# TYPE quota_prompt_tokens_total counter",
            f"quota_prompt_tokens_total {self.prompt_tokens}",
            "# TYPE quota_answer_tokens_total counter",
            f"quota_answer_tokens_total {self.answer_tokens}",
            "# TYPE quota_time_to_first_token_seconds summary",
            f"quota_time_to_first_token_seconds_count {self.first_tokens}",
            f"quota_time_to_first_token_seconds_sum {self.first_token_seconds:.6f}",
        ]
        if (resident := _resident_bytes()) is not None:
            lines += ["# TYPE process_resident_memory_bytes gauge", f"process_resident_memory_bytes {resident}"]
        return "\n".join(lines) + "\n"


def _resident_bytes() -> int | None:
    """Memory of this process; None where the system does not tell this way."""
    if not _PAGES.is_file():
        return None
    return int(_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
