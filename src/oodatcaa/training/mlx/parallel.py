"""The rows of a batch on several threads of MLX's CPU device.

MLX's CPU build runs every operation on one thread; only the BLAS takes more for a product. So the
rows of a batch are dealt to the cores: each part goes through the model on a thread (and so on an
MLX stream) of its own, with a product's threads divided among them, and what the parts found is
added up in a fixed order. The sums are those of the whole batch within float tolerance, and the
same to the last bit each time.

MLX's transformations put traced arrays into the very modules and dictionaries that they are given:
each thread has a copy of the module tree. The frozen arrays are shared, not copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from oodatcaa.training.identity import cores
from oodatcaa.training.mlx import vector
from oodatcaa.training.mlx.batches import Batch, divide
from oodatcaa.training.mlx.blas import use_threads
from oodatcaa.training.mlx.cpu import fast_cpu
from oodatcaa.training.mlx.packed import packed
from oodatcaa.training.mlx.prefix import FrozenPrefix
from oodatcaa.training.mlx.randomness import draw, seeded
from oodatcaa.training.wall import untouched

Loss = Callable[..., tuple[mx.array, mx.array]]
T = TypeVar("T")


class Team:
    """Copies of a model that share its arrays, each with a thread."""

    def __init__(self, network: nn.Module, size: int) -> None:
        self.size = size
        self._network = network
        self._copies = [_copy(network) for _ in range(size)]
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix=f"rows-{place}") for place in range(size)
        ]

    @property
    def networks(self) -> list[Any]:
        """The copies."""
        return list(self._copies)

    def adopt(self, prefix: FrozenPrefix | None) -> None:
        """Let `prefix` know the blocks of the copies."""
        if prefix is not None:
            for network in self._copies:
                prefix.adopt(list(network.layers))

    def close(self) -> None:
        """End the threads."""
        for thread in self._threads:
            thread.shutdown()

    def each(
        self,
        work: Callable[[Any, Any], T],
        parts: Sequence[Any],
        trainable: Any,
        *,
        divided_by: int | None = None,
    ) -> list[T]:
        """`work(network, part)` for at most `size` parts, side by side; the results in order.
        `divided_by`: how many share the cores, where that is not the number of parts.

        While it works every copy has the arrays of `trainable`, which nobody traces, and the mode
        of the model that the team was made of. An error of a part is raised when all have ended.
        """

        def one(network: Any, part: Any) -> T:
            network.update(trainable)
            if network.training != self._network.training:
                network.train(self._network.training)
            try:
                return work(network, part)
            finally:
                # A copy must not keep weights that the model itself has replaced by then.
                network.update(nothing)

        mx.eval(trainable, none := mx.array(0.0))
        nothing = tree_map(lambda _: none, trainable)
        pending: list[Future[T]] = []
        with _divided(divided_by or len(parts)):
            for network, thread, part in zip(self._copies, self._threads, parts, strict=False):
                pending.append(thread.submit(one, network, part))
            wait(pending)
        return [future.result() for future in pending]


def make_team(network: nn.Module, rows: int) -> Team | None:
    """For batches of so many rows; None where one thread is as good, or a copy does not work.

    Nothing is assumed of an architecture: each copy must reproduce the model's own output.
    """
    size = min(rows, cores())
    if size < 2 or not fast_cpu():
        return None
    was_training = network.training
    network.eval()
    tokens = mx.arange(8)[None]
    mx.eval(tokens)

    def forward(model: Any, tokens: mx.array) -> mx.array:
        with vector.at_once(traced=False):
            found: mx.array = model(tokens)
            mx.eval(found)
        return found

    team = None
    try:
        with untouched():
            team = Team(network, size)
            whole = forward(network, tokens)
            found = team.each(forward, [tokens] * size, network.trainable_parameters())
        good = all(mx.allclose(whole, one, rtol=1e-3, atol=1e-3).item() for one in found)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        good = False
    finally:
        network.train(was_training)
    if team is not None and not good:
        team.close()
    return team if good else None


@contextmanager
def _divided(parts: int) -> Iterator[None]:
    """The threads of a product, divided among `parts` that multiply at the same time."""
    use_threads(max(1, cores() // max(1, parts)))
    try:
        yield
    finally:
        use_threads(cores())


def _copy(network: nn.Module) -> Any:
    shared: dict[int, Any] = {}
    for module in network.modules():
        shared |= {id(value): value for value in _arrays(module)}
    found = copy.deepcopy(network, shared)
    # MLX ties what is not evaluated yet to the thread that asked for it.
    mx.eval([value for module in found.modules() for value in _arrays(module)])
    return found


def _arrays(module: nn.Module) -> list[mx.array]:
    stored = getattr(module, "stored", None)
    kept = [*module.values(), *(() if stored is None else vars(stored).values())]
    return [value for value in kept if isinstance(value, mx.array)]


def divided_gradient(
    team: Team, loss: Loss, prefix: FrozenPrefix | None, *, random: bool = False
) -> Loss:
    """mlx-lm's `loss` seam for the whole batch, from `loss` on its parts.

    The parts' gradients are computed in the forward pass; the backward pass scales their sum.
    `random`: each part has numbers of its own to draw (dropout), the same whenever the random state
    of the calling thread is.
    """

    def divided(model: Any, *batch: mx.array | None) -> tuple[mx.array, mx.array]:
        whole = _batch(None if part is None else vector.cut(part) for part in batch)
        share, count = whole.share, vector.cut(whole.weights.sum())
        parts = divide(whole._replace(share=None), team.size)
        seeds = draw(len(parts)) if random else [None] * len(parts)
        names, arrays = zip(*tree_flatten(model.trainable_parameters()), strict=True)

        @mx.custom_function
        def mean(*arrays: mx.array) -> tuple[mx.array, ...]:
            values = tree_unflatten(list(zip(names, vector.cut_all(arrays), strict=True)))
            given = list(zip(parts, seeds, strict=True))
            return _added(team.each(_Part(loss, prefix, values, count), given, values))

        @mean.vjp
        def mean_vjp(
            _: tuple[mx.array, ...], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
        ) -> tuple[mx.array, ...]:
            scale = cotangents[0] if share is None else cotangents[0] * share
            return tuple(scale * gradient for gradient in outputs[1:])

        found: Any = mean(*arrays)
        return found[0], count

    return divided


def _batch(parts: Iterable[mx.array | None]) -> Batch:
    given: Any = Batch(*parts)  # type: ignore[arg-type]
    found: Batch = given
    return found


class _Part:
    """What one part adds to the mean over the whole batch's `count` targets, and its gradient."""

    def __init__(self, loss: Loss, prefix: FrozenPrefix | None, values: Any, count: mx.array):
        self.loss, self.prefix, self.values, self.count = loss, prefix, values, count

    def __call__(self, network: Any, given: tuple[Batch, int | None]) -> list[mx.array]:
        part, seed = given
        with nullcontext() if seed is None else seeded(seed):
            return self._found(network, part)

    def _found(self, network: Any, part: Batch) -> list[mx.array]:
        if self.prefix is not None:
            with packed(part.owners):
                part = part._replace(hidden=self.prefix.run(network, part.inputs))

        def mean(values: Any) -> mx.array:
            network.update(values)
            value, own = self.loss(network, *part)
            return value * (own / self.count)

        # A dictionary of its own: MLX writes the traced arrays into the one that it is given.
        own_values = tree_map(lambda value: value, self.values)
        value, gradient = mx.value_and_grad(mean)(own_values)
        found = [value, *(array for _, array in tree_flatten(gradient))]
        mx.eval(found)
        return found


def divided_loss(team: Team, loss: Loss) -> Loss:
    """`loss` without a gradient (a validation's), from its parts."""

    def divided(model: Any, *batch: mx.array | None) -> tuple[mx.array, mx.array]:
        def part(network: Any, part: Batch) -> list[mx.array]:
            with vector.at_once(traced=False):
                mean, count = loss(network, *part)
            found = [mean * count, count]
            mx.eval(found)
            return found

        parts = divide(_batch(batch), team.size)
        total, count = _added(team.each(part, parts, model.trainable_parameters()))
        return total / count, count

    return divided


def _added(found: Sequence[Sequence[mx.array]]) -> tuple[mx.array, ...]:
    first, *others = found
    sums = list(first)
    for other in others:
        sums = [a + b for a, b in zip(sums, other, strict=True)]
    mx.eval(sums)
    return tuple(sums)
