"""A forecast from measurements: the analytic terms, scaled to what a probe measured.

A probe trains a few steps at small sizes (or at the very size in question), each in a child of its
own under the limit: memory that one size freed would count for the next. What is constant and what
grows with the batch each get a factor by least squares, held near 1 where the measurements say
nothing: a linear Gaussian model with the analytic estimate as its prior. So the same code is right
on Metal, CUDA and CPU, and after an upgrade of mlx.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import platformdirs
from pydantic import ValidationError

from oodatcaa.domain.base import Record
from oodatcaa.domain.memory import MemoryEstimate, MemoryPart, ModelShape
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.locks import FileLock
from oodatcaa.training.estimate import ACTIVATIONS, ADAPTER, BASELINE, SCRATCH, WEIGHTS, step_terms
from oodatcaa.training.formulas import Size, Terms, at_once
from oodatcaa.training.formulas import parts as side_by_side
from oodatcaa.training.frameworks import Framework
from oodatcaa.training.identity import cores
from oodatcaa.training.protocol import ProbePoint, ProbeSize

PRIOR = 0.5
"""Standard deviation of a term's factor before anything is measured."""
NOISE = 0.02
"""Of a measured peak, relative: the CPU scheduler runs ahead by a few tensors more or less, and
the heap grows in steps."""
MARGIN = 0.03
"""A forecast shall rather be over than under: added once for each doubling beyond what was
measured. With 1 % ten cases whose probes had half their tokens were 2 % under on average, from 9 %
under to 6 % over: what the heap loses to holes grows with the batch, too."""
HIDDEN = 0.01
"""A step whose peak is no more than this above that of loading may have needed much less."""
SPREAD = 0.02
"""Added where a framework schedules ahead: there the same step's peak is another one in another
process. 31 pairs of a forecast and a run of the same batch (checkpointed models on the CPU)
differed by 0.1 % on average and 1.8 % in standard deviation: so about 1 in 70 is still more than
2 % under, 1 in 20 more than 5 % over. The same where rows are on several threads, whose largest
moments meet or do not. Layers that evaluate as they are met on one thread were never 1 % under and
get no margin."""
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
    """The target itself when it has at most `budget` tokens; else up to four smaller sizes that
    tell tokens from length apart, one of them small enough to show a slope."""
    if target.tokens <= budget:
        return (_scaled(target, target.batch, target.length),)
    length = min(target.length, max(64, budget // 32 * 32))
    batch = max(1, min(target.batch, budget // length))
    half = max(32, length // 2 // 32 * 32)
    sizes = {(batch, length), (batch, half), (1, max(32, length // 4 // 32 * 32))}
    if batch > 1:
        sizes.add((1, length))
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

    def found(size: Size) -> Terms:
        return step_terms(shape, params, size, device=device, fast_cpu=fast_cpu)

    def growing(size: Size) -> tuple[int, int]:
        return _growing(found(size), nothing, params, device, fast_cpu)

    def features(size: Size, runtime: bool) -> tuple[float, float]:
        return sum(_constant(found(size), nothing, runtime)), sum(growing(size))

    nothing = found(Size(0, 0, 0))
    rows = [
        (_size(point.size), point.process_bytes + probed.beside_bytes, point.mlx_bytes)
        for point in probed.points
    ]
    loaded = probed.loaded_process_bytes + probed.beside_bytes
    process = fit([(features(size, True), peak) for size, peak, _ in rows], loaded)
    counted = [(features(size, False), peak) for size, _, peak in rows]
    counter = fit(counted, probed.loaded_mlx_bytes)
    beyond = max(0.0, math.log2(target.tokens / max(size.tokens for size, _, _ in rows)))
    margin = 1 + MARGIN * beyond + _spread(params, target.batch, device, fast_cpu)
    floor = max((process for size, process, _ in rows if _within(size, target)), default=0)
    parts = _parts(_constant(found(target), nothing, True), growing(target), process, margin)
    total = sum(part.bytes for part in parts)
    least = max(floor, loaded)
    if total < least:
        formula = "measured at a size that is no larger, or while loading"
        parts = (*parts, MemoryPart(name="measured beyond", bytes=least - total, formula=formula))
    mlx = sum(f * s for f, s in zip(features(target, False), counter, strict=True))
    return MemoryEstimate(
        total_bytes=max(total, least),
        parts=parts,
        device=device,
        method=_method(rows, target),
        mlx_peak_bytes=round(max(mlx * margin, probed.loaded_mlx_bytes)),
        source="probe",
    )


def _method(rows: Sequence[tuple[Size, int, int]], target: Size) -> str:
    if any(size == target for size, _, _ in rows):
        return f"measured in a probe of a few steps at {target.batch} x {target.length} tokens"
    sizes = ", ".join(f"{size.batch} x {size.length}" for size, _, _ in rows)
    return f"the estimate's terms fitted to probes of a few steps at {sizes} tokens"


def _size(size: ProbeSize) -> Size:
    return Size(size.batch, size.length, size.targets)


def _within(size: Size, target: Size) -> bool:
    return (
        size.batch <= target.batch
        and size.length <= target.length
        and size.targets <= target.targets
    )


def _constant(found: Terms, nothing: Terms, runtime: bool) -> tuple[int, int, int, int]:
    """Weights, what is trained, dense copies, runtime: the same for every batch."""
    dense = nothing.kept + nothing.moment
    return found.weights, found.trained, dense, found.runtime if runtime else 0


def _growing(
    found: Terms, nothing: Terms, params: QLoRA, device: str, fast_cpu: bool
) -> tuple[int, int]:
    """What the batch's size makes: kept activations, and the larger moment after the forward pass;
    without what a batch of `nothing` needs as well.

    Where layers evaluate as they are met the loss works in chunks of one size: it is constant but
    for the smallest batches, and would hide there how fast the rest grows. A checkpoint's copy
    counts where it is larger than all of that.
    """
    moment, least = found.moment, nothing.moment
    if at_once(params, device, fast_cpu):
        moment, least = found.block + found.scores, nothing.block + nothing.scores
    if found.saving > found.kept + moment:
        return 0, found.saving
    return found.kept - nothing.kept, max(0, moment - least)


def _spread(params: QLoRA, rows: int, device: str, fast_cpu: bool) -> float:
    as_met = at_once(params, device, fast_cpu)
    return 0.0 if as_met and side_by_side(params, rows, device, fast_cpu) == 1 else SPREAD


def _parts(
    constant: Sequence[int], growing: Sequence[int], scales: Sequence[float], margin: float
) -> tuple[MemoryPart, ...]:
    weights, trained, dense, runtime = constant
    kept, moment = growing
    named = (
        (WEIGHTS, weights, scales[0]),
        (ADAPTER, trained, scales[0]),
        (SCRATCH, dense, scales[0]),
        (BASELINE, runtime, scales[0]),
        (ACTIVATIONS, kept, scales[1]),
        ("loss, or one block on its way back", moment, scales[1]),
    )
    return tuple(
        MemoryPart(
            name=name,
            bytes=round(size * scale * margin),
            formula=f"{size / 1e9:.3f} GB by formula x {scale:.3f} measured x {margin:.3f} margin",
        )
        for name, size, scale in named
        if size
    )


def fit(rows: Sequence[tuple[Sequence[float], int]], loaded: int) -> list[float]:
    """`calibrate` without the peaks that are those of loading: of such a step only is known that
    it needed no more. One that the fit puts above its peak counts after all, and if there are no
    others the largest does: better over than under."""
    largest = max(rows, key=lambda row: sum(row[0]))
    used = [row for row in rows if row[1] > loaded * (1 + HIDDEN)] or [largest]
    hidden = [row for row in rows if row not in used]
    while True:
        scales = calibrate([line for line, _ in used], [peak for _, peak in used])
        over = [
            (line, peak)
            for line, peak in hidden
            if sum(f * s for f, s in zip(line, scales, strict=True)) > peak
        ]
        if not over:
            return scales
        hidden = [row for row in hidden if row not in over]
        used += over


def calibrate(features: Sequence[Sequence[float]], peaks: Sequence[int]) -> list[float]:
    """Factors s >= 0 that minimise sum((f·s - y)² / (NOISE y)²) + sum((s - 1)² / PRIOR²)."""
    count = len(features[0])
    free = list(range(count))
    while True:
        solved = _solve(features, peaks, free, count)
        negative = [k for k in free if solved[k] < 0]
        if not negative:
            return solved
        # An active-set step: what wants to be negative is nothing, the others are fitted again.
        free = [k for k in free if k not in negative]


def _solve(
    features: Sequence[Sequence[float]], peaks: Sequence[int], free: Sequence[int], count: int
) -> list[float]:
    size = len(free)
    matrix = [[0.0] * (size + 1) for _ in range(size)]
    for i, k in enumerate(free):
        matrix[i][i] += PRIOR**-2
        matrix[i][size] += PRIOR**-2
        for line, peak in zip(features, peaks, strict=True):
            weight = (NOISE * peak) ** -2
            matrix[i][size] += weight * line[k] * peak
            for j, other in enumerate(free):
                matrix[i][j] += weight * line[k] * line[other]
    # Symmetric and positive definite thanks to the prior: no pivoting needed.
    for i in range(size):
        for below in range(i + 1, size):
            factor = matrix[below][i] / matrix[i][i]
            matrix[below] = [b - factor * a for a, b in zip(matrix[i], matrix[below], strict=True)]
    result = [0.0] * count
    for i in reversed(range(size)):
        known = sum(matrix[i][j] * result[free[j]] for j in range(i + 1, size))
        result[free[i]] = (matrix[i][size] - known) / matrix[i][i]
    return result
