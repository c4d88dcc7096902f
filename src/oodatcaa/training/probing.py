"""The made-up steps of a memory probe, the same for every backend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.training.examples import Example, Examples
from oodatcaa.training.protocol import ProbeRequest, ProbeSize

LEARNING_RATE = 1e-6
"""Made-up tokens must not drive weights to what is not finite."""

STEPS, LEAST_STEPS, MOST_STEPS = 10, 2, 40
"""Optimizer steps of a probe. A process's peak was seen to rise for some steps, with the
framework's own count unchanged: freed blocks leave holes that the next step fills in another order.
Where rows are computed side by side their peaks coincide only now and then: of four probes with
four steps two were 3 and 5 % under the run, with ten none was 1 % under; of four runs with dropout
and three rows on two threads the peak of 60 steps was up to 4 % above that of ten. So quick steps
go on. Moments and updated weights are there after two."""
QUICK_SECONDS = 3.0
"""For so long a probe goes beyond STEPS."""
ENOUGH_SECONDS = 60.0
"""A probe whose steps have taken this long is content with them, if they are the least. With half
of it a checkpointed model's probe of two slow steps was 9 % under a run, whose second and third
step were above the first; probes with all ten steps were within 1 %."""


def probe_params(request: ProbeRequest) -> QLoRA:
    """Enough micro-steps that moments and an accumulated gradient are held at once."""
    size = request.size
    accumulate = min(2, request.spec.params.grad_accumulation_steps)
    return request.spec.params.evolve(
        batch_size=size.batch,
        max_seq_length=max(32, size.length),
        grad_accumulation_steps=accumulate,
        iters=MOST_STEPS * accumulate,
        learning_rate=LEARNING_RATE,
        warmup_steps=0,
        val_batches=1,
        steps_per_eval=1000,
        save_every=LEAST_STEPS * accumulate,
    )


def enough_steps(params: QLoRA) -> Callable[[int, float], str]:
    """Why a probe with these parameters may end after so many iterations and seconds, or ""."""

    def why(iteration: int, seconds: float) -> str:
        steps, rest = divmod(iteration, params.grad_accumulation_steps)
        least = LEAST_STEPS if seconds >= ENOUGH_SECONDS else STEPS
        ends = seconds >= QUICK_SECONDS and steps >= least and not rest
        return f"after {steps} steps in {seconds:.0f} s" if ends else ""

    return why


def probe_examples(size: ProbeSize, vocabulary: int, *, packing: bool = False) -> Examples:
    """One example for each row, or with `packing` two that fill it together: one position is the
    second's, for the more of a row is one example's, the more scores may its attention keep."""
    random = np.random.default_rng(0)
    lengths = [size.length, 2] if packing else [size.length]
    share, rest = divmod(min(size.targets, size.batch * (size.length - 1)), size.batch)
    items = []
    for row in range(size.batch):
        left = share + (row < rest)
        for length in reversed(lengths):
            targets = max(1, min(left, length - 1))
            left -= targets
            tokens = random.integers(0, vocabulary, length).tolist()
            items.append(Example(tuple(tokens), length - targets))
    return Examples(tuple(items), {}, {})
