"""Put the adapters behind the ports of a role's desk."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path

from oodatcaa.app.activity import Broadcast
from oodatcaa.app.project import Project
from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.gate_presets import PRESETS
from oodatcaa.domain.memory import ModelShape
from oodatcaa.domain.objective import Objective
from oodatcaa.domain.plan import Inventory, Plan
from oodatcaa.domain.ports import TrainingBackend
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import DataFindings, DatasetRecord, RunRecord, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.config import QualityGate
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.machine import describe_machine
from oodatcaa.kit.process import Limits
from oodatcaa.kit.rehearsal import rehearse
from oodatcaa.roles.desk import Agents, Desk, ModelPlace
from oodatcaa.training import datasets
from oodatcaa.training.backend import ChildBackend
from oodatcaa.training.backends import BACKENDS, make_backend
from oodatcaa.training.children import ChildSettings
from oodatcaa.training.models import ModelStore
from oodatcaa.training.reservation import Reservation
from oodatcaa.training.runs import RunStore
from oodatcaa.training.shapes import read_shape
from oodatcaa.training.watching import PLOT_FILE
from oodatcaa.views.plots import can_plot

PINNED = (
    *("mlx", "mlx-lm", "mkl", "numpy", "tokenizers", "transformers", "safetensors"),
    *("torch", "peft"),
)


class ModelShelf:
    """`roles.desk.Models`, and the resolver that the training backend asks."""

    def __init__(self, say: Callable[[str], None], root: Path) -> None:
        self._store = ModelStore()
        self._root = root
        self.say = say

    def local(self, name: str) -> Path | None:
        """The model's folder if it is on this machine; None when it would have to be fetched.

        Raises OodatcaaError for what no fetching would mend.
        """
        try:
            found = self._store.resolve(self._name(name), require_local=True)
        except OodatcaaError as error:
            if error.code == "model.unavailable":
                return None
            raise
        return Path(found.path_or_hub)

    def _name(self, name: str) -> str:
        """A relative folder is meant from the project, wherever the command was typed."""
        folder = self._root / name
        return str(folder) if name.strip() and name != "demo" and folder.is_dir() else name

    def place(self, name: str) -> ModelPlace:
        found = self._store.resolve(self._name(name), say=self.say)
        return ModelPlace(
            name=name if name != "demo" else found.title,
            path=found.path_or_hub,
            sha256=found.sha256,
            licence=found.licence,
        )

    def resolve(self, model: str) -> Path:
        return Path(self._store.resolve(self._name(model), say=self.say).path_or_hub)

    def shape(self, path: str) -> ModelShape:
        return read_shape(Path(path))


def data_folder(project: Path, source: str) -> Path:
    """What `data` in OBJECTIVE.md means where it is a folder: "~", or relative to the project."""
    return project / Path(source).expanduser()


class DataShelf:
    """`roles.desk.Datasets` over models/data; a relative source is meant from the project."""

    def __init__(self, root: Path, project_root: Path) -> None:
        self._store = datasets.DataStore(root)
        self._project = project_root

    def _place(self, source: str) -> str:
        return source if source in datasets.STDLIB else str(data_folder(self._project, source))

    def build(
        self,
        source: str,
        *,
        model_path: str,
        params: QLoRA,
        say: Callable[[str], None] = lambda _: None,
    ) -> DatasetRecord:
        place = self._place(source)
        return self._store.build(place, model_path=model_path, params=params, say=say)

    def examine(self, path: str, *, model_path: str, params: QLoRA) -> DataFindings:
        return self._store.examine(path, model_path=model_path, params=params)

    def longest(self, source: str, model_path: str) -> int | None:
        return self._store.longest(self._place(source), model_path)

    def write_probe(self, folder: Path, examples: int, tokens: int) -> str:
        return self._store.write_probe(folder, examples, tokens)


class RunShelf:
    """`roles.desk.Runs` over models/runs."""

    def __init__(
        self,
        store: RunStore,
        backends: Mapping[str, TrainingBackend],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._backends = backends
        self._say = say

    def folder(self, run_id: str) -> Path:
        return self._store.folder(self.read(run_id))

    def read(self, run_id: str) -> RunRecord:
        return self._store.find(run_id)

    def resumed(self, spec: TrainSpec) -> tuple[TrainSpec, str] | None:
        self._store.recover()
        backend = self._backends[spec.backend]
        if not isinstance(backend, ChildBackend):
            return None
        found = backend.find_resumable(spec, self._say)
        return (found.apply(spec), found.run_id) if found is not None else None

    def plot(self, run_id: str, path: Path) -> bool:
        source = self.folder(run_id) / PLOT_FILE
        if not source.exists():
            return False
        write_atomic(path, source.read_bytes())
        return True


class StoryWorkspace:
    """`roles.desk.Workspace`: the story's worktree, committed to with the crew's git policy."""

    def __init__(self, project: Project, story: str, branch: str, base: str) -> None:
        self._repo = project.repo
        self._branch = branch
        self._path = self._repo.story_worktree(story, branch, base)

    @property
    def path(self) -> Path:
        return self._path

    def head(self) -> str:
        self._must_be_on_its_branch()
        sha = self._repo.head(self._path).sha
        assert sha is not None  # a story's branch is made at a commit
        return sha

    def _must_be_on_its_branch(self) -> None:
        """Whoever works there can set its HEAD on a branch of somebody else."""
        found = self._repo.current_branch(self._path)
        if found != self._branch:
            raise OodatcaaError(
                "git.not_ours",
                f"{self._path} is on {found or 'no branch'}, not on {self._branch}",
                hint=f"look: git -C '{self._path}' status",
            )

    def changed(self) -> bool:
        return bool(self._repo.dirty_paths(self._path))

    def commit(self, paths: Sequence[str], message: str) -> str | None:
        self._must_be_on_its_branch()
        everything = list(paths) == ["."]
        return self._repo.commit_files(self._path, None if everything else paths, message)


class Workshop:
    """Builds desks. Heavy parts (training, git) are made when a desk first needs them."""

    def __init__(self, project: Project) -> None:
        self.project = project

    @cached_property
    def runs(self) -> RunStore:
        return RunStore(self.project.models / "runs")

    def training(
        self, shelf: ModelShelf, name: str = "mlx", *, probes: bool = False
    ) -> TrainingBackend:
        """The backend of that name; with `probes` its runs are for measuring, and kept apart."""

        def waiting(holders: tuple[Reservation, ...]) -> None:
            shelf.say("waiting for memory: " + "; ".join(item.describe() for item in holders))

        return make_backend(
            name,
            RunStore(self.project.work / "probes") if probes else self.runs,
            shelf,
            on_wait=waiting,
            say=shelf.say,
            settings=self.children,
            learns=probes,
        )

    @property
    def children(self) -> ChildSettings:
        found = self.project.config.training
        return ChildSettings(
            found.sample_interval_ms, found.fast_cpu, found.control_group, found.trackers
        )

    def backends(self, shelf: ModelShelf, objective: Objective) -> dict[str, TrainingBackend]:
        """Every backend there is, the objective's first."""
        return {name: self.training(shelf, name) for name in self._ordered(objective)}

    def _ordered(self, objective: Objective) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*objective.backends, *BACKENDS)))

    def desk(
        self,
        agent: str,
        objective: Objective,
        *,
        broadcast: Broadcast | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        agents: Agents | None = None,
    ) -> Desk:
        project = self.project
        used = project.config.gates.limits
        say = broadcast.say if broadcast else (lambda _: None)
        shelf = ModelShelf(say, project.root)
        backends = self.backends(shelf, objective)
        return Desk(
            agent=agent,
            objective=objective,
            backends=backends,
            probers={
                name: self.training(shelf, name, probes=True) for name in self._ordered(objective)
            },
            models=shelf,
            datasets=DataShelf(project.models / "data", project.root),
            runs=RunShelf(self.runs, backends, say),
            facts=project.facts,
            machine=describe_machine(),
            quality_gates=quality_gates(project),
            profile_tokens=project.config.training.profile_tokens,
            now=lambda: datetime.now(UTC),
            plan_of=self.newest_plan,
            draft_of=project.drafts.get,
            plan_version=project.plans.load,
            inventory=self.inventory,
            read_board=project.store.read,
            git_state=self.git_state,
            scratch=project.work / "scratch" / agent,
            say=say,
            on_progress=broadcast.progress if broadcast else None,
            should_stop=should_stop,
            can_plot=can_plot(),
            pins=pins,
            agents=agents,
            command_limits=Limits(
                memory_bytes=used.memory_bytes,
                cpu_seconds=used.cpu_seconds,
                file_bytes=used.file_bytes,
            ),
            rehearsal=partial(rehearse, project.root, project.work),
        )

    def newest_plan(self, story_id: str) -> Plan | None:
        story = self.project.board().story_by_id.get(story_id)
        if story is None or story.plan_version == 0:
            return None
        return self.project.plans.load(story_id, story.plan_version)

    def inventory(self) -> Inventory:
        repo = self.project.repo
        return repo.inventory(self.project.sprint().target_branch).for_plan()

    def git_state(self) -> tuple[str, bool]:
        head = self.project.repo.head()
        return head.sha or "", bool(self.project.repo.dirty_paths())


def quality_gates(project: Project) -> tuple[GateSpec, ...]:
    """config.toml's commands and presets as gates G1, G2, …"""
    return tuple(
        _quality_gate(number, gate) for number, gate in enumerate(project.config.gates.quality, 1)
    )


def _quality_gate(number: int, gate: QualityGate) -> GateSpec:
    preset = PRESETS.get(gate.preset)
    name = gate.name or (preset.title if preset else "")
    return GateSpec(
        id=f"G{number}",
        name=name,
        kind=GateKind.COMMAND,
        command=gate.command or (preset.command if preset else ""),
        preset=gate.preset,
        baseline=gate.baseline,
        limits=gate.limits,
        timeout_seconds=gate.timeout_seconds or (preset.timeout_seconds if preset else 600),
        statement=f"the project's own check: {name}"
        + (", no worse than on the target branch" if gate.baseline else ""),
    )


def pins() -> dict[str, str]:
    """Versions of what training depends on, as installed here; what is not installed is absent."""
    found: Mapping[str, str] = {}
    for name in PINNED:
        try:
            found = {**found, name: importlib.metadata.version(name)}
        except importlib.metadata.PackageNotFoundError:
            continue
    return dict(found)
