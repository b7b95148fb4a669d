"""What somebody wants to spend."""

from __future__ import annotations

from typing import Any

import pytest

from quota.allocation.budget import DEFAULT_KEEP, Budget
from quota.errors import QuotaError


@pytest.mark.parametrize(
    ("given", "final", "limit"),
    [
        ({}, DEFAULT_KEEP, None),
        ({"keep": 0.2}, 0.2, None),
        ({"compute": 0.5}, None, "compute"),
        ({"keep": 0.2, "kv_bytes": 1000}, 0.2, "kv_bytes"),
        ({"milliseconds": 10.0}, None, "milliseconds"),
    ],
)
def test_the_end_is_open_where_something_else_limits(given: dict[str, float], final: Any, limit: Any) -> None:
    budget = Budget(**given)
    assert (budget.final, budget.limit) == (final, limit)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": 0}, "keep must be"),
        ({"compute": 1.5}, "compute must be above 0 and at most 1"),
        ({"milliseconds": 0}, "milliseconds must be above 0"),
        ({"kv_bytes": float("nan")}, "kv_bytes must be above 0"),
        ({"compute": 0.5, "kv_bytes": 10}, "compute and kv_bytes are 2 budgets; give one of them"),
    ],
)
def test_what_nobody_can_spend_is_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(QuotaError, match=message):
        Budget(**given)
