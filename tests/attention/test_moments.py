"""Moments of keys and queries, against their definitions over all tokens at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quota.attention.moments import KeyMoments
from quota.attention.turns import turn_table, turned

HEADS, GROUPS, WIDTH = 4, 2, 6


def calls(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(1 + number % 2, 3 + number) for number in range(count)]
    return [
        (
            torch.randn(batch, HEADS, tokens, WIDTH, generator=generator),
            3 + torch.randn(batch, GROUPS, tokens, WIDTH, generator=generator),
        )
        for batch, tokens in sizes
    ]


def naive(given: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean key, covariance of keys and second moment of the queries that read them, of each key head."""
    keys = torch.cat([key.transpose(0, 1).flatten(1, 2) for _, key in given], dim=1).double()
    shared = HEADS // GROUPS
    queries = [
        torch.cat([query[:, head].flatten(0, 1) for query, _ in given for head in range(shared * g, shared * (g + 1))])
        for g in range(GROUPS)
    ]
    mean = keys.mean(dim=1)
    centred = keys - mean[:, None]
    covariance = centred.transpose(1, 2) @ centred / keys.shape[1]
    tokens = keys.shape[1]
    return mean, covariance, torch.stack([q.double().T @ q.double() / tokens for q in queries])


def test_they_are_those_of_all_tokens(monkeypatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(
        "quota.attention.moments.KeyTransform.from_moments", lambda *moments: seen.extend(moments[:3]), raising=True
    )
    moments, given = KeyMoments(), calls(5)
    for query, key in given:
        moments.add(query, key)
    moments.transform()
    for found, expected in zip(seen, naive(given), strict=True):
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


def test_centres_that_turn_are_no_part_of_them() -> None:
    center, angle = 9 * torch.randn(GROUPS, WIDTH, generator=torch.Generator().manual_seed(1)), torch.arange(24.0)
    tables = [(angle[: key.shape[2], None] * torch.ones(1, 1, WIDTH)) for _, key in calls(5)]
    plain, turning = KeyMoments(), KeyMoments(center)
    for (query, key), angles in zip(calls(5), tables, strict=True):
        plain.add(query, key)
        embeddings = angles.cos(), angles.sin()
        turning.turn(nn.Module(), (), {"position_embeddings": embeddings})
        turning.add(query, key + turned(center, turn_table(*embeddings)))
    expected, found = plain.transform(), turning.transform()
    assert expected is not None and found is not None and found.turning is center
    torch.testing.assert_close(found.center, expected.center, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found.matrix, expected.matrix, rtol=1e-2, atol=1e-3)


def test_the_order_of_calls_changes_no_bit() -> None:
    given, transforms = calls(6), []
    for order in ([0, 1, 2, 3, 4, 5], [4, 0, 5, 3, 1, 2]):
        moments = KeyMoments()
        for number in order:
            moments.add(*given[number])
        transforms.append(moments.transform())
    first, second = transforms
    assert first is not None and second is not None
    assert torch.equal(first.center, second.center) and torch.equal(first.matrix, second.matrix)


def test_without_a_call_there_is_nothing_to_transform() -> None:
    assert KeyMoments().transform() is None
