"""Options of transformers' server that `quota serve` refuses, before anything is loaded."""

from __future__ import annotations

import pytest

from quota.cli import main


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
