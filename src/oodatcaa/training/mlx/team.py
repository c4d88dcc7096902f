"""Threads of MLX's CPU device, each with a copy of the model.

MLX's transformations put traced arrays into the very modules and dictionaries that they are given:
each thread has a copy of the module tree. The frozen arrays are shared, not copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from oodatcaa.training.identity import cores
from oodatcaa.training.mlx import vector
from oodatcaa.training.mlx.blas import threads, use_threads
from oodatcaa.training.mlx.cpu import fast_cpu
from oodatcaa.training.mlx.prefix import FrozenPrefix
from oodatcaa.training.wall import untouched

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
        self._beside: list[Future[Any]] = []

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
        """End the threads, when what they are at is done; what they have not begun is dropped."""
        for thread in self._threads:
            thread.shutdown(wait=False, cancel_futures=True)
        for thread in self._threads:
            thread.shutdown()
        self._beside = []
        use_threads(cores())

    def each(
        self,
        work: Callable[[Any, Any], T],
        parts: Sequence[Any],
        trainable: Any,
        *,
        divided_by: int | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> list[T]:
        """`work(network, part)` for at most `size` parts, side by side; the results in order.
        `divided_by`: how many share the cores, where that is not the number of parts. `meanwhile`
        is called when all have been given to their threads.

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
        with self._divided(divided_by or len(parts)):
            for network, thread, part in zip(self._copies, self._threads, parts, strict=False):
                pending.append(thread.submit(one, network, part))
            before, self._beside = self._beside, []
            try:
                if meanwhile is not None:
                    meanwhile()
            finally:
                wait([*before, *pending])
        return [future.result() for future in pending]

    def beside(self, work: Callable[[Any, Any], T], parts: Sequence[Any]) -> list[Future[T]]:
        """Begin `work(network, part)` for a part for each thread, behind what the threads are at;
        nobody waits. Only from `meanwhile` of an `each` for as many parts: the products take as
        many threads. The copies have their frozen arrays alone, and are in the mode of before.
        """
        assert len(parts) == self.size, "each thread has a part"
        assert threads() == max(1, cores() // self.size), "products take a full team's threads"
        self._beside = [
            thread.submit(work, network, part)
            for thread, network, part in zip(self._threads, self._copies, parts, strict=True)
        ]
        return self._beside

    @contextmanager
    def _divided(self, parts: int) -> Iterator[None]:
        """The threads of a product, divided among `parts` that multiply at the same time. Their
        number is the process's and shapes the last bits: it stays while anything works beside."""
        wanted = max(1, cores() // max(1, parts))
        if wanted != threads():
            wait(self._beside)
        use_threads(wanted)
        try:
            yield
        finally:
            if not self._beside:
                use_threads(cores())


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
