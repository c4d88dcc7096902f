"""How alternatives are compared: by facts, with weights; no opinion enters a total."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oodatcaa.domain.plan import Alternative, Fact, Factor, PlanDecision
from oodatcaa.roles.planner.wording import size

NOT_AVAILABLE = Fact(value="unknown", source="not available")
GOOD = 0.75
BAD = 0.25


def weigh(
    alternatives: Sequence[Alternative], factors: Sequence[Factor]
) -> tuple[dict[str, float], tuple[Factor, ...], tuple[Factor, ...]]:
    """(totals, factors used, factors left out).

    A total is `sum(weight * score) / sum(weight)` over the factors for which at least one
    alternative has a scored fact, rounded to four digits: 0..1. An alternative that lacks a fact
    others have gets 0 for it: not knowing is never an advantage. A factor nobody has a fact for
    says nothing and is left out.
    """
    used = tuple(f for f in factors if any(_score(a, f) is not None for a in alternatives))
    left_out = tuple(f for f in factors if f not in used)
    weight = sum(factor.weight for factor in used)
    totals = {
        a.key: round(sum(f.weight * (_score(a, f) or 0.0) for f in used) / weight, 4)
        if weight
        else 0.0
        for a in alternatives
    }
    return totals, used, left_out


def _score(alternative: Alternative, factor: Factor) -> float | None:
    fact = alternative.facts.get(factor.key)
    return None if fact is None else fact.score


def with_pros_and_cons(alternative: Alternative, factors: Sequence[Factor]) -> Alternative:
    """Pros and cons read off the scored facts, in front of any that are already there."""
    pros, cons = [], []
    for factor in factors:
        fact = alternative.facts.get(factor.key)
        if fact is None or fact.score is None:
            continue
        if fact.score >= GOOD:
            pros.append(f"{factor.title}: {fact.value}")
        elif fact.score <= BAD:
            cons.append(f"{factor.title}: {fact.value}")
    return alternative.evolve(pros=(*pros, *alternative.pros), cons=(*cons, *alternative.cons))


def decide(
    alternatives: Sequence[Alternative],
    factors: Sequence[Factor],
    *,
    candidates: Iterable[str],
    forced: str | None = None,
    because: Sequence[str] = (),
    trade_offs: Sequence[str] = (),
) -> PlanDecision:
    """The best total among `candidates`; ties go to the one named first.

    `forced` is a decision taken elsewhere (an adaptation): totals are shown all the same.
    """
    totals, used, left_out = weigh(alternatives, factors)
    names = list(candidates)
    chosen = forced or max(names, key=lambda key: (totals[key], -names.index(key)))
    by_key = {a.key: a for a in alternatives}
    winner = by_key[chosen]
    others = ", ".join(f"{a.title} {totals[a.key]:.2f}" for a in alternatives if a is not winner)
    rationale = [*because, f"{winner.title}: {totals[chosen]:.2f} of 1" + _against(others)]
    for factor in used:
        fact = winner.facts.get(factor.key, NOT_AVAILABLE)
        rationale.append(f"{factor.title} (weight {factor.weight:g}): {fact.value} ({fact.source})")
    if left_out:
        titles = ", ".join(factor.title for factor in left_out)
        rationale.append(f"Left out, nobody has a fact for it: {titles}")
    return PlanDecision(
        chosen=chosen,
        factors=used,
        totals=totals,
        rationale=tuple(rationale),
        trade_offs=(*trade_offs, *_given_up(winner, alternatives, used)),
    )


def _against(others: str) -> str:
    return f"; {others}" if others else "; there is no other way"


def _given_up(
    winner: Alternative, alternatives: Sequence[Alternative], used: Sequence[Factor]
) -> list[str]:
    """Where another alternative is better than the chosen one, with both facts."""
    lines = []
    for factor in used:
        mine = _score(winner, factor) or 0.0
        better = [a for a in alternatives if (_score(a, factor) or 0.0) > mine]
        if better:
            best = max(better, key=lambda a: _score(a, factor) or 0.0)
            lines.append(
                f"{best.title} is better on {factor.title.lower()} "
                f"({best.facts[factor.key].value}); accepted for the higher total"
            )
    return lines


def fit_score(needed: int, ceiling: int) -> float:
    """0 = does not fit; 0.5 = just fits; towards 1 = much room left."""
    return 0.0 if needed > ceiling else round(1.0 - 0.5 * needed / ceiling, 4)


def memory_fact(needed: int | None, ceiling: int, source: str) -> Fact:
    if needed is None:
        return NOT_AVAILABLE
    verdict = "fits" if needed <= ceiling else "does not fit"
    return Fact(
        value=f"{size(needed)} of {size(ceiling)}: {verdict}",
        source=source,
        score=fit_score(needed, ceiling),
    )
