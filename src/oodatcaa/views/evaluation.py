"""The evaluation report: base model against adapter, example by example."""

from __future__ import annotations

from math import exp
from statistics import mean, median, quantiles

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.training import EvalResult
from oodatcaa.views.markdown import bold, code, facts, fence, image, page, prose, section, table
from oodatcaa.views.plan_parts import model_name
from oodatcaa.views.units import (
    NOT_MEASURED,
    count,
    duration,
    interval,
    loss,
    memory,
    number,
    percent,
    rate,
    short,
)

_BINS = 8
_BAR = 24
_WORST = 5


class Comparison(Record):
    """Base and tuned model's answers to one held-out prompt; speeds where they were measured."""

    prompt: NonEmpty
    base: str
    tuned: str
    reference: str = ""
    base_tokens_per_second: float | None = None
    tuned_tokens_per_second: float | None = None
    language: str = "python"


def evaluation_report(
    result: EvalResult,
    *,
    model: str,
    adapter: str = "",
    comparisons: tuple[Comparison, ...] = (),
    plot: str | None = None,
) -> str:
    """The report as Markdown; `plot` is a path relative to where the page will lie."""
    return page(
        f"Evaluation of {model_name(adapter) if adapter else 'the adapter'} "
        f"against {model_name(model)}",
        _result(result),
        _verdict(result),
        _examples(result),
        _histogram(result, plot),
        _worst(result),
        side_by_side(comparisons),
        _how(result),
    )


def _result(result: EvalResult) -> str:
    factor = _perplexity_ratio(result)
    rows = [
        ("base model", loss(result.base_loss), "measured"),
        ("adapter", loss(result.adapter_loss), "measured"),
        (bold("drop"), loss(result.drop), "base minus adapter; higher is better"),
        ("95 % interval of the drop", interval(result.drop_low, result.drop_high),
         "paired bootstrap over examples"),
    ]  # fmt: skip
    if factor is not None:
        rows.append(("perplexity, base to adapter", factor, "exp of the loss, derived"))
    return section(
        "Result",
        f"Mean negative log likelihood in nats per target token, over "
        f"{count(result.examples, 'example')} ({count(result.target_tokens, 'target token')}) of "
        f"the {prose(result.split)} split.",
        f"Not in these figures: {result.unseen}." if result.unseen else "",
        table(("Loss", "Value", "Source"), rows, "lrl"),
    )


def _perplexity_ratio(result: EvalResult) -> str | None:
    if result.base_loss is None or result.adapter_loss is None:
        return None
    if max(result.base_loss, result.adapter_loss) > 500:
        return None
    return f"{exp(result.base_loss):.2f} to {exp(result.adapter_loss):.2f}"


def _verdict(result: EvalResult) -> str:
    return f"{bold('Reading:')} {reading(result)}"


def reading(result: EvalResult) -> str:
    """What the interval allows to say, in one sentence."""
    if result.drop is None or result.drop_low is None or result.drop_high is None:
        return "no comparison is possible, because a loss could not be computed."
    if result.drop_low > 0:
        return "the adapter is better, for the whole interval of the drop lies above zero."
    if result.drop_high < 0:
        return "the adapter is worse, for the whole interval of the drop lies below zero."
    return "no difference is shown, for the interval of the drop includes zero."


def _drops(result: EvalResult) -> list[float]:
    """Per-example drops; empty when the two lists do not belong together."""
    base, tuned = result.per_example_base, result.per_example_adapter
    return [b - t for b, t in zip(base, tuned, strict=True)] if len(base) == len(tuned) else []


def _examples(result: EvalResult) -> str:
    drops = _drops(result)
    if not drops:
        return ""
    better = sum(drop > 0 for drop in drops)
    rows = [
        ("mean", loss(mean(result.per_example_base)), loss(mean(result.per_example_adapter)),
         loss(mean(drops))),
        ("median", loss(median(result.per_example_base)),
         loss(median(result.per_example_adapter)), loss(median(drops))),
        ("lowest", loss(min(result.per_example_base)), loss(min(result.per_example_adapter)),
         loss(min(drops))),
        ("highest", loss(max(result.per_example_base)), loss(max(result.per_example_adapter)),
         loss(max(drops))),
    ]  # fmt: skip
    if len(drops) > 3:
        low, _, high = quantiles(drops, n=4)
        middle = f" Half of all drops lie between {low:.3f} and {high:.3f}."
    else:
        middle = ""
    return section(
        "Per example",
        f"The adapter is better on {better} of {count(len(drops), 'example')} "
        f"({percent(better / len(drops))}).{middle}",
        table(("Over examples", "Base", "Adapter", "Drop"), rows, "lrrr"),
        "Every example counts the same here; the result above weighs every token the same.",
    )


def _histogram(result: EvalResult, plot: str | None) -> str:
    drops = _drops(result)
    return section(
        "Distribution of the drop",
        image("Histogram of the loss drop per example", plot) if plot else "",
        "" if len(drops) < 2 else histogram(drops),
    )


def histogram(values: list[float], bins: int = _BINS) -> str:
    """A histogram as a table of text bars; the bins have equal width."""
    low, high = min(values), max(values)
    width = (high - low) / bins
    if width == 0:
        return table(("Drop", "Examples"), [(loss(low), str(len(values)))], "rr")
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / width), bins - 1)] += 1
    top = max(counts)
    rows = [
        (f"{low + place * width:.3f} to {low + (place + 1) * width:.3f}", str(amount),
         code("#" * max(1, round(amount / top * _BAR)) if amount else ""))
        for place, amount in enumerate(counts)
    ]  # fmt: skip
    return table(("Drop", "Examples", "Histogram"), rows, "rrl")


def _worst(result: EvalResult) -> str:
    drops = _drops(result)
    if len(drops) <= _WORST:
        return ""
    tokens = result.per_example_tokens
    order = sorted(range(len(drops)), key=drops.__getitem__)[:_WORST]
    rows = [
        (str(place + 1), number(tokens[place]) if place < len(tokens) else NOT_MEASURED,
         loss(result.per_example_base[place]), loss(result.per_example_adapter[place]),
         loss(drops[place]))
        for place in order
    ]  # fmt: skip
    return section(
        "Where it helped least",
        table(("Line in split", "Target tokens", "Base", "Adapter", "Drop"), rows, "rrrrr"),
    )


def side_by_side(comparisons: tuple[Comparison, ...], level: int = 2) -> str:
    """Prompt, base model's answer and tuned model's answer, each fenced."""
    return section(
        "Side by side",
        *(_comparison(place, item, level + 1) for place, item in enumerate(comparisons, 1)),
        level=level,
    )


def _comparison(place: int, item: Comparison, level: int) -> str:
    return section(
        f"Prompt {place}",
        fence(item.prompt, "text"),
        f"Base model{_speed(item.base_tokens_per_second)}:",
        _answer(item.base, item.language),
        f"With the adapter{_speed(item.tuned_tokens_per_second)}:",
        _answer(item.tuned, item.language),
        "Reference:" if item.reference.strip() else "",
        fence(item.reference, item.language),
        level=level,
    )


def _answer(text: str, language: str) -> str:
    # An answer that brings its own fences is Markdown, not code.
    return fence(text, "text" if "```" in text else language) or "(no text)"


def _speed(tokens_per_second: float | None) -> str:
    return f" ({rate(tokens_per_second)})" if tokens_per_second is not None else ""


def _how(result: EvalResult) -> str:
    return section(
        "How it was measured",
        facts(
            [
                ("Method", "both losses recomputed from the artefacts in a child process; paired "
                 "bootstrap over examples, percentile method (Efron & Tibshirani 1993, ch. 13)"),
                ("Evaluator", f"sha256 {code(short(result.evaluator_sha256))}"),
                ("Data", f"sha256 {code(short(result.data_sha256))}"
                 if result.data_sha256 else None),
                ("Adapter", f"sha256 {code(short(result.adapter_sha256))}"
                 if result.adapter_sha256 else None),
                ("Peak memory", memory(result.peak_memory_bytes)),
                ("Time", duration(result.seconds)),
            ]
        ),
    )  # fmt: skip
