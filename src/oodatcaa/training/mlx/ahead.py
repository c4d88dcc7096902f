"""The frozen blocks of the next batch, run by threads that have nothing to do yet.

Rows that take longer, or a core that others need, keep the threads of a step waiting for the last
of them, and all wait for the optimizer. What the frozen blocks make of the next batch depends on
neither: it is begun behind each step, and the thread that computed it goes on with that batch's
step. The same products in the same order: no bit depends on who waited for whom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np

from oodatcaa.training.mlx.batches import Batch, divide
from oodatcaa.training.mlx.prefix import FrozenPrefix
from oodatcaa.training.mlx.team import Team

Batches = Callable[..., Iterator[Batch]]
"""mlx-lm's `iterate_batches` seam."""


class Ahead:
    """Of one run. `begin` and `take` are for the step of a batch that `over` has given out."""

    def __init__(self, team: Team, prefix: FrozenPrefix) -> None:
        self._team, self._prefix = team, prefix
        self._parts: list[Batch] = []
        self._begun: list[tuple[Batch, Future[Batch]]] = []

    def over(self, batches: Batches, count: int) -> Batches:
        """The first `count` of `batches`; while one is trained on, the next is known here."""

        def looking(*args: Any, **options: Any) -> Iterator[Batch]:
            every = islice(batches(*args, **options), count)
            for batch, following in pairwise(chain(every, [None])):
                self._parts = [] if following is None else self._divided(following)
                assert batch is not None
                yield batch

        return looking

    def _divided(self, batch: Batch) -> list[Batch]:
        """None for a batch without a row for each thread: its products take more threads."""
        parts = divide(batch._replace(share=None), self._team.size)
        return parts if len(parts) == self._team.size else []

    def begin(self) -> None:
        """Give the next batch to the team's threads: from `Team.each`, for a full team."""
        if self._parts:
            found = self._team.beside(self._prefix.filled, self._parts)
            self._begun = list(zip(self._parts, found, strict=True))
        self._parts = []

    def take(self, parts: Sequence[Batch]) -> list[Future[Batch] | None]:
        """For each part of the batch of now what was begun for it."""
        begun, self._begun = self._begun, []
        known = len(begun) == len(parts) and all(
            np.array_equal(part.inputs, one.inputs)
            for part, (one, _) in zip(parts, begun, strict=True)
        )
        return [found for _, found in begun] if known else [None] * len(parts)

    def close(self) -> None:
        """What is under way ends soon, for nobody."""
        self._prefix.end()
