"""An A/B verdict must not see a difference where there is only another seed."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oodatcaa.domain.comparison import Verdict, compare, student, welch

EXAMPLES = 12
TOKENS = [5 + i % 4 for i in range(EXAMPLES)]


def side(chance: random.Random, seeds: int, better_by: float = 0.0) -> list[list[float]]:
    """Losses as training gives them: each seed has its own level, each example its own."""
    hard = [random.Random(i).uniform(0.5, 2.0) for i in range(EXAMPLES)]
    found = []
    for _ in range(seeds):
        level = chance.gauss(0, 0.05) - better_by
        found.append([h + level + chance.gauss(0, 0.02) for h in hard])
    return found


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_configuration_is_hardly_ever_better_than_itself(seeds: int) -> None:
    chance = random.Random(seeds)
    verdicts = [
        compare(side(chance, seeds), side(chance, seeds), TOKENS, seed=i, samples=200).verdict
        for i in range(120)
    ]
    assert verdicts.count(Verdict.BETTER) <= 0.05 * len(verdicts)


def test_one_seed_each_would_find_differences_that_are_none_and_so_says_nothing() -> None:
    chance = random.Random(7)
    one = [
        compare(side(chance, 1), side(chance, 1), TOKENS, seed=i, samples=200) for i in range(40)
    ]
    assert {found.verdict for found in one} == {Verdict.INCONCLUSIVE}
    # The examples alone would have said so, and often: they do not know of seeds.
    assert sum(found.examples_low > 0 for found in one) > 10


def test_a_real_improvement_is_found_and_its_opposite_is_not_better() -> None:
    chance = random.Random(1)
    pairs = [(side(chance, 4), side(chance, 4, 0.4)) for _ in range(10)]
    assert {compare(a, b, TOKENS, samples=200).verdict for a, b in pairs} == {Verdict.BETTER}
    assert {compare(b, a, TOKENS, samples=200).verdict for a, b in pairs} == {Verdict.NOT_BETTER}


def test_an_improvement_that_is_too_small_to_count_is_not_better() -> None:
    flat = [[1.0] * EXAMPLES, [1.01] * EXAMPLES, [0.99] * EXAMPLES]
    found = compare(flat, flat, TOKENS, smallest=0.2)
    assert found.verdict is Verdict.NOT_BETTER
    assert found.improvement == pytest.approx(0.0)
    assert compare(flat, flat, TOKENS).verdict is Verdict.INCONCLUSIVE
    assert compare([[1.0] * EXAMPLES] * 2, [[1.0] * EXAMPLES] * 2, TOKENS).verdict is (
        Verdict.NOT_BETTER
    )


def test_students_quantiles_are_those_of_the_tables() -> None:
    table = {1: 12.706, 2: 4.303, 4: 2.776, 10: 2.228, 30: 2.042}
    for freedom, expected in table.items():
        assert student(freedom) == pytest.approx(expected, abs=2e-3)
    assert student(1e6) == pytest.approx(1.960, abs=2e-3)


@given(
    st.lists(st.floats(0, 9), min_size=2, max_size=6),
    st.lists(st.floats(0, 9), min_size=2, max_size=6),
)
@example([0.0, 0.0], [0.0, 1.3766520818141167e-106])
@settings(max_examples=50, deadline=None)
def test_the_interval_turns_around_with_its_sides(a: list[float], b: list[float]) -> None:
    low, high = welch(a, b)
    first, last = welch(b, a)
    assert low is not None
    assert high is not None
    assert low <= high
    assert (first, last) == pytest.approx((-high, -low))


def test_losses_that_can_not_be_compared_are_refused() -> None:
    good = [[1.0, 2.0], [1.0, 2.0]]
    for bad in ([[1.0]], [[1.0, math.nan]], []):
        with pytest.raises(ValueError, match=r"losses|finite|nothing"):
            compare(good, bad, [1, 1])
