"""Tables for the terminal. Accuracies are shown in percent, intervals as low-high, sizes in KB and MB of 1000.

A figure that is cut is a wrong one, so nothing ever is: what is wider than its column goes on in the next line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from quota.allocation.frontier import Point
from quota.evaluation.evaluate import Evaluation
from quota.report.inspection import Inspection
from quota.scheme import QuantizationScheme


class WholeTable(Table):
    """A table in the style of this package, in a terminal of any width without a character missing."""

    def __init__(self, title: str, narrow: bool = False, **options: Any) -> None:
        """`narrow` leaves out margins, for tables that would be wider than 80 columns with them."""
        if narrow:
            options |= {"padding": (0, 1, 0, 0), "show_edge": False}
        super().__init__(title=title, box=box.SIMPLE_HEAD, **options)

    def add_column(self, header: RenderableType = "", **options: Any) -> None:
        # Rich would put an ellipsis for the rest of a long word.
        super().add_column(header, overflow="fold", **options)


def percent(fraction: float | None) -> str:
    """0.8765 -> "87.7"; "-" for what is undefined."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def percent_range(interval: Sequence[float] | None) -> str:
    """(0.85, 0.9) -> "85.0-90.0"."""
    return "-" if interval is None else f"{percent(interval[0])}-{percent(interval[1])}"


def size(count: int) -> str:
    """Bytes as a person reads them: 12345 -> "12.3 KB"."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} KB"


def evaluation_table(evaluation: Evaluation, title: str) -> Table:
    """Accuracy per task beside the majority answer's, then the average with its interval."""
    table = WholeTable(title)
    for name in ("task", "questions", "accuracy %", "majority answer %"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for task, accuracy in evaluation.accuracy.items():
        count = str(len(evaluation.outcomes[task]))
        table.add_row(task, count, percent(accuracy), percent(evaluation.majority[task]))
    table.add_section()
    average = f"{percent(evaluation.average)} ({percent_range(evaluation.interval)})"
    majority = sum(evaluation.majority.values()) / len(evaluation.majority)
    table.add_row("average (95% interval)", str(evaluation.questions), average, percent(majority))
    return table


def inspection_table(inspection: Inspection, title: str) -> Table:
    """A checkpoint or recipe as name-value rows."""
    table = WholeTable(title, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    scheme, recipe, packed = inspection.scheme, inspection.recipe, inspection.packed
    table.add_row("scheme", "full precision" if scheme is None else describe_scheme(scheme))
    if packed is not None:
        table.add_row("quantised layers", f"{packed.layers}, {packed.weights:,} weights")
        table.add_row("bytes per weight", f"{packed.bytes_per_weight:.4f} (scales included)")
    if inspection.disk_bytes is not None:
        table.add_row("weights on disk", size(inspection.disk_bytes))
    if recipe is None:
        table.add_row("recipe", "none: no token is pruned")
        return table
    table.add_section()
    counts = recipe.counts(recipe.reference_tokens)
    table.add_row("drops after layers", ", ".join("projector" if at < 0 else str(at) for at in recipe.layers))
    table.add_row("sensitivities", ", ".join(f"{value:.4f}" for value in recipe.sensitivities) or "not measured")
    table.add_row("keep ratios", ", ".join(f"{ratio:.3f}" for ratio in recipe.keep_ratios))
    table.add_row(f"kept of {recipe.reference_tokens} tokens", ", ".join(map(str, counts)))
    if inspection.visual_tokens_per_layer is not None:
        table.add_row("tokens entering layers", ", ".join(map(str, inspection.visual_tokens_per_layer)))
    average = inspection.layer_average_keep
    table.add_row("final keep ratio", f"{percent(recipe.keep)}%")
    if average is not None:
        table.add_row("average over layers", f"{percent(average)}%")
        table.add_row("prefill FLOPs of visual tokens", f"{percent(inspection.prefill_flops_ratio)}% of unpruned")
    if (chosen := inspection.chosen) is not None:
        how = "measured" if chosen.measured else "put together from single cuts"
        table.add_row("expected loss", f"{chosen.error:.3g} nats ({how})")
        table.add_row("KV cache of a typical prompt", size(round(chosen.kv_bytes)))
        if chosen.milliseconds is not None:
            table.add_row("prefill of a typical prompt", f"{chosen.milliseconds:.1f} ms")
    table.add_row("method", recipe.method)
    table.add_row("score", " + ".join(f"{weight:g} {name}" for name, weight in recipe.weights.items()) or recipe.scorer)
    table.add_row("calibrated on", f"{recipe.samples} samples, seed {recipe.seed}")
    table.add_row("model fingerprint", recipe.model_fingerprint[:16])
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in recipe.versions.items()))
    return table


def frontier_table(points: Sequence[Point], chosen: Point | None) -> Table:
    """What other budgets would buy, a row each; the recipe in place is marked if it is among them."""
    table = WholeTable("Budgets, by what calibration measured", narrow=True)
    for name in ("arithmetic %", "KV cache", "prefill ms", "loss, nats", "kept after layers"):
        table.add_column(name, justify="left" if name.startswith("kept") else "right")
    for one in points:
        time = "-" if one.milliseconds is None else f"{one.milliseconds:.1f}"
        places = zip(one.layers, one.counts, strict=True)
        kept = ", ".join(f"{'projector' if at < 0 else at}: {count}" for at, count in places) or "all tokens"
        if chosen is not None and (one.layers, one.counts) == (chosen.layers, chosen.counts):
            kept += " (this recipe)"
        error = f"{one.error:.3g}" if one.measured else f"~{one.error:.3g}"
        table.add_row(percent(one.compute), size(round(one.kv_bytes)), time, error, kept)
    table.caption = "~: put together from single cuts. `quota rebudget` makes the recipe for any of them."
    return table


def describe_scheme(scheme: QuantizationScheme) -> str:
    """A scheme in one sentence."""
    return (
        f"{scheme.name}: weights in groups of {scheme.weight_group} ({scheme.weight_rounding}), activations in groups "
        f"of {scheme.activation_group}, block-Hadamard {scheme.hadamard or 'none'}, "
        f"transforms {scheme.transforms}; {', '.join(scheme.modules)}; "
        f"embedding in {scheme.embedding_bits} bits, lm_head in {scheme.head_bits}"
    )
