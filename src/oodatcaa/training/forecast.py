"""A forecast from measurements: the nearest measured peak, and how it grows from there.

A probe trains a few steps at small sizes (or at the very size in question), each in a child of its
own under the limit: memory that one size freed would count for the next. How fast a step grows is
read from the framework's own counter, not from the process: a process that has loaded a model keeps
what loading freed, and small steps hide in that. The analytic terms say in which way it grows: what
is constant and what grows with the batch each get a factor by least squares, held near 1 where the
measurements say nothing (a linear Gaussian model with the analytic estimate as its prior). So the
same code is right on Metal, CUDA and CPU, and after an upgrade of mlx.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from pydantic import ValidationError

from oodatcaa.domain.base import Record
from oodatcaa.domain.memory import MemoryEstimate, MemoryPart, ModelShape
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.locks import FileLock
from oodatcaa.training.estimate import ACTIVATIONS, ADAPTER, BASELINE, SCRATCH, WEIGHTS, step_terms
from oodatcaa.training.formulas import Size, Terms, at_once, block_of
from oodatcaa.training.formulas import parts as side_by_side
from oodatcaa.training.frameworks import Framework
from oodatcaa.training.identity import cores
from oodatcaa.training.protocol import ProbePoint, ProbeSize

PRIOR = (0.5, 0.5)
"""Standard deviations of the factors before anything is measured: of what is constant, and of what
grows with the batch."""
PRIOR_UNKNOWN = (0.5, 2.0)
"""The same where a model has blocks that the terms do not know, or contradicts them: experts may
make several times of what is expected grow with the batch."""
PRIOR_AT_ONCE = (0.1, 0.02)
"""The same where layers evaluate as they are met, whose analytic estimate is near. Of seven priors
that were tried on 56 probes of half a batch five gave the same standard deviation (1.8 %), and this
one the smallest largest errors."""
NOISE = 0.02
"""Of a counted peak, relative, for the step nearest in size to what is asked for: the CPU scheduler
runs ahead by a few tensors more or less. Twice as much for one that is twice as far, and so on:
what a small step holds at its peak is not what makes a large one's."""
FAR = 4
"""Of NOISE, up to four times that for steps that are far in size: measured peaks that are further
from a fit contradict its prior."""
HIDDEN = 0.01
"""A step whose peak is no more than this above that of loading may have needed much less."""
SPREAD = 0.02
"""Added where a framework schedules ahead, and where rows are on several threads, whose largest
moments meet or do not: there the same step's peak is another one in another process. 27 pairs of a
probe and a run of the same batch (random models, 2 CPU cores) differed by -0.4 % on average and
1.1 % in standard deviation; layers that evaluate as they are met on one thread by 0.3 % at most."""
SPREAD_LOGITS = 0.06
"""The same for rows on several threads where layers evaluate as they are met and a model changes
its logits. They are there as a whole, and those of two threads together now and then: the same
batch of a small model took 315 to 349 MB. On one thread 440 and 465 MB were seen."""
SPREAD_BEYOND = 0.02
"""For a batch that was not measured itself; where layers evaluate as they are met once for each
doubling beyond what was. Without it 56 forecasts from half of the tokens were from 4.8 % under to
4.8 % over the peaks that the terms were fitted to, 1.8 % in standard deviation. What is further
away was not measured: a growth that is slightly wrong adds up."""
MARGIN = 0.05
"""A forecast shall rather be over than under: added where a framework schedules ahead, or where the
terms are not those of the model, once for each doubling beyond what was measured. Without it 15
forecasts of twice the tokens in graphs of MLX's CPU device were from 7 % under to 10 % over: how
far it gets ahead is not the same at every size."""
REACH = 4
"""A cached probe answers for batches of at most this many times its tokens."""
REACH_LENGTH = 2
"""And for rows of at most this many times its length: attention grows with the square."""
FOLDER = "probes"
LOCK = ".lock"
WORKER_SOURCES = (
    "engine.py",
    "examples.py",
    "formulas.py",
    "monitor.py",
    "packing.py",
    "probing.py",
)
"""What every backend's worker runs besides its own."""


class Probed(Record):
    """What probes of one family measured; a family shares everything but the batch's size."""

    schema_version: int = 1
    family: dict[str, str]
    points: tuple[ProbePoint, ...] = ()
    loaded_mlx_bytes: int = 0
    loaded_process_bytes: int = 0
    beside_bytes: int = 0
    """What the process tree holds beside the process that trains."""
    loss: str = ""


def family(model: str, versions: dict[str, str], device: str, params: QLoRA) -> dict[str, str]:
    """What two specs must share for one probe to answer for both. `model` is a content hash."""
    same = {
        "model": model,
        "device": device,
        "fine_tune_type": params.fine_tune_type.value,
        "optimizer": params.optimizer.value,
        "rank": str(params.rank),
        "num_layers": str(params.num_layers),
        "keys": ",".join(params.keys) if params.keys is not None else "every",
        "grad_checkpoint": str(params.grad_checkpoint),
        "grad_checkpoint_layers": str(params.grad_checkpoint_layers),
        "accumulates": str(params.grad_accumulation_steps > 1),
        "dropout": str(params.dropout > 0),
        "quantize_bits": str(params.quantize_bits),
        "packing": str(params.packing),
        "dense_weights": str(params.dense_weights),
        "cache_frozen": str(params.cache_frozen),
        "cores": str(cores()),
    }
    return {**same, **{f"version of {name}": version for name, version in versions.items()}}


def worker_versions(framework: Framework) -> dict[str, str]:
    """Versions that decide memory, and a hash of the worker's own source."""
    import importlib.metadata

    found = {}
    for name in framework.versions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    source = hashlib.sha256()
    shared = (framework.folder.parent / name for name in WORKER_SOURCES)
    for path in (*sorted(framework.folder.glob("*.py")), *shared):
        source.update(path.read_bytes())
    return {**found, "worker": source.hexdigest()[:16]}


class ProbeCache:
    """Probes in the user's cache folder, one file per family; OODATCAA_PROBES names another."""

    def __init__(self, folder: Path | None = None) -> None:
        named = os.environ.get("OODATCAA_PROBES")
        default = Path(named) if named else platformdirs.user_cache_path("oodatcaa") / FOLDER
        self.folder = folder or default

    def read(self, same: dict[str, str]) -> Probed:
        """What is known of this family; an unreadable file is measured again."""
        try:
            found = Probed.model_validate_json(self._path(same).read_bytes())
        except (OSError, ValidationError):
            return Probed(family=same)
        return found if found.family == same else Probed(family=same)

    def add(self, new: Probed) -> Probed:
        """Keep these points beside the older ones; a size measured again keeps its larger peak."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK, what="the folder of probes", note=False)
        # Two that measure one family at once must not lose each other's points.
        with contextlib.closing(lock), lock.held():
            before = self.read(new.family)
            known = {point.size: point for point in before.points}
            for point in new.points:
                old = known.get(point.size)
                known[point.size] = point if old is None else _larger(old, point)
            merged = new.evolve(
                points=tuple(known.values()),
                loaded_mlx_bytes=max(before.loaded_mlx_bytes, new.loaded_mlx_bytes),
                loaded_process_bytes=max(before.loaded_process_bytes, new.loaded_process_bytes),
            )
            write_atomic(self._path(new.family), merged.model_dump_json(indent=1) + "\n")
        return merged

    def _path(self, same: dict[str, str]) -> Path:
        text = "\n".join(f"{key}={value}" for key, value in sorted(same.items()))
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _larger(old: ProbePoint, new: ProbePoint) -> ProbePoint:
    return new.evolve(
        mlx_bytes=max(old.mlx_bytes, new.mlx_bytes),
        process_bytes=max(old.process_bytes, new.process_bytes),
    )


def probe_sizes(target: Size, budget: int) -> tuple[ProbeSize, ...]:
    """The target itself when it has at most `budget` tokens; else three sizes within it that tell
    what is constant from what grows.

    Steps far below the budget say little: their peaks are made of what a large step does not hold
    at its own. Several rows in one of them where the target has them, for they run side by side.
    """
    if target.tokens <= budget:
        return (_scaled(target, target.batch, target.length),)
    length = min(target.length, max(64, budget // 32 * 32))
    batch = max(1, min(target.batch, budget // length))
    half = max(32, length // 2 // 32 * 32)
    if batch == 1 and target.batch > 1:
        several = max(2, min(target.batch, budget // half))
        sizes = {(several, half), (1, half), (1, length)}
    else:
        sizes = {(batch, half), (batch, max(32, length * 3 // 4 // 32 * 32)), (batch, length)}
    return tuple(_scaled(target, *size) for size in sorted(sizes))


def _scaled(target: Size, batch: int, length: int) -> ProbeSize:
    share = target.targets / target.tokens
    return ProbeSize(batch=batch, length=length, targets=max(1, math.ceil(share * batch * length)))


def answers(probed: Probed, target: Size) -> bool:
    """Whether these points can forecast `target` without measuring again."""
    tokens = max((p.size.batch * p.size.length for p in probed.points), default=0)
    length = max((p.size.length for p in probed.points), default=0)
    return tokens * REACH >= target.tokens and length * REACH_LENGTH >= target.length


def forecast(
    probed: Probed,
    shape: ModelShape,
    params: QLoRA,
    target: Size,
    device: str,
    *,
    fast_cpu: bool = True,
) -> MemoryEstimate:
    """The peak at `target`, by cause, from the points of `probed` (at least one)."""

    nothing = step_terms(shape, params, Size(0, 0, 0), device=device, fast_cpu=fast_cpu)

    def found(size: Size) -> Terms:
        return step_terms(shape, params, size, device=device, fast_cpu=fast_cpu)

    eager = at_once(device, fast_cpu)

    def growing(size: Size) -> tuple[int, int]:
        return _growing(found(size), nothing, eager=eager, tiled=not shape.dense_logits)

    def features(size: Size) -> tuple[float, float]:
        return sum(_constant(found(size), nothing, device)), sum(growing(size))

    def counted(size: Size) -> float:
        return sum(f * s for f, s in zip(features(size), scales, strict=True))

    points = {_size(point.size): point for point in probed.points}
    nearest = min(_times(size, target) for size in points)
    rows = [
        Step(features(size), point.mlx_bytes, NOISE * _times(size, target) / nearest)
        for size, point in points.items()
    ]
    known = not block_of(shape).unknown
    trusted = known and eager
    prior = PRIOR_AT_ONCE if trusted else PRIOR if known else PRIOR_UNKNOWN
    scales = fit(rows, probed.loaded_mlx_bytes, prior)
    if _far(rows, scales, probed.loaded_mlx_bytes):
        trusted, scales = False, fit(rows, probed.loaded_mlx_bytes, PRIOR_UNKNOWN)
    near = min(points, key=lambda size: _distance(size, target))
    held = max(points[near].process_bytes, points[near].mlx_bytes)
    runtime = round(max(0, held - counted(near))) + probed.beside_bytes
    if eager:  # the heap's holes grow with what is in it, and each part has a thread
        runtime += max(0, found(target).runtime - found(near).runtime)
    together = side_by_side(params, target.batch, device, fast_cpu)
    spread = _spread(shape, together, eager=eager)
    margin = 1 + _margin(near, target, spread, trusted=trusted)
    constant = _constant(found(target), nothing, device)
    parts = _parts(constant, growing(target), runtime, scales, margin)
    total = sum(part.bytes for part in parts)
    within = [point for size, point in points.items() if _within(size, target)]
    seen = (point.mlx_bytes for point in within)
    least = max(probed.loaded_process_bytes, *(point.process_bytes for point in within), 0)
    least += probed.beside_bytes
    if total < least:
        formula = "measured at a size that is no larger, or while loading"
        parts = (*parts, MemoryPart(name="measured beyond", bytes=least - total, formula=formula))
    return MemoryEstimate(
        total_bytes=max(total, least),
        parts=parts,
        device=device,
        method=_method(points, target),
        mlx_peak_bytes=max(round(counted(target) * margin), probed.loaded_mlx_bytes, *seen),
        source="probe",
    )


def _method(points: Collection[Size], target: Size) -> str:
    if target in points:
        return f"measured in a probe of a few steps at {target.batch} x {target.length} tokens"
    sizes = ", ".join(f"{size.batch} x {size.length}" for size in points)
    return f"the estimate's terms fitted to probes of a few steps at {sizes} tokens"


def _size(size: ProbeSize) -> Size:
    return Size(size.batch, size.length, size.targets)


def _times(size: Size, target: Size) -> float:
    """How many times larger or smaller, at least 1."""
    ratio = size.tokens / target.tokens
    return max(ratio, 1 / ratio)


def _distance(size: Size, target: Size) -> tuple[float, int, int]:
    """Between tokens first; rows side by side have threads and holes of their own in the heap."""
    ratio = abs(math.log(size.tokens / target.tokens))
    return ratio, abs(size.batch - target.batch), abs(size.targets - target.targets)


def _within(size: Size, target: Size) -> bool:
    return (
        size.batch <= target.batch
        and size.length <= target.length
        and size.targets <= target.targets
    )


def _constant(found: Terms, nothing: Terms, device: str) -> tuple[int, int, int]:
    """What the framework counts for every batch: weights, what is trained, dense copies.

    PyTorch has no counter on a CPU: the whole process stands for it.
    """
    dense = nothing.kept + nothing.moment + (found.runtime if device == "torch-cpu" else 0)
    return found.weights, found.trained, dense


def _growing(found: Terms, nothing: Terms, *, eager: bool, tiled: bool) -> tuple[int, int]:
    """What the batch's size makes: kept activations, and the larger moment after the forward pass;
    without what a batch of `nothing` needs as well.

    Where layers evaluate as they are met (`eager`) the loss works in tiles of one size unless the
    model does something to its logits: it is constant but for the smallest batches, and would hide
    there how fast the rest grows; gradients of all weights may be more than what small batches
    keep. Saving is left out: its copies are there when activations are not, and no probe was seen
    to peak in it.
    """
    moment, least = found.moment, nothing.moment
    kept = found.kept - nothing.kept
    if eager:
        if tiled:
            moment, least = found.block + found.scores, nothing.block + nothing.scores
        moment = max(moment, found.after - kept + least)
    return kept, max(0, moment - least)


def _spread(shape: ModelShape, together: int, *, eager: bool) -> float:
    """Relative: by how much a step's peak is another one in another process. `together`: parts of a
    batch that are computed side by side."""
    if eager and shape.dense_logits:
        return SPREAD_LOGITS if together > 1 else SPREAD
    return 0.0 if eager and together == 1 else SPREAD


def _margin(near: Size, target: Size, spread: float, *, trusted: bool) -> float:
    """Relative; `near` is what was measured nearest to the target. `trusted`: the terms are known
    to be near."""
    if near == target:
        return spread
    # Of tokens, or of rows that are longer: scores grow with the square.
    doublings = math.log2(max(1.0, target.tokens / near.tokens, target.length / near.length))
    if trusted:
        return SPREAD_BEYOND * max(1.0, doublings)
    return max(SPREAD_BEYOND, SPREAD + MARGIN * doublings)


def _parts(
    constant: Sequence[int],
    growing: Sequence[int],
    runtime: int,
    scales: Sequence[float],
    margin: float,
) -> tuple[MemoryPart, ...]:
    fitted, grown = scales
    names = (WEIGHTS, ADAPTER, SCRATCH, ACTIVATIONS, "loss, or one block on its way back")
    sizes = (*constant, *growing)
    factors = (*(fitted for _ in constant), *(grown for _ in growing))
    parts = [
        MemoryPart(
            name=name,
            bytes=round(size * scale * margin),
            formula=f"{size / 1e9:.3f} GB by formula x {scale:.3f} measured x {margin:.3f} margin",
        )
        for name, size, scale in zip(names, sizes, factors, strict=True)
        if size
    ]
    formula = f"measured beside what the framework counts x {margin:.3f} margin"
    return (*parts, MemoryPart(name=BASELINE, bytes=round(runtime * margin), formula=formula))


@dataclass(frozen=True)
class Step:
    """One that was measured: its terms, its counted peak, and the standard deviation of that."""

    terms: Sequence[float]
    peak: int
    noise: float = NOISE

    def off(self, scales: Sequence[float]) -> float:
        """Bytes by which the scaled terms are over the peak."""
        return sum(f * s for f, s in zip(self.terms, scales, strict=True)) - self.peak


def fit(rows: Sequence[Step], loaded: int, prior: Sequence[float] = PRIOR) -> list[float]:
    """`calibrate` without the peaks that are those of loading: of such a step only is known that
    it needed no more. One that the fit puts above its peak counts after all, and if there are no
    others the largest does: better over than under."""
    largest = max(rows, key=lambda row: sum(row.terms))
    used = [row for row in rows if row.peak > loaded * (1 + HIDDEN)] or [largest]
    hidden = [row for row in rows if row not in used]
    while True:
        scales = calibrate(used, prior)
        over = [row for row in hidden if row.off(scales) > 0]
        if not over:
            return scales
        hidden = [row for row in hidden if row not in over]
        used += over


def _far(rows: Sequence[Step], scales: Sequence[float], loaded: int) -> bool:
    """Whether what was measured contradicts the factors: the terms are not those of this model."""
    seen = (row for row in rows if row.peak > loaded * (1 + HIDDEN))
    return any(abs(row.off(scales)) > FAR * min(row.noise, 4 * NOISE) * row.peak for row in seen)


def calibrate(rows: Sequence[Step], prior: Sequence[float] = PRIOR) -> list[float]:
    """Factors s >= 0 that minimise sum((f·s - y)² / (noise y)²) + sum((s - 1)² / prior²)."""
    import numpy as np

    lines = np.asarray([row.terms for row in rows], float)
    noises = np.asarray([row.noise for row in rows], float)
    measured = np.asarray([row.peak for row in rows], float)
    count = lines.shape[1]
    near_one = 1 / np.asarray(prior, float)
    matrix = np.vstack([lines / (noises * measured)[:, None], np.diag(near_one)])
    wanted = np.concatenate([1 / noises, near_one])
    free = list(range(count))
    while True:
        solved = np.zeros(count)
        solved[free] = np.linalg.lstsq(matrix[:, free], wanted, rcond=None)[0]
        if (solved >= 0).all():
            return [float(scale) for scale in solved]
        # An active-set step: what wants to be negative is nothing, the others are fitted again.
        free = [k for k in free if solved[k] > 0]
