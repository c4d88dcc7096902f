"""Run gates where the submitted commit is the only code there is, and keep what was seen."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec, Verdict
from oodatcaa.errors import OodatcaaError
from oodatcaa.gates.environment import check_origin, choose_python, gate_environment
from oodatcaa.gates.judging import (
    Judgement,
    crashed,
    judge_command,
    judge_files,
    judge_metric,
    waive,
    with_note,
)
from oodatcaa.gates.ports import Checkouts, GateRequest, MetricSource
from oodatcaa.gates.store import EvidenceStore
from oodatcaa.gates.variables import UnknownVariables, exported, fill
from oodatcaa.kit.clock import utc_now
from oodatcaa.kit.config import GatesConfig
from oodatcaa.kit.process import CommandResult, run_command

SETUP_TIMEOUT_S = 1800.0


@dataclass
class _Bench:
    """A prepared worktree. `problem` set = commands can not say anything about the commit."""

    worktree: Path
    python: Path
    env: dict[str, str]
    values: dict[str, str]
    code_path: str | None = None
    keep: tuple[str, ...] = ()
    problem: str = ""
    spoilt: bool = False


@dataclass
class _Seen:
    """What a gate showed, before waivers."""

    judgement: Judgement
    facts: dict[str, object] = field(default_factory=dict)


class GateRunner:
    """Runs every gate of a request, also after failures, and stores evidence for each.

    Nothing an agent reported is looked at. Commands run in a fresh worktree at the commit, with
    the project's code imported from there (else their evidence is crashed); metrics are
    recomputed by `metrics`; files are read from the commit itself.
    """

    def __init__(
        self,
        checkouts: Checkouts,
        store: EvidenceStore,
        config: GatesConfig | None = None,
        *,
        metrics: MetricSource | None = None,
        clock: Callable[[], datetime] = utc_now,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._checkouts = checkouts
        self._store = store
        self._config = config or GatesConfig()
        self._metrics = metrics
        self._clock = clock
        self._should_stop = should_stop

    def run(
        self, request: GateRequest, *, on_evidence: Callable[[Evidence], None] | None = None
    ) -> tuple[Evidence, ...]:
        """One evidence per gate, in order, each durable before the next gate starts.

        Raises OodatcaaError only when the commit does not exist, the worktree can not be made or
        the store can not be written; everything else is a verdict.
        """
        request = request.evolve(commit=self._checkouts.resolve(request.commit))
        gathered: list[Evidence] = []
        with ExitStack() as stack:
            bench: _Bench | None = None
            for gate in request.gates:
                stopped = self._should_stop is not None and self._should_stop()
                fresh = bench is None or bench.spoilt
                if gate.kind is GateKind.COMMAND and fresh and not stopped:
                    bench = self._prepare(stack, request)
                evidence = self._gather(gate, request, bench, stopped=stopped)
                self._store.save(evidence)
                gathered.append(evidence)
                if on_evidence is not None:
                    on_evidence(evidence)
        return tuple(gathered)

    def _gather(
        self, gate: GateSpec, request: GateRequest, bench: _Bench | None, *, stopped: bool
    ) -> Evidence:
        started_at, clock = self._clock(), time.monotonic()
        name = self._store.reserve(request.story, request.task, request.attempt, gate.id)
        if stopped:
            seen = _Seen(Judgement(verdict=Verdict.NOT_RUN, detail="stopped before it began"))
        elif gate.kind is GateKind.COMMAND:
            assert bench is not None
            seen = self._command(gate, request, bench, name)
        elif gate.kind is GateKind.METRIC:
            seen = self._metric(gate, request)
        else:
            sizes = self._checkouts.sizes_at(request.commit)
            seen = _Seen(judge_files(gate, sizes))
        if "output_path" not in seen.facts:
            self._store.output_file(name).unlink(missing_ok=True)
        evidence = Evidence.model_validate(
            {
                "id": name,
                "gate": gate,
                "story": request.story,
                "task": request.task,
                "attempt": request.attempt,
                "commit": request.commit,
                "host": socket.gethostname(),
                "started_at": started_at,
                "duration_seconds": time.monotonic() - clock,
                "verdict": seen.judgement.verdict,
                "detail": seen.judgement.detail,
                **seen.facts,
            }
        )
        return waive(evidence, request.waivers, self._clock())

    # -- commands

    def _prepare(self, stack: ExitStack, request: GateRequest) -> _Bench:
        worktree = stack.enter_context(
            self._checkouts.check_worktree(request.commit, f"gates-{request.task}")
        )
        shims = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oodatcaa-gates-")))
        bench = self._bench(worktree, shims / "first", request, configured="")
        for number, command in enumerate(self._config.setup):
            if not bench.problem:
                bench.problem = self._set_up(command, bench, request, number)
        # Setup may have made the environment that the gates run in, but no change to the code.
        made = self._checkouts.dirty_paths(worktree)
        self._checkouts.restore(worktree, request.commit, made)
        bench.keep = self._checkouts.dirty_paths(worktree)
        if bench.problem:
            return bench
        final = self._bench(worktree, shims / "gates", request, configured=self._config.python)
        final.keep = bench.keep
        if not final.python.is_file():
            final.problem = f"the gates' interpreter {final.python} does not exist"
            return final
        origin = check_origin(
            worktree, final.python, final.env, self._checkouts.root, self._config.packages
        )
        final.problem, final.code_path = origin.problem, origin.describe(worktree)
        return final

    def _bench(
        self, worktree: Path, shims: Path, request: GateRequest, *, configured: str
    ) -> _Bench:
        python = choose_python(configured, worktree)
        values = {**request.variables, "python": str(python), "worktree": str(worktree)}
        env = gate_environment(worktree, python, self._checkouts.root, shims) | exported(values)
        return _Bench(worktree=worktree, python=python, env=env, values=values)

    def _set_up(self, command: str, bench: _Bench, request: GateRequest, number: int) -> str:
        """Run one setup command; what went wrong, empty = nothing."""
        try:
            line = fill(command, bench.values)
        except UnknownVariables as error:
            return f"setup command {command!r}: {error}"
        label = f"setup-{number + 1}"
        name = self._store.reserve(request.story, request.task, request.attempt, label)
        output = self._store.output_file(name)
        result = self._execute(line, bench, output, SETUP_TIMEOUT_S)
        if isinstance(result, str):
            return f"setup command {command!r}: {result}"
        if result.ok:
            output.unlink()
            return ""
        how = "did not end in time" if result.timed_out else f"exit code {result.exit_code}"
        return f"setup command {command!r} failed ({how}); see {self._store.relative(output)}"

    def _command(self, gate: GateSpec, request: GateRequest, bench: _Bench, name: str) -> _Seen:
        facts: dict[str, object] = {"command": gate.command, "code_path": bench.code_path}
        if bench.problem:
            return _Seen(crashed(bench.problem), facts)
        if not gate.command.strip():
            return _Seen(crashed("the gate has no command"), facts)
        try:
            line = fill(gate.command, bench.values)
        except UnknownVariables as error:
            return _Seen(crashed(str(error)), facts)
        output = self._store.output_file(name)
        result = self._execute(line, bench, output, gate.timeout_seconds)
        if isinstance(result, str):
            return _Seen(crashed(result), facts | {"command": line})
        judgement = judge_command(gate, line, result)
        if note := self._tidy(bench, request):
            judgement = with_note(judgement, note)
        return _Seen(
            judgement,
            facts
            | {
                "command": line,
                "exit_code": result.exit_code,
                "output_sha256": result.output_sha256,
                "output_path": self._store.relative(output),
            },
        )

    def _tidy(self, bench: _Bench, request: GateRequest) -> str:
        """Undo what a gate did to the code, so that the next one sees the commit; tell it."""
        try:
            changed = self._checkouts.restore(bench.worktree, request.commit, bench.keep)
        except (OodatcaaError, OSError) as error:
            bench.spoilt = True
            return f"it spoilt its worktree, the next gate gets a fresh one: {error}"
        if not changed:
            return ""
        some = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
        return f"it changed {len(changed)} paths, undone: {some}"

    def _execute(
        self, line: str, bench: _Bench, output: Path, timeout: float
    ) -> CommandResult | str:
        try:
            return run_command(
                line,
                cwd=bench.worktree,
                env=bench.env,
                timeout=timeout,
                output_path=output,
                should_stop=self._should_stop,
            )
        except (OodatcaaError, OSError) as error:
            return f"could not be started: {error}"

    # -- metrics

    def _metric(self, gate: GateSpec, request: GateRequest) -> _Seen:
        if gate.bound is None:
            return _Seen(judge_metric(gate, None))
        if self._metrics is None:
            return _Seen(crashed(f"nothing here can measure {gate.bound.metric}"))
        try:
            measured = self._metrics.measure(gate.bound.metric, request)
        except OodatcaaError as error:
            return _Seen(crashed(f"{gate.bound.metric} could not be measured: {error}"))
        except Exception as error:  # noqa: BLE001 - a broken measure is a verdict, not our end
            return _Seen(
                crashed(f"measuring {gate.bound.metric} broke: {type(error).__name__}: {error}")
            )
        facts: dict[str, object] = {}
        if measured is not None:
            facts = {"measured": measured.value, "interval": measured.interval}
        return _Seen(judge_metric(gate, measured), facts)
