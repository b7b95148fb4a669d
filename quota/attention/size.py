"""What a KV cache takes in memory.

A cache that is not quantised counts two bytes a number, whatever type it was computed in: it is compared as the 16-bit
cache that one would deploy.
"""

from __future__ import annotations

from typing import Any

from quota.attention.cache import QuantizedLayer
from quota.attention.slots import SlotLayer

_BYTES_OF_FLOAT = 2


def cache_bytes(cache: Any) -> int:
    """Bytes that a KV cache holds; keys and values that are not quantised count two bytes each."""
    return sum(_layer_bytes(layer) for layer in cache.layers)


def token_bytes(cache: Any) -> float:
    """Bytes that a token takes in all layers together of a filled cache of ours, for as long as they hold it."""
    return sum(_slots_bytes(layer) / layer.held for layer in cache.layers)


def lasting_bytes(cache: Any) -> int:
    """Those of `cache_bytes` that stay when tokens are dropped: what goes by the tokens seen."""
    return cache_bytes(cache) - sum(map(_slots_bytes, cache.layers))


def _layer_bytes(layer: Any) -> int:
    return layer.nbytes() if isinstance(layer, QuantizedLayer) else _slots_bytes(layer)


def _slots_bytes(layer: Any) -> int:
    if isinstance(layer, QuantizedLayer):
        # Without its share of the table of turns.
        return SlotLayer.nbytes(layer)
    numbers = layer.keys.numel() + layer.values.numel()
    return _BYTES_OF_FLOAT * numbers + (layer.positions.nbytes if isinstance(layer, SlotLayer) else 0)
