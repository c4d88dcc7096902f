"""A prepared place for command gates: a fresh worktree and an environment that imports from it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from oodatcaa.domain.evidence import ResourceLimits
from oodatcaa.domain.gate_presets import preset_for
from oodatcaa.errors import OodatcaaError
from oodatcaa.gates.environment import check_origin, choose_python, gate_environment
from oodatcaa.gates.environments import CachedEnvironment, clear_old, environment_for
from oodatcaa.gates.ports import Checkouts, GateRequest
from oodatcaa.gates.store import EvidenceStore
from oodatcaa.gates.variables import UnknownVariables, exported, fill
from oodatcaa.kit.config import GatesConfig
from oodatcaa.kit.process import CommandResult, Limits, run_command
from oodatcaa.kit.rehearsal import rehearse

SETUP_TIMEOUT_S = 1800.0
VERSIONS_TIMEOUT_S = 60.0

_ASK_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"platform": platform.platform(), "python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
sys.stdout.write("\\n" + json.dumps(found) + "\\n")
"""


@dataclass
class Bench:
    """A prepared worktree. `problem` set = commands can not say anything about the commit."""

    worktree: Path
    python: Path
    env: dict[str, str]
    values: dict[str, str]
    code_path: str | None = None
    keep: tuple[str, ...] = ()
    index: bytes = b""
    reports: Path | None = None
    problem: str = ""
    spoilt: bool = False
    environment: CachedEnvironment | None = None
    tools: dict[str, str] = field(default_factory=dict)


class Benches:
    """Makes benches for one project."""

    def __init__(
        self,
        checkouts: Checkouts,
        store: EvidenceStore,
        config: GatesConfig,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._checkouts = checkouts
        self._store = store
        self._config = config
        self._should_stop = should_stop

    def prepare(self, stack: ExitStack, request: GateRequest) -> Bench:
        """A bench that lasts as long as `stack`; what went wrong is its `problem`."""
        worktree = stack.enter_context(
            self._checkouts.check_worktree(request.commit, f"gates-{request.task}")
        )
        shims = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oodatcaa-gates-")))
        cached = environment_for(
            self._checkouts.root,
            worktree,
            self._config.setup,
            self._config.cache_by,
            self._config.python,
        )
        copy = rehearse(self._checkouts.root, self._store.work_dir, shims / "work")
        bench = self._bench(worktree, shims / "first", request, "", cached)
        bench.env |= copy
        index = self._checkouts.index_of(worktree)
        with cached.held() if cached else nullcontext():
            self._furnish(bench, request, cached)
        # Setup may have made the environment that the gates run in, but no change to the code.
        made = self._checkouts.dirty_paths(worktree)
        self._checkouts.restore(worktree, request.commit, made, index)
        bench.keep = self._checkouts.dirty_paths(worktree)
        if bench.problem:
            return bench
        python = self._config.python
        if cached is not None:
            python = python.replace("{env}", str(cached.folder)) or str(
                cached.folder / "bin/python"
            )
        final = self._bench(worktree, shims / "gates", request, python, cached)
        final.env |= copy
        final.keep, final.index = bench.keep, index
        final.reports = shims
        if not final.python.is_file():
            final.problem = f"the gates' interpreter {final.python} does not exist"
            return final
        origin = check_origin(
            worktree, final.python, final.env, self._checkouts.root, self._config.packages
        )
        final.problem, final.code_path = origin.problem, origin.describe(worktree)
        if not final.problem:
            final.tools = self._versions(final, request)
        return final

    def execute(
        self,
        line: str,
        bench: Bench,
        output: Path,
        timeout: float,
        limits: ResourceLimits | None,
        env: dict[str, str] | None = None,
    ) -> CommandResult | str:
        """Run one line in the bench; a string says why it could not be started."""
        used = limits or ResourceLimits()
        try:
            return run_command(
                line,
                cwd=bench.worktree,
                env=bench.env if env is None else env,
                timeout=timeout,
                output_path=output,
                should_stop=self._should_stop,
                limits=Limits(
                    memory_bytes=used.memory_bytes,
                    cpu_seconds=used.cpu_seconds,
                    file_bytes=used.file_bytes,
                ),
            )
        except (OodatcaaError, OSError) as error:
            return f"could not be started: {error}"

    def tidy(self, bench: Bench, commit: str) -> tuple[tuple[str, ...], str]:
        """Undo what a gate did to the code and say it: (changed tracked paths, a note).

        A changed cached environment is thrown away, or the next check would run in it.
        """
        notes = []
        changed: tuple[str, ...] = ()
        try:
            changed = self._checkouts.restore(bench.worktree, commit, bench.keep, bench.index)
        except (OodatcaaError, OSError) as error:
            bench.spoilt = True
            note = f"the next gate gets a fresh worktree: {error}"
            return ("its whole worktree",), note
        if changed:
            notes.append(f"it changed {len(changed)} paths, undone: {some(changed)}")
        if bench.environment is not None:
            with bench.environment.held():
                if not bench.environment.is_intact():
                    bench.environment.clear()
                    bench.spoilt = True
                    notes.append("it changed its environment, which is made again")
        tracked = self._checkouts.sizes_at(commit) if changed else {}
        return tuple(path for path in changed if path in tracked), "; ".join(notes)

    def _bench(
        self,
        worktree: Path,
        shims: Path,
        request: GateRequest,
        configured: str,
        cached: CachedEnvironment | None,
    ) -> Bench:
        python = choose_python(configured, worktree)
        values = {**request.variables, "python": str(python), "worktree": str(worktree)}
        if cached is not None:
            values["env"] = str(cached.folder)
        env = gate_environment(worktree, python, self._checkouts.root, shims) | exported(values)
        return Bench(worktree, python, env, values, environment=cached)

    def _furnish(
        self, bench: Bench, request: GateRequest, cached: CachedEnvironment | None
    ) -> None:
        if cached is not None:
            if cached.is_intact():
                cached.touch()
                return
            cached.clear()
        for number, command in enumerate(self._config.setup):
            if not bench.problem:
                bench.problem = self._set_up(command, bench, request, number)
        if cached is not None and not bench.problem:
            cached.folder.mkdir(parents=True, exist_ok=True)
            cached.complete()
            clear_old(self._checkouts.root, cached.key)

    def _set_up(self, command: str, bench: Bench, request: GateRequest, number: int) -> str:
        """Run one setup command; what went wrong, empty = nothing."""
        try:
            line = fill(command, bench.values)
        except UnknownVariables as error:
            return f"setup command {command!r}: {error}"
        label = f"setup-{number + 1}"
        name = self._store.reserve(request.story, request.task, request.attempt, label)
        output = self._store.output_file(name)
        result = self.execute(line, bench, output, SETUP_TIMEOUT_S, None)
        if isinstance(result, str):
            return f"setup command {command!r}: {result}"
        if result.ok:
            output.unlink()
            return ""
        how = "did not end in time" if result.timed_out else f"exit code {result.exit_code}"
        return f"setup command {command!r} failed ({how}); see {self._store.relative(output)}"

    def _versions(self, bench: Bench, request: GateRequest) -> dict[str, str]:
        presets = [preset_for(gate.command, gate.preset) for gate in request.gates]
        names = {name for preset in presets if preset for name in preset.distributions}
        result = run_command(
            [str(bench.python), "-c", _ASK_VERSIONS, *sorted(names)],
            cwd=bench.worktree,
            env=bench.env,
            timeout=VERSIONS_TIMEOUT_S,
        )
        try:
            found = json.loads(result.tail.strip().splitlines()[-1]) if result.ok else {}
        except (ValueError, IndexError):
            return {}
        return {str(name): str(version) for name, version in found.items()}


def some(paths: tuple[str, ...]) -> str:
    return ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
