"""Which models can be served here: bases, and the adapters of the run store on them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from oodatcaa.app.project import Project
from oodatcaa.domain.base import Record
from oodatcaa.domain.training import RunRecord, RunStatus, TrainSpec
from oodatcaa.errors import OodatcaaError, StateError
from oodatcaa.pool.records import AdapterInfo, PlacedBase
from oodatcaa.training.models import ModelStore
from oodatcaa.training.protocol import ADAPTERS_DIR, SPEC_FILE
from oodatcaa.training.runs import LATEST, RunStore

SEPARATOR = "::"
NAME_ONE = "name one: --model demo, or a model folder"


class Served(Record):
    """One model id. With a `problem` it can not be used, and that is why.

    `run_id` and `backend` are those of the run that made the adapter. `adapter_sha256` and
    `base_sha256` are what run.json promises; empty where nothing did.
    """

    id: str
    base: str
    base_path: str
    adapter_path: str | None = None
    run_id: str | None = None
    backend: str | None = None
    adapter_sha256: str = ""
    base_sha256: str = ""
    created: int = 0
    problem: str = ""


class Catalogue:
    """Model ids: `base`, `base::<run id>`, `base::latest`, and `base::<name>` for the adapters
    that were named by hand. Looked up anew each time: what a link names now counts.

    Runs of every backend are here. Two of one id have theirs in front: `base::hf/<run id>`.
    `latest` is the one that finished last of those that the backends' links name.
    """

    def __init__(
        self,
        project: Project | None,
        *,
        models: tuple[str, ...] = (),
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        self.project = project
        self.named = dict(adapters or {})
        self._models = models
        self._store = ModelStore()
        self._runs = RunStore(project.models / "runs") if project else None
        self._bases: dict[str, str] = {}
        self._found: dict[tuple[str, int | None], str] = {}
        for name in self._wanted():
            self._learn(name)

    @property
    def default(self) -> str:
        """The base that is meant when none is named."""
        if not self._bases:
            raise OodatcaaError(
                "model.none",
                "no base model is known here",
                hint=NAME_ONE,
            )
        return next(iter(self._bases))

    def place(self, model_id: str) -> PlacedBase:
        """`pool.Places`. Nothing is fetched."""
        path = self._bases.get(model_id)
        if path is None:
            found = self._store.resolve(model_id, require_local=True)
            return PlacedBase(name=model_id, path=found.path_or_hub, sha256=found.sha256)
        return PlacedBase(name=model_id, path=path, sha256=self._store.model_sha256(Path(path)))

    def list(self) -> tuple[Served, ...]:
        """Every id: each base, then its adapters, oldest first."""
        found = [*self._of_runs(), *(self._by_hand(name) for name in self.named)]
        bases = tuple(Served(id=n, base=n, base_path=p) for n, p in self._bases.items())
        order = {name: number for number, name in enumerate(self._bases)}
        listed = sorted(found, key=lambda served: order.get(served.base, len(order)))
        return tuple(
            item for base in bases for item in (base, *(s for s in listed if s.base == base.id))
        )

    def find(self, model_id: str) -> Served:
        """Raises OodatcaaError `model.unknown_id`, naming what there is."""
        if model_id in self._bases:
            return Served(id=model_id, base=model_id, base_path=self._bases[model_id])
        for served in self.list():
            if served.id == model_id:
                return served
        known = [served.id for served in self.list()]
        raise OodatcaaError(
            "model.unknown_id",
            f"there is no model {model_id!r} here",
            hint=f"oodatcaa models list (for example {known[-1]})" if known else NAME_ONE,
            details=known,
        )

    def check(self, served: Served, base: PlacedBase, info: AdapterInfo | None) -> None:
        """Raises StateError when a run's adapter or base is not the one that run.json names."""
        if served.problem:
            raise StateError("adapter.missing", served.problem, hint="oodatcaa runs")
        if info:
            self.check_weights(served, info.weights_sha256)
        if info and served.base_sha256 and base.sha256 != served.base_sha256:
            raise StateError(
                "adapter.base_changed",
                f"{served.id} was trained on another version of {served.base}",
                hint="restore that base model, or train again: oodatcaa train",
            )

    def check_weights(self, served: Served, found: str) -> None:
        """Raises StateError `adapter.checksum`."""
        if served.adapter_sha256 and found != served.adapter_sha256:
            raise StateError(
                "adapter.checksum",
                f"{served.id}: the weights are not those that run.json names: sha256 "
                f"{found[:12]}… instead of {served.adapter_sha256[:12]}…",
                hint="restore them from a copy, or train again: oodatcaa train",
            )

    def _wanted(self) -> Iterator[str]:
        yield from self._models
        if self.project is not None and not self._models:
            try:
                yield self.project.objective().model
            except OodatcaaError:
                # A project without an objective still has its runs' bases.
                return

    def _learn(self, name: str) -> None:
        if self.project is not None and name != "demo":
            folder = self.project.root / name
            name = str(folder) if folder.is_dir() else name
        try:
            found = self._store.resolve(name, require_local=True)
        except OodatcaaError:
            if self._models:
                raise
            return
        self._remember(Path(name).name if Path(name).is_dir() else name, found.path_or_hub)

    def _remember(self, name: str, path: str) -> str:
        """The id of a base folder; two folders of one name get their whole path."""
        for known, place in self._bases.items():
            if place == path:
                return known
        unique = path if name in self._bases else name
        self._bases[unique] = path
        return unique

    def _of_runs(self) -> Iterator[Served]:
        if self._runs is None:
            return
        runs = [run for run in self._runs.list().runs if run.status is RunStatus.FINISHED]
        uses = Counter(run.run_id for run in runs)
        found = [(run, self._of_run(run, own=uses[run.run_id] == 1)) for run in runs]
        yield from (served for _, served in found)
        linked = [(run, served) for run, served in found if self._is_latest(run)]
        if linked:
            _, newest = max(linked, key=lambda pair: _finished(pair[0]))
            yield newest.evolve(id=f"{newest.base}{SEPARATOR}{LATEST}")

    def _is_latest(self, run: RunRecord) -> bool:
        assert self._runs is not None
        link = self._runs.root / run.backend / LATEST
        return link.is_symlink() and link.resolve().name == run.run_id

    def _of_run(self, run: RunRecord, *, own: bool) -> Served:
        assert self._runs is not None
        folder = self._runs.folder(run)
        path, problem = self._base_of(run)
        base = self._remember(self._name_of(run, folder, path), path)
        adapter = folder / ADAPTERS_DIR
        if not adapter.is_dir():
            problem = problem or f"the adapter of run {run.run_id} is gone from {folder}"
        name = run.run_id if own else f"{run.backend}/{run.run_id}"
        return Served(
            id=f"{base}{SEPARATOR}{name}",
            base=base,
            base_path=path,
            adapter_path=str(adapter),
            run_id=run.run_id,
            backend=run.backend,
            adapter_sha256=run.adapter_sha256 or "",
            base_sha256="" if run.params.quantize_bits else run.model_sha256,
            created=int(run.started_at.timestamp()),
            problem=problem,
        )

    def _base_of(self, run: RunRecord) -> tuple[str, str]:
        """(folder, problem) of the base that the run trained on, requantised as it was."""
        key = (run.model, run.params.quantize_bits)
        if key in self._found:
            return self._found[key], ""
        try:
            path = Path(self._store.resolve(run.model, require_local=True).path_or_hub)
            if run.params.quantize_bits is not None:
                path = self._store.requantize(path, run.params.quantize_bits)
        except OodatcaaError as error:
            return run.model, error.message
        self._found[key] = str(path)
        return str(path), ""

    def _name_of(self, run: RunRecord, folder: Path, path: str) -> str:
        try:
            text = (folder / SPEC_FILE).read_text(encoding="utf-8")
            name = TrainSpec.model_validate_json(text).model_name
        except (OSError, ValueError):
            name = ""
        name = Path(name).name if name and Path(name).is_dir() else name
        bits = run.params.quantize_bits
        return (name or Path(path).name) + (f"@{bits}bit" if bits else "")

    def _by_hand(self, name: str) -> Served:
        folder = self.named[name].expanduser().resolve()
        base = self._base_named_by(folder) or self.default
        return Served(
            id=f"{base}{SEPARATOR}{name}",
            base=base,
            base_path=self._bases[base],
            adapter_path=str(folder),
            problem="" if folder.is_dir() else f"{folder} is not a folder",
        )

    def _base_named_by(self, folder: Path) -> str | None:
        """The known base that the adapter's own config names; most name a folder or a hub id."""
        try:
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            named = str(config.get("model") or config.get("base_model_name_or_path") or "")
        except (OSError, ValueError, AttributeError):
            return None
        for base, path in self._bases.items():
            if named and (named in (base, path) or Path(named).resolve() == Path(path).resolve()):
                return base
        return None


def _finished(run: RunRecord) -> tuple[datetime, str, str]:
    return run.finished_at or run.started_at, run.run_id, run.backend
