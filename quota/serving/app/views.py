"""What the page shows, as HTML. Whatever people or models have written is escaped, here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from quota.allocation.frontier import Point
from quota.pruning.recipe import PruningRecipe
from quota.serving.app.answering import Answer

_EVERYTHING = "every token"
_LONGEST_QUESTION = 300


def message_view(message: str, kind: str = "problem") -> str:
    """One line: what was wrong and what to do, or a `kind` of "note". Nothing for no message."""
    return f'<p class="quota-{kind}">{escape(message)}</p>' if message else ""


def head_view(label: str, recipe: PruningRecipe, depth: int) -> str:
    """Which model this is."""
    scheme = "full precision" if recipe.scheme is None else recipe.scheme.name
    facts = f"{scheme}, {depth} decoder layers, {recipe.reference_tokens} visual tokens of a typical picture"
    return f"<h1>QUOTA <span>{escape(label)}</span></h1><p>{escape(facts)}</p>"


def recipe_view(recipe: PruningRecipe, point: Point | None, depth: int) -> str:
    """How many visual tokens of a typical picture enter each layer, and what that costs."""
    tokens = recipe.reference_tokens
    entering = recipe.tokens_per_layer(tokens, depth)
    bars = []
    for layer, count in enumerate(entering):
        # A number where something changes.
        number = str(count) if not layer or count != entering[layer - 1] else ""
        cut = ' class="cut"' if layer in recipe.layers and count != ([*entering, 0][layer + 1]) else ""
        bars.append(f'<div{cut} style="--share:{count / tokens:.4f}"><b>{number}</b><i></i></div>')
    said = f"Visual tokens entering decoder layers 0 to {depth - 1}: {', '.join(map(str, entering))}"
    lines = [f"{_cuts(recipe)}; of a typical picture, which has {tokens}"]
    if point is not None:
        spent = [f"{100 * point.compute:.0f}% of the prefill arithmetic of visual tokens", size(point.kv_bytes)]
        if point.milliseconds is not None:
            spent.append(f"{point.milliseconds:.0f} ms of prefill where it was timed")
        how = "measured" if point.measured else "from single cuts"
        lines.append(f"{', '.join(spent)} of KV cache; expected loss {point.error:.2g} nats ({how})")
    chart = f'<div class="quota-bars" role="img" aria-label="{escape(said)}">{"".join(bars)}</div>'
    return f"<h2>Recipe</h2>{chart}" + "".join(f"<p>{escape(line)}</p>" for line in lines)


def answer_view(question: str, answer: Answer | None, everything: Answer | None) -> str:
    """The answer, what it would have been with every token, and what both cost."""
    if answer is None:
        return "<h2>Answer</h2><p>Choose a picture and ask about it.</p>"
    asked = question if len(question) <= _LONGEST_QUESTION else f"{question[:_LONGEST_QUESTION]}..."
    said = escape(answer.text) or ("(nothing)" if answer.finished else "")
    waiting = "" if answer.finished else '<span class="quota-caret"></span>'
    parts = [f"<h2>Answer</h2><p class='quota-question'>{escape(asked)}</p>"]
    parts.append(f"<p class='quota-answer'>{said}{waiting}</p>")
    parts += [_comparison(answer, everything), _figures(answer, everything)]
    return "".join(parts)


def kept_view(panels: Sequence[tuple[str, str]], unplaced: str = "") -> str:
    """Captioned pictures: all tokens, then those that every cut kept. Or why there are none."""
    if unplaced:
        return message_view(unplaced, "note")
    if not panels:
        return ""
    figures = "".join(
        f'<figure><img src="{address}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
        for caption, address in panels
    )
    how = "What a cut drops fades; what it keeps stays as it is, inside red borders."
    return f'<h2>Kept tokens</h2><p>{how}</p><div class="quota-panels">{figures}</div>'


def size(count: float) -> str:
    """Bytes, as people read them."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} KB"


def _cuts(recipe: PruningRecipe) -> str:
    counts = recipe.counts(recipe.reference_tokens)
    cuts = zip(recipe.layers, counts, [recipe.reference_tokens, *counts], strict=False)
    places = [(layer, count) for layer, count, before in cuts if count < before]
    if not places:
        return "Visual tokens enter every layer: none are dropped"
    named = [f"{count} {'before layer 0' if layer < 0 else f'after layer {layer}'}" for layer, count in places]
    return f"Visual tokens kept: {', '.join(named)} (red)"


def _comparison(answer: Answer, everything: Answer | None) -> str:
    name = f"<dt>With {_EVERYTHING}</dt>"
    if everything is None:
        text = "is asked next" if answer.finished else ""
        return f'<dl class="quota-everything">{name}<dd class="quota-faint">{text}&nbsp;</dd></dl>'
    verdict = ""
    if everything.finished and answer.finished:
        same = everything.text == answer.text
        verdict = f'<span class="quota-{"same" if same else "other"}">{"the same" if same else "another answer"}</span>'
    return f'<dl class="quota-everything">{name}<dd>{escape(everything.text)}&nbsp;{verdict}</dd></dl>'


def _figures(answer: Answer, everything: Answer | None) -> str:
    rows = (
        ("time to first token", [_seconds(one.first_token) for one in (answer, everything) if one]),
        ("tokens a second", [_speed(one.tokens_per_second) for one in (answer, everything) if one]),
        ("KV cache after prefill", [_size(one.cache_bytes) for one in (answer, everything) if one]),
        ("visual tokens a layer, on average", [_average(one.tokens_per_layer) for one in (answer, everything) if one]),
    )
    columns = ["this budget", _EVERYTHING][: len(rows[0][1])]
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{value}</td>" for value in values)}</tr>'
        for name, values in rows
    )
    return f'<table class="quota-figures"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _speed(speed: float | None) -> str:
    return "" if speed is None else f"{speed:.1f}"


def _size(count: int | None) -> str:
    return "" if count is None else size(count)


def _average(tokens: Sequence[int]) -> str:
    return f"{sum(tokens) / len(tokens):.0f}" if tokens else ""
