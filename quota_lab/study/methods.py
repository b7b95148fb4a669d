"""The methods that QUOTA is compared with, each at the place in the model that its paper names.

    random, uniform   after the first candidate layer of the paper's rule
    FastV             after the second decoder layer, by the last token's attention            arXiv 2403.06764
    PyramidDrop       after 1/4, 1/2 and 3/4 of the layers, the same share each, same score    arXiv 2410.17247
    VTW               all visual tokens, after the layer that the budget allows                arXiv 2405.05803
    DivPrune          before the decoder                                                       arXiv 2503.02175
    VisionZip         before the decoder                                                       arXiv 2412.04467
    DART              after the second decoder layer                                           arXiv 2502.11494
    CDPruner          before the decoder                                                       arXiv 2506.10967
    QAPruner          before the decoder                                                       arXiv 2604.02816

All of them run under the same operators and on the same quantised weights, and each keeps as many tokens as the budget
allows. VTW has a layer instead of a number: the deepest that the budget allows; of what it drops one
token stays, as a recipe may not be empty.
"""

from __future__ import annotations

from typing import Any

from quota_lab.study.variants import Pruning

VTW = "VTW"


def methods(compute: float | None = None, prefill: float | None = None) -> dict[str, Pruning]:
    """Name -> the method at this share of the unpruned prefill arithmetic, or of the unpruned prefill time."""
    second, input_of_decoder = (1,), (-1,)
    cost: dict[str, Any] = {"keep": None, "compute": compute, "prefill": prefill}
    return {
        "random": Pruning(scorer="random", schedule="one-shot", **cost),
        "uniform": Pruning(scorer="uniform", schedule="one-shot", **cost),
        "FastV": Pruning(scorer="fastv", layers=second, schedule="one-shot", **cost),
        "PyramidDrop": Pruning(scorer="fastv", depths=(0.25, 0.5, 0.75), schedule="uniform", **cost),
        VTW: Pruning(scorer="uniform", schedule="withdraw", **cost),
        "DivPrune": Pruning(scorer="divprune", layers=input_of_decoder, schedule="one-shot", **cost),
        "VisionZip": Pruning(scorer="visionzip", layers=input_of_decoder, schedule="one-shot", **cost),
        "DART": Pruning(scorer="dart", layers=second, schedule="one-shot", **cost),
        "CDPruner": Pruning(scorer="cdpruner", layers=input_of_decoder, schedule="one-shot", **cost),
        "QAPruner": Pruning(scorer="qapruner", layers=input_of_decoder, schedule="one-shot", **cost),
    }
