"""What a spec will need, asked once: its worst batch, what is known of its family, and a probe."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from oodatcaa.domain.auto_fit import Filling
from oodatcaa.domain.memory import MemoryEstimate, MemoryPart
from oodatcaa.domain.training import TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.machine import gate_limit
from oodatcaa.training.children import DEFAULTS, ChildSettings, ask_child
from oodatcaa.training.estimate import estimate_training, read_shape, worst_size
from oodatcaa.training.forecast import (
    ProbeCache,
    Probed,
    answers,
    family,
    forecast,
    probe_sizes,
    worker_versions,
)
from oodatcaa.training.formulas import Size
from oodatcaa.training.frameworks import MLX, Framework
from oodatcaa.training.models import ModelStore
from oodatcaa.training.protocol import ProbePoint, ProbeRequest, ProbeResult
from oodatcaa.training.tokens import known_lengths
from oodatcaa.training.typical import filling, typical_size

MOST_ROWS = 4096
"""A batch larger than this is not searched for."""


class Question:
    """Data that is there bounds the lengths; without it every row counts as `max_seq_length`.

    Raises OodatcaaError `model.unreadable`.
    """

    def __init__(
        self,
        spec: TrainSpec,
        path: Path,
        cache: ProbeCache,
        settings: ChildSettings = DEFAULTS,
        framework: Framework = MLX,
    ) -> None:
        self._framework = framework
        self.spec, self.path, self._cache, self._settings = spec, path, cache, settings
        self.device = framework.device()
        self.shape = read_shape(path)
        self.limit = gate_limit(spec.memory_limit_bytes)
        self.lengths = lengths = known_lengths(Path(spec.data_dir), path)
        params = spec.params
        targets = lengths.most_targets(params)
        self.analytic = estimate_training(
            self.shape,
            params,
            seq_length=lengths.longest,
            batch_targets=targets,
            device=self.device,
            fast_cpu=settings.fast_cpu,
        )
        self.size = worst_size(params, lengths.longest, targets)

    @property
    def filling(self) -> Filling | None:
        """How well the training examples fill rows; None where their lengths are not known."""
        return filling(self.spec.params, self.lengths.train)

    def ask_typical(self) -> None:
        """From now on about the mean batch of the training examples, where they are known."""
        if self.lengths.train:
            self.size = typical_size(self.spec.params, self.lengths.train)

    @cached_property
    def family(self) -> dict[str, str]:
        digest = ModelStore().model_sha256(self.path)
        device = f"{self.device}, {'fast' if self._settings.fast_cpu else 'stock'} path"
        return family(digest, worker_versions(self._framework), device, self.spec.params)

    @cached_property
    def probed(self) -> Probed:
        return self._cache.read(self.family)

    @property
    def known(self) -> bool:
        """Whether an earlier probe answers."""
        return answers(self.probed, self.size)

    def answer(self) -> MemoryEstimate:
        """The forecast where a probe answers already, else the analytic estimate."""
        return self.at(self.size) if self.known else self.analytic

    def at(self, size: Size) -> MemoryEstimate:
        """For another batch: the forecast where a probe is near enough, else the estimate."""
        if answers(self.probed, size):
            return self._forecast(size)
        params = self.spec.params.evolve(batch_size=size.batch, max_seq_length=max(32, size.length))
        return estimate_training(
            self.shape,
            params,
            batch_targets=size.targets,
            device=self.device,
            fast_cpu=self._settings.fast_cpu,
        )

    def _forecast(self, size: Size) -> MemoryEstimate:
        return forecast(
            self.probed,
            self.shape,
            self.spec.params,
            size,
            self.device,
            fast_cpu=self._settings.fast_cpu,
        )

    def largest_batch(self, length: int) -> int:
        """Rows of `length` tokens that fit, with the data's share of targets; 0 = not one."""
        share = self.size.targets / self.size.tokens

        def fits(batch: int) -> bool:
            targets = max(1, round(share * batch * length))
            return self.at(Size(batch, length, targets)).total_bytes <= self.limit

        low, high = 0, 1
        while high <= MOST_ROWS and fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    @property
    def step_seconds(self) -> float | None:
        """Of one micro-step at the worst batch; scaled by tokens where a smaller one was measured,
        None where nothing was."""
        wanted = self.size
        points = self.probed.points
        if not points:
            return None

        def far(point: ProbePoint) -> tuple[bool, int]:
            size = point.size
            same = (size.batch, size.length) == (wanted.batch, wanted.length)
            return not same, abs(size.batch * size.length - wanted.tokens)

        nearest = min(points, key=far)
        return nearest.step_seconds * wanted.tokens / (nearest.size.batch * nearest.size.length)

    @property
    def timed(self) -> bool:
        """Whether this very batch was measured."""
        sizes = {(point.size.batch, point.size.length) for point in self.probed.points}
        return (self.size.batch, self.size.length) in sizes

    def measure(
        self,
        budget: int,
        should_stop: Callable[[], bool] | None = None,
        allowance: Callable[[], int] | None = None,
    ) -> MemoryEstimate:
        """The forecast from a probe run now, of batches of at most `budget` tokens.

        A probe that itself ends at the memory gate makes the estimate one that does not fit; any
        other failure of the probe is raised. So is RefusedError `reservation.outgrown`: that the
        probe was over its `allowance` says nothing of the limit.
        """
        ready = self.spec.evolve(
            model=str(self.path),
            resume_from=None,
            start_iteration=0,
            memory_limit_bytes=self.limit,
        )
        results, beside = [], []
        for size in probe_sizes(self.size, budget):
            request = ProbeRequest(spec=ready, size=size, vocab_size=self.shape.vocab_size)
            try:
                result, ended = ask_child(
                    f"{self._framework.name}.probe",
                    request,
                    ProbeResult,
                    self.limit,
                    settings=self._settings,
                    should_stop=should_stop,
                    allowance=allowance,
                )
            except OodatcaaError as error:
                if error.code != "child.memory_gate":
                    raise
                return _over(self.analytic, self.limit, error)
            results.append(result)
            highest = max(result.loaded_process_bytes, result.point.process_bytes)
            beside.append(max(0, ended.peak_bytes - highest))
        self.probed = self._cache.add(
            Probed(
                family=self.family,
                points=tuple(result.point for result in results),
                loaded_mlx_bytes=max(one.loaded_mlx_bytes for one in results),
                loaded_process_bytes=max(one.loaded_process_bytes for one in results),
                # The smallest: in a short probe the tree's peak is another moment's.
                beside_bytes=min(beside),
                loss=results[-1].loss,
            )
        )
        return self._forecast(self.size)


def _over(analytic: MemoryEstimate, limit: int, error: OodatcaaError) -> MemoryEstimate:
    """A probe of a smaller size met the limit, so the full size is over it for certain."""
    more = max(0, limit + 1 - analytic.total_bytes)
    formula = f"a probe of at most this size ended at the gate: {error.message}"
    part = MemoryPart(name="measured beyond", bytes=more, formula=formula)
    return analytic.evolve(
        total_bytes=analytic.total_bytes + more,
        parts=(*analytic.parts, part),
        source="probe",
        unknown=("how much more: the probe was stopped at the limit",),
        method="a lower bound: the probe itself was stopped at the limit",
    )
