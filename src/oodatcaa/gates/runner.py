"""Run gates where the submitted commit is the only code there is, and keep what was seen."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime

from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec, Verdict
from oodatcaa.domain.gate_presets import preset_for
from oodatcaa.errors import OodatcaaError
from oodatcaa.gates import tools
from oodatcaa.gates.baselines import Baselines
from oodatcaa.gates.bench import Bench, Benches, some
from oodatcaa.gates.bounds import bounded
from oodatcaa.gates.goal_checks import check_goal
from oodatcaa.gates.judging import (
    Judgement,
    crashed,
    decided_by_a_person,
    failed,
    judge_files,
    judge_metric,
    not_run,
    waive,
    with_note,
)
from oodatcaa.gates.ports import Checkouts, GateRequest, MetricSource
from oodatcaa.gates.pytest_runs import ask
from oodatcaa.gates.reading import Reading, compare, confirmed, read_command
from oodatcaa.gates.store import EvidenceStore
from oodatcaa.gates.variables import UnknownVariables, fill
from oodatcaa.kit.clock import utc_now
from oodatcaa.kit.config import GatesConfig

TAIL_CHARS = 2_000
"""How much of an output's end the evidence itself holds; the file has the rest."""


@dataclass
class _Seen:
    """What a gate showed, before waivers."""

    judgement: Judgement
    facts: dict[str, object] = field(default_factory=dict)
    reading: Reading | None = None


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
        self._benches = Benches(checkouts, store, self._config, should_stop)
        self._baselines = Baselines(checkouts, store, self._config)

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
            bench: Bench | None = None
            for gate in request.gates:
                stopped = self._should_stop is not None and self._should_stop()
                fresh = bench is None or bench.spoilt
                if gate.kind is GateKind.COMMAND and fresh and not stopped:
                    bench = self._benches.prepare(stack, request)
                evidence = self._gather(gate, request, bench, stopped=stopped)
                self._store.save(evidence)
                gathered.append(evidence)
                if on_evidence is not None:
                    on_evidence(evidence)
        return tuple(gathered)

    def _gather(
        self, gate: GateSpec, request: GateRequest, bench: Bench | None, *, stopped: bool
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
        elif gate.kind is GateKind.PERSON:
            seen = _Seen(decided_by_a_person(gate, request.story))
        elif gate.kind in (GateKind.ARTIFACT, GateKind.LINK):
            found = check_goal(gate, request.commit, self._checkouts, self._should_stop)
            seen = _Seen(found)
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

    def _command(self, gate: GateSpec, request: GateRequest, bench: Bench, name: str) -> _Seen:
        seen = self._run_line(gate, request, bench, name)
        if not gate.baseline or seen.reading is None or not seen.reading.comparable:
            return seen
        base, problem = self._baselines.of(gate, request, bench.tools, self._count_there)
        seen.judgement = compare(gate, seen.reading, base, problem)
        seen.facts["baseline"] = base
        return seen

    def _run_line(self, gate: GateSpec, request: GateRequest, bench: Bench, name: str) -> _Seen:
        facts: dict[str, object] = {
            "command": gate.command,
            "code_path": bench.code_path,
            "tools": bench.tools,
            "environment": bench.environment.key if bench.environment else None,
        }
        if bench.problem:
            return _Seen(crashed(bench.problem), facts)
        preset = preset_for(gate.command, gate.preset)
        command = gate.command.strip() or (preset.command if preset else "")
        if not command:
            return _Seen(crashed("the gate has no command"), facts)
        try:
            line = command if gate.verbatim else fill(command, bench.values)
        except UnknownVariables as error:
            return _Seen(crashed(str(error)), facts)
        facts["command"] = line
        output = self._store.output_file(name)
        if shadow := tools.shadowing(preset, bench.worktree):
            why = f"{shadow} in the commit would run in place of the tool"
            return _Seen(crashed(why), facts)
        seconds, limits = bounded(gate, self._config)
        env = tools.without_project(preset, bench.env, bench.worktree)
        if bench.reports is not None:
            env = tools.with_own_caches(env, bench.reports)
        asked = ask(command, bench.reports) if bench.reports else None
        if asked is not None:
            env = asked.environment(env)
        result = self._benches.execute(line, bench, output, seconds, limits, env)
        if isinstance(result, str):
            return _Seen(crashed(result), facts)
        text = output.read_text(encoding="utf-8", errors="replace")
        reading = read_command(gate.evolve(timeout_seconds=seconds), line, result, text)
        if gate.expect == "success":
            reading = confirmed(reading, preset, command, text, asked)
        facts |= {
            "exit_code": result.exit_code,
            "output_sha256": result.output_sha256,
            "output_path": self._store.relative(output),
            "output_tail": text[-TAIL_CHARS:],
            "findings": reading.findings,
        }
        judgement = reading.judgement
        tracked, note = self._benches.tidy(bench, request.commit)
        if tracked and judgement.verdict is Verdict.PASSED:
            judgement = failed(f"it changed tracked files: {some(tracked)}; a check only looks")
            return _Seen(with_note(judgement, note), facts)
        return _Seen(with_note(judgement, note) if note else judgement, facts, reading)

    def _count_there(self, gate: GateSpec, request: GateRequest) -> tuple[float | None, str]:
        """The same gate at the target branch: (findings, what went wrong)."""
        with ExitStack() as stack:
            bench = self._benches.prepare(stack, request)
            label = f"base-{gate.id}"
            name = self._store.reserve(request.story, request.task, request.attempt, label)
            seen = self._run_line(gate, request, bench, name)
            if "output_path" not in seen.facts:
                self._store.output_file(name).unlink(missing_ok=True)
            if seen.reading is None or not seen.reading.comparable:
                return None, seen.judgement.detail
            return seen.reading.findings, "its findings can not be counted"

    # -- metrics

    def _metric(self, gate: GateSpec, request: GateRequest) -> _Seen:
        if gate.bound is None:
            return _Seen(judge_metric(gate, None))
        if self._metrics is None:
            return _Seen(crashed(f"nothing here can measure {gate.bound.metric}"))
        try:
            measured = self._metrics.measure(gate.bound.metric, request)
        except OodatcaaError as error:
            if self._should_stop is not None and self._should_stop():
                return _Seen(not_run("stopped before it was measured"))
            return _Seen(crashed(f"{gate.bound.metric} could not be measured: {error}"))
        except Exception as error:  # noqa: BLE001 - a broken measure is a verdict, not our end
            return _Seen(
                crashed(f"measuring {gate.bound.metric} broke: {type(error).__name__}: {error}")
            )
        facts: dict[str, object] = {}
        if measured is not None:
            facts = {"measured": measured.value, "interval": measured.interval}
        return _Seen(judge_metric(gate, measured), facts)
