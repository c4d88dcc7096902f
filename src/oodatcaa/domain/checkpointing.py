"""How many blocks to compute again: as few as fit. Pure: whether something fits is an argument."""

from __future__ import annotations

from collections.abc import Callable

from oodatcaa.domain.qlora import QLoRA


def with_recomputed(params: QLoRA, count: int, trained: int) -> QLoRA:
    """The same training with `count` of its `trained` blocks computed again."""
    return params.evolve(
        grad_checkpoint=count > 0,
        grad_checkpoint_layers=count if 0 < count < trained else None,
    )


def fewest_recomputed(
    params: QLoRA, trained: int, fits: Callable[[QLoRA], bool], *, more_than: int = 0
) -> QLoRA | None:
    """With the fewest blocks computed again, but more than `more_than`, that `fits`; None when not
    even all of them help. Every block that is computed again takes less memory and more time.
    """
    low, high = more_than, trained
    if high <= low or not fits(with_recomputed(params, high, trained)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if fits(with_recomputed(params, middle, trained)):
            high = middle
        else:
            low = middle
    return with_recomputed(params, high, trained)
