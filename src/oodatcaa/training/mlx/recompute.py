"""Gradient checkpointing (Chen et al. 2016) of some blocks of a model.

mlx-lm's `grad_checkpoint` patches a class, so every block of it is computed again, and patching
twice nests. Here the blocks are chosen.

In MLX's graph it is `mx.checkpoint` of the lowest ones: those at the top are the first to be needed
in the backward pass and the first to be freed, so that keeping what they computed costs the least
time.

Where layers evaluate as they are met (vector.py), a block is evaluated without a trace, and again
with one of its own, which ends with the block: no scheduler runs ahead, and not more than one
block's arrays are there. It is the topmost blocks there: what others have kept stays until the
whole trace ends in any case, but while MLX is on its way back it also keeps all that is evaluated.
So nothing may come before the blocks that evaluate their gradients (the lowest 15 of the 135M
model's 30 instead took 4.4 GB).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import NoneType
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.training.mlx import randomness, vector
from oodatcaa.training.mlx.packed import as_now, is_mask
from oodatcaa.training.mlx.team import Team
from oodatcaa.training.wall import untouched

MARK, FROZEN = "_recomputed_by", "_frozen_arrays"


class _Frozen:
    """A block's arrays that are not trained, outside of the module tree. mlx-lm hands the whole
    model to a transformation, which puts traced arrays into the tree, also in the place of those
    that are no parameters (`_freqs`); what depends on one is kept until the trace ends."""

    def __init__(self, block: Any) -> None:
        trained = {name for name, _ in tree_flatten(block.trainable_parameters())}
        found = [(name, array) for name, array in tree_flatten(_held(block)) if name not in trained]
        self.tree: Any = tree_unflatten(found)


def _held(block: Any) -> Any:
    """All arrays of a block, private ones too."""
    tree: Any = block.filter_and_map(lambda _, __, value: isinstance(value, (dict, list, mx.array)))
    arrays = [(name, leaf) for name, leaf in tree_flatten(tree) if isinstance(leaf, mx.array)]
    return tree_unflatten(arrays)


class _Second(threading.local):
    """A thread beside this one. While a backward pass is on its way MLX keeps the history of all
    that its thread evaluates, also of what depends on nothing that is traced; another thread's is
    freed. Always the same, because MLX has a stream for each thread."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="again")


_second = _Second()


def start_threads_beside(network: Any, team: Team | None) -> None:
    """Start what computes blocks again beside each thread: a thread, and MLX's own for its stream.
    Now, while nothing else is going on: a kernel's limit counts their stacks."""

    def start(*_: Any) -> None:
        _second.thread.submit(lambda: mx.eval(mx.zeros(1) + 1)).result()

    with untouched():
        if team is None:
            start()
        else:
            team.each(start, [None] * team.size, network.trainable_parameters())


def recompute(networks: Sequence[Any], params: QLoRA, *, at_once: bool) -> None:
    """Compute `params.recomputed()` trained blocks again in the backward pass, and every block
    below the trained ones: frozen ones keep what they computed, too, where a gradient is traced
    through them. `at_once`: whether the step's layers evaluate as they are met. Once for a model
    and all of its copies, before anything else replaces its blocks' `__call__`."""
    token = object()
    kinds = set()
    for network in networks:
        for block in _chosen(list(network.layers), params, top=at_once):
            setattr(block, MARK, token)
            setattr(block, FROZEN, _Frozen(block))
            kinds.add(type(block))
    for kind in kinds:
        _patch(kind, token)


def _chosen(blocks: list[Any], params: QLoRA, *, top: bool) -> list[Any]:
    first = len(blocks) - params.trained_blocks(len(blocks))
    count = params.recomputed(len(blocks) - first)
    if not top:
        return blocks[: first + count]
    return [*blocks[:first], *blocks[len(blocks) - count :]]


def _patch(kind: type[Any], token: object) -> None:
    whole = kind.__call__
    said = False

    def call(block: Any, *args: Any, **options: Any) -> Any:
        nonlocal said
        if getattr(block, MARK, None) is not token or not vector.traced():
            return whole(block, *args, **options)
        if vector.active():
            if _is_repeatable((*args, *options.values())):
                return _twice(whole, block, args, options)
            if not said:
                said = True
                print(
                    f"grad_checkpoint: what a {kind.__name__} computes is kept: it is given more "
                    "than arrays, and may change it",
                    flush=True,
                )
            return whole(block, *args, **options)

        numbers = randomness.repeatable()

        def run(tensors: Any, *args: Any, **options: Any) -> Any:
            block.update(tensors)
            with numbers():
                return whole(block, *args, **options)

        return mx.checkpoint(run)(block.trainable_parameters(), *args, **options)

    kind.__call__ = call


def _twice(
    whole: Callable[..., Any], block: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """`whole(block, *args, **options)`, evaluated; differentiable in the block's trainable
    parameters and in the floating-point arrays given, of which alone the trace keeps anything."""
    given = (block.trainable_parameters(), args, options)
    frozen: _Frozen = getattr(block, FROZEN)
    here, numbers = as_now(), randomness.repeatable()
    inputs = _differentiable(given)
    found: list[Any] = []

    def run(arrays: Sequence[mx.array], *, trace: bool) -> tuple[Any, list[mx.array]]:
        own, own_args, own_options = _replaced(given, inputs, arrays)
        before = _held(block)
        block.update(frozen.tree).update(own)
        try:
            with here(), numbers(), vector.at_once(traced=trace):
                output = whole(block, *own_args, **own_options)
                return output, _differentiable(output)
        finally:
            block.update(before)

    @mx.custom_function
    def forward(*arrays: mx.array) -> tuple[mx.array, ...]:
        output, outputs = run(vector.cut_all(arrays), trace=False)
        # The others too: a lazy one would hold what the block has computed.
        mx.eval(output)
        found[:] = output, outputs
        return tuple(outputs)

    @forward.vjp
    def backward(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], _: Sequence[mx.array]
    ) -> tuple[mx.array, ...]:
        # Evaluating an array on another thread ends its history, which is still needed on this one.
        above, arrays = vector.cut_all(cotangents), vector.cut_all(primals)

        def again(*arrays: mx.array) -> tuple[mx.array, ...]:
            return tuple(run(arrays, trace=True)[1])

        def work() -> list[mx.array]:
            _, gradients = mx.vjp(again, arrays, above)
            mx.eval(gradients)
            return vector.cut_all(gradients)

        return tuple(_second.thread.submit(work).result())

    traced: Any = forward(*inputs)
    output, outputs = found
    found.clear()
    return _replaced(output, outputs, traced)


def _is_repeatable(given: Any) -> bool:
    """Whether a block that is given this can be called again: it may write into whatever is
    mutable, and gradients may flow through what it wrote."""
    if isinstance(given, tuple):
        return all(map(_is_repeatable, given))
    return isinstance(given, (mx.array, bool, int, float, str, NoneType))


def _differentiable(tree: Any) -> list[mx.array]:
    """The floating-point arrays in `tree`, each once. The mask of packed rows is none of them: it
    is known by its identity, and may never be computed."""
    found: dict[int, mx.array] = {}

    def look(leaf: Any) -> None:
        floats = isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)
        if floats and not is_mask(leaf):
            found[id(leaf)] = leaf

    tree_map(look, tree)
    return list(found.values())


def _replaced(tree: Any, before: Sequence[mx.array], after: Sequence[mx.array]) -> Any:
    """`tree` with the arrays of `after` in the places of those of `before`."""
    new = {id(old): array for old, array in zip(before, after, strict=True)}
    return tree_map(lambda leaf: new.get(id(leaf), leaf), tree)
