"""Is configuration B better than A? Better, not better, or inconclusive.

Two runs of one configuration differ as well: another seed, other weights, another loss. So what is
compared are losses over several seeds on each side. `better` needs both intervals of the
improvement above 0: Welch's over the seeds (Welch 1947), and the paired bootstrap over the test
examples (Efron & Tibshirani 1993, chapter 13), with the mean over seeds for each example. Each is
two-sided at 95 %, so identical configurations are called better at most about 2.5 % of the time;
`make bench-aa` measures it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from enum import StrEnum
from statistics import NormalDist, fmean, variance

from pydantic import Field

from oodatcaa.domain.base import Record

CONFIDENCE = 0.95
SAMPLES = 1000
NORMAL_FROM = 1000.0
"""Degrees of freedom from which Student's distribution is the normal one, to 0.002."""


class Verdict(StrEnum):
    BETTER = "better"
    NOT_BETTER = "not better"
    INCONCLUSIVE = "inconclusive"


class Comparison(Record):
    """Improvements are losses of A minus losses of B: positive when B is better."""

    verdict: Verdict
    reason: str
    improvement: float
    seeds_low: float | None = Field(description="over the seeds; None with one seed on a side")
    seeds_high: float | None
    examples_low: float
    examples_high: float


def compare(
    a: Sequence[Sequence[float]],
    b: Sequence[Sequence[float]],
    tokens: Sequence[int],
    *,
    smallest: float = 0.0,
    seed: int = 0,
    samples: int = SAMPLES,
) -> Comparison:
    """`a` and `b` hold for each seed the mean loss of every test example, `tokens` its targets.

    `smallest` is the improvement that would be worth it: B is not better once the intervals say
    that it is below that, and inconclusive as long as they can not tell. Raises ValueError when
    the lists are not of the same examples, or a loss is not a finite number.
    """
    _check(a, b, tokens)
    improvement = fmean(_means(a, tokens)) - fmean(_means(b, tokens))
    low, high = welch(_means(a, tokens), _means(b, tokens))
    first, last = _bootstrap(a, b, tokens, seed, samples)
    verdict, reason = _judge((low, high), (first, last), smallest)
    return Comparison(
        verdict=verdict,
        reason=reason,
        improvement=improvement,
        seeds_low=low,
        seeds_high=high,
        examples_low=first,
        examples_high=last,
    )


def _judge(
    seeds: tuple[float | None, float | None], examples: tuple[float, float], smallest: float
) -> tuple[Verdict, str]:
    low, high = seeds
    if low is None or high is None:
        return Verdict.INCONCLUSIVE, "one seed on a side says nothing about other seeds"
    if max(high, examples[1]) <= smallest:
        return Verdict.NOT_BETTER, f"both intervals end at or below {smallest:g}"
    if min(low, examples[0]) > 0:
        if max(low, examples[0]) >= smallest or smallest == 0:
            return Verdict.BETTER, "both intervals are above 0"
        return Verdict.INCONCLUSIVE, f"above 0, but perhaps below the {smallest:g} that count"
    wide = "seeds" if low <= 0 else "examples"
    return Verdict.INCONCLUSIVE, f"the interval over the {wide} contains 0: more {wide} would tell"


def _check(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], tokens: Sequence[int]
) -> None:
    if not a or not b or not tokens:
        raise ValueError("nothing to compare")
    for losses in (*a, *b):
        if len(losses) != len(tokens):
            raise ValueError(f"{len(losses)} losses for {len(tokens)} examples")
        if not all(math.isfinite(loss) for loss in losses):
            raise ValueError("a loss is not a finite number")


def _means(side: Sequence[Sequence[float]], tokens: Sequence[int]) -> list[float]:
    """The mean loss over all target tokens, for each seed."""
    total = sum(tokens)
    return [sum(x * n for x, n in zip(one, tokens, strict=True)) / total for one in side]


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float | None, float | None]:
    """The two-sided interval of mean(a) - mean(b); (None, None) with fewer than two on a side."""
    if min(len(a), len(b)) < 2:
        return None, None
    parts = (variance(a) / len(a), variance(b) / len(b))
    middle, width = fmean(a) - fmean(b), math.sqrt(sum(parts))
    if width == 0:
        return middle, middle
    # Of shares, for the square of a tiny variance is 0.
    shares = [part / sum(parts) for part in parts]
    freedom = 1 / (shares[0] ** 2 / (len(a) - 1) + shares[1] ** 2 / (len(b) - 1))
    reach = student(freedom) * width
    return middle - reach, middle + reach


def student(freedom: float, confidence: float = CONFIDENCE) -> float:
    """The t that `confidence` of Student's distribution lies within, by bisection."""
    if freedom > NORMAL_FROM:
        return NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: float, steps: int = 400) -> float:
    """P(|T| < t): with t = tan(x) * sqrt(freedom) the density is cos(x) ** (freedom - 1)."""
    end = math.atan(t / math.sqrt(freedom))
    scale = (
        2 * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    )
    width = end / steps
    weights = (1 if i in (0, steps) else 4 if i % 2 else 2 for i in range(steps + 1))
    area = sum(w * math.cos(i * width) ** (freedom - 1) for i, w in enumerate(weights))
    return float(scale * area * width / 3)


def _bootstrap(
    a: Sequence[Sequence[float]],
    b: Sequence[Sequence[float]],
    tokens: Sequence[int],
    seed: int,
    samples: int,
) -> tuple[float, float]:
    count = range(len(tokens))
    gains = [(fmean(one[i] for one in a) - fmean(one[i] for one in b)) * tokens[i] for i in count]
    chance = random.Random(seed)
    found = []
    for _ in range(samples):
        chosen = chance.choices(count, k=len(tokens))
        found.append(sum(gains[i] for i in chosen) / sum(tokens[i] for i in chosen))
    found.sort()
    tail = (1 - CONFIDENCE) / 2
    return found[int(tail * samples)], found[int((1 - tail) * samples) - 1]
