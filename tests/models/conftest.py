"""Prints which family passed in which mode, behind the results of the families' tests."""

from __future__ import annotations

import re
from collections import Counter

import pytest

_RUN = re.compile(r"test_families\w*\.py::test_(\w+)\[(\w+ForConditionalGeneration)")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed: Counter[tuple[str, str]] = Counter()
    run: Counter[tuple[str, str]] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            found = _RUN.search(report.nodeid)
            if found and report.when == "call":
                run[found.groups()] += 1
                passed[found.groups()] += outcome == "passed"
    tests, families = (list(dict.fromkeys(names)) for names in ([key[0] for key in run], sorted(key[1] for key in run)))
    if not families:
        return
    terminalreporter.section("families: passed of the cases run")
    width = max(map(len, families)) - len("ForConditionalGeneration")
    for number, test in enumerate(tests):
        terminalreporter.write_line(f"{chr(97 + number)}  {test.replace('_', ' ')}")
    terminalreporter.write_line(" " * width + "".join(f"{chr(97 + number):>7}" for number in range(len(tests))))
    for name in families:
        cells = (f"{passed[test, name]}/{run[test, name]}" if run[test, name] else "-" for test in tests)
        title = name.removesuffix("ForConditionalGeneration")
        terminalreporter.write_line(f"{title:<{width}}" + "".join(f"{cell:>7}" for cell in cells))
