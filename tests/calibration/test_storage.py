"""What calibration asks of a storage, in which order."""

from __future__ import annotations

from collections.abc import Mapping

from support.tiny_llava import make_model, make_samples, processor
from torch import nn

from quota.calibration.storage import Storage
from quota.calibration.sweep import Sweep
from quota.models import family
from quota.progress import Meter
from quota.prompts import build_inputs
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme


class Noting(Storage):
    """Notes what it is asked, and of which block; the block is as it was when it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, nn.Module]] = []
        self.rounded: dict[nn.Module, bool] = {}

    def fetch(self, block: nn.Module) -> None:
        self.asked.append(("fetch", block))

    def restore(self, block: nn.Module, linears: Mapping[str, nn.Linear]) -> bool:
        self.asked.append(("restore", block))
        assert set(linears.values()) <= set(block.modules())
        return False

    def keep(self, block: nn.Module) -> None:
        self.asked.append(("keep", block))
        self.rounded[block] = any(isinstance(inside, W4A4Linear) for inside in block.modules())

    def release(self, block: nn.Module) -> None:
        self.asked.append(("release", block))


def swept(scheme: QuantizationScheme) -> tuple[Noting, list[nn.Module], list[nn.Module]]:
    model, storage = make_model(), Noting()
    inputs = [build_inputs(processor(), [sample]) for sample in make_samples(2)]
    rooms = family(model)
    front, layers = [*rooms.tower_blocks, *rooms.projectors], list(rooms.decoder_layers)
    Sweep(model, inputs, scheme, storage, Meter()).run()
    return storage, front, layers


def test_a_block_is_fetched_finished_and_released_and_the_front_stays_until_the_decoder_is_entered() -> None:
    storage, front, layers = swept(QuantizationScheme())
    expected = [("fetch", block) for block in front]
    expected += [(call, block) for block in front for call in ("restore", "keep")]
    expected += [("release", block) for block in front]
    expected += [(call, layer) for layer in layers for call in ("fetch", "restore", "keep", "release")]
    assert storage.asked == expected
    assert all(storage.rounded.values())


def test_what_is_not_quantized_is_kept_as_it_is() -> None:
    storage, front, layers = swept(QuantizationScheme(modules=("decoder",)))
    assert [storage.rounded[block] for block in front] == [False] * len(front)
    assert [storage.rounded[layer] for layer in layers] == [True] * len(layers)
    assert ("restore", front[0]) not in storage.asked
