"""Calibrating a model more than once: what calibration leads to depends on the graph that it ran in.

    unpruned   one sweep over all visual tokens; the recipe is made from its curves
    pruned     then a second sweep, in the graph that this recipe prunes: the layers are quantised for the tokens that
               they will read. The recipe stays
    joint      and so on: every sweep runs under the recipe of the one before it, and gives the next one, until a
               recipe comes out as it went in

Every sweep starts from the full-precision weights, of which a copy is kept meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from quota.attention.keys import remove_key_transforms
from quota.calibration.sweep import Calibration
from quota.errors import QuotaError
from quota.models import family
from quota.pruning.recipe import PruningRecipe

Graph = Literal["unpruned", "pruned", "joint"]
GRAPHS: tuple[Graph, ...] = ("unpruned", "pruned", "joint")
ROUNDS = 4
"""Sweeps at most, the first one included."""


@dataclass(frozen=True)
class Calibrated:
    """The last sweep, and the recipe that the model is to run."""

    calibration: Calibration
    recipe: PruningRecipe
    sweeps: int
    settled: bool
    """Whether the recipe is the one that the last sweep ran under and, for "joint", would give again."""


def calibrate_in(
    graph: Graph,
    model: Any,
    sweep: Callable[[PruningRecipe | None], Calibration],
    make_recipe: Callable[[Calibration], PruningRecipe],
    rounds: int = ROUNDS,
) -> Calibrated:
    """Calibrate `model` in the given graph.

    `sweep(recipe)` quantises it in place, in the graph of that recipe; `make_recipe` turns what it found into the
    next one. Raises QuotaError for fewer than two rounds.
    """
    if rounds < 2:
        raise QuotaError(f"{rounds} rounds cannot show that a recipe no longer changes; allow at least 2")
    graph = as_graph(graph)
    original = None if graph == "unpruned" else Original(model)
    calibration = sweep(None)
    recipe, sweeps, settled = make_recipe(calibration), 1, graph == "unpruned"
    while original is not None and not settled and sweeps < rounds:
        original.restore(model)
        calibration, sweeps = sweep(recipe), sweeps + 1
        if graph == "pruned":
            break
        following = make_recipe(calibration)
        settled = schedule(following) == schedule(recipe)
        # The weights belong to the recipe of their sweep: another one is only adopted to sweep again.
        if not settled and sweeps < rounds:
            recipe = following
    return Calibrated(calibration, recipe, sweeps, settled or graph == "pruned")


def schedule(recipe: PruningRecipe) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a recipe does to an image of the usual size: its layers, and how many tokens go on from each."""
    return recipe.layers, tuple(recipe.counts(recipe.reference_tokens))


def as_graph(name: str) -> Graph:
    """The graph of that name; QuotaError with the known names if there is none."""
    for graph in GRAPHS:
        if graph == name:
            return graph
    raise QuotaError(f"there is no calibration graph {name!r}; choose one of {', '.join(GRAPHS)}")


class Original:
    """The blocks of a model before they are quantised: their linears, and what transforms are folded into."""

    def __init__(self, model: Any) -> None:
        rooms = family(model)
        self._linears = {name: deepcopy(linear) for name, linear in rooms.linears()}
        blocks: list[nn.Module] = [*rooms.tower_blocks, *rooms.projectors, *rooms.decoder_layers]
        inside = {id(parameter) for block in blocks for parameter in block.parameters()}
        inside -= {id(parameter) for _, linear in rooms.linears() for parameter in linear.parameters()}
        self._others = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if id(parameter) in inside
        }

    def restore(self, model: Any) -> None:
        """Put copies of them back in place of what was made of them."""
        for name, linear in self._linears.items():
            model.set_submodule(name, deepcopy(linear))
        for name, parameter in self._others.items():
            model.get_parameter(name).data.copy_(parameter)
        remove_key_transforms(family(model).decoder_layers)
