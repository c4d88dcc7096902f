"""Calls external agents for a claim: sessions, budgets, retries, the ledger and the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from oodatcaa.app.ledger import Ledger
from oodatcaa.app.project import Project
from oodatcaa.domain.agents import (
    AgentDefinition,
    Call,
    CommandSpec,
    Ending,
    OpenAISpec,
    Order,
    RunnerSpec,
    Turn,
    Usage,
)
from oodatcaa.domain.board import Board, Decision, Event, EventKind
from oodatcaa.domain.budgets import Budgets, Spent, over, reached, spent, unsaid
from oodatcaa.domain.retry import pause_before_retry, session_for_retry
from oodatcaa.domain.rungs import UNKNOWN
from oodatcaa.domain.task import Role, Task, story_of
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.rehearsal import rehearse
from oodatcaa.runners.ports import Runner, Watch

BUSY_SECONDS = 5.0
"""How often a running call's usage is written down."""


def runner_for(spec: RunnerSpec) -> Runner:
    """The runner of a kind; the libraries behind it are loaded only now."""
    if isinstance(spec, CommandSpec):
        from oodatcaa.runners.command import CommandRunner

        return CommandRunner(spec)
    try:
        if isinstance(spec, OpenAISpec):
            from oodatcaa.runners.openai import OpenAIRunner

            return OpenAIRunner(spec)
        from oodatcaa.runners.acp import AcpRunner

        return AcpRunner(spec)
    except ImportError as error:
        raise OodatcaaError(
            "runner.not_installed",
            f"runners of kind {spec.kind} need a package that is not installed: {error.name}",
            hint=f"pip install 'oodatcaa[{spec.kind}]'",
        ) from error


class OutsideAgents:
    """`roles.desk.Agents` for one claim."""

    def __init__(
        self,
        project: Project,
        *,
        agent: str,
        role: Role,
        task: Task,
        say: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._project = project
        self._agent, self._role, self._task = agent, role, task
        self._say, self._should_stop = say, should_stop

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self._project.work, self._project.sprint().number)

    @property
    def budgets(self) -> Budgets:
        return self._project.config.budgets

    @property
    def output_retries(self) -> int:
        return self._project.config.agents.output_retries

    def external(self, wanted: str = "") -> AgentDefinition | None:
        return self._project.roster.external(self._role, self._agent, wanted)

    def builder(self, wanted: str = "") -> AgentDefinition | None:
        return self._project.roster.external(Role.BUILDER, "", wanted)

    def acting(self) -> AgentDefinition:
        return self._project.roster.acting(self._role, self._agent)

    def call(
        self,
        definition: AgentDefinition,
        prompt: str,
        *,
        cwd: Path,
        step: int = 0,
        session: str = "",
    ) -> Turn:
        """Run one call, again after errors of the agent with growing pauses and, where its runner
        can, in the same session. Every try is in the ledger and in the log."""
        settings = self._project.config.agents
        runner = runner_for(self._project.roster.spec(definition))
        tries = 0
        while True:
            tries += 1
            turn = self._once(definition, runner, prompt, cwd, step, session)
            if not runner.can_resume:
                turn = turn.evolve(session="")
            pause = pause_before_retry(
                turn.ending,
                tries,
                retries=settings.retries,
                base=settings.backoff_seconds,
                ceiling=settings.backoff_max_seconds,
            )
            if pause is None or not self._sleep(pause, turn):
                return turn
            session = session_for_retry(turn, session)

    def session_of(self, definition: AgentDefinition, step: int) -> str:
        """The newest session of this agent on this step of the story; empty when there is none or
        its runner can not go on with one."""
        if not runner_for(self._project.roster.spec(definition)).can_resume:
            return ""
        story = story_of(self._task.id)
        found = [
            call.session
            for call in self.ledger.calls()
            if (call.definition, call.story, call.step) == (definition.name, story, step)
        ]
        return next((session for session in reversed(found) if session), "")

    def note(self, text: str, details: tuple[str, ...] = ()) -> None:
        """An entry of the history; it moves nothing."""
        now = datetime.now(UTC)
        event = Event(
            kind=EventKind.NOTE,
            at=now,
            actor=self._agent,
            role=self._role,
            subject=self._task.id,
            attempt=self._task.attempt or None,
            text=text,
            details=details,
        )

        def write(board: Board, at: datetime) -> Decision[None]:
            return Decision(board, None, (event.evolve(at=at),))

        self._project.store.transact(write)

    def _sleep(self, pause: float, turn: Turn) -> bool:
        """False when the crew stops meanwhile."""
        self._say(f"{self._task.id} {turn.detail}; again in {pause:.0f} s")
        deadline = time.monotonic() + pause
        while time.monotonic() < deadline:
            if self._should_stop():
                return False
            time.sleep(min(0.2, pause))
        return True

    def _once(
        self,
        definition: AgentDefinition,
        runner: Runner,
        prompt: str,
        cwd: Path,
        step: int,
        session: str,
    ) -> Turn:
        call = self._new_call(definition, step)
        before = self._over()
        if before:
            turn = Turn(ending=Ending.BUDGET, detail=before[1], circle=before[0])
        else:
            self.ledger.put(call)
            order = self._order(definition, call, prompt, cwd, session)
            watch = Watch(
                over_budget=_Meter(self, definition, call).over_budget,
                should_stop=self._should_stop,
                note=lambda text: self.note(f"{definition.name} asked: {text}"),
            )
            self._say(f"{self._task.id} {definition.name} works ({definition.runner})")
            with TemporaryDirectory(prefix="oodatcaa-agent-") as folder:
                env = rehearse(self._project.root, self._project.work, Path(folder) / "work")
                turn = runner.run(order.evolve(env=env), watch)
            turn = self._counted(definition, turn)
            self.ledger.put(_ended(call, turn))
            turn = turn.evolve(circle=turn.circle or self._circle(turn))
        what = turn.ending.value + (f": {turn.detail}" if turn.detail else "")
        self.note(
            f"{definition.name} {what}; {turn.usage.describe()}",
            (*turn.denied, *turn.notes, f"log: {call.log}"),
        )
        return turn

    def _new_call(self, definition: AgentDefinition, step: int) -> Call:
        task = self._task
        call_id = self.ledger.new_id(task.id, task.attempt, definition.name)
        return Call(
            id=call_id,
            agent=self._agent,
            definition=definition.name,
            runner=definition.runner,
            role=self._role,
            story=story_of(task.id),
            task=task.id,
            attempt=task.attempt,
            plan_version=task.plan_version,
            step=step,
            started_at=datetime.now(UTC),
            usage=Usage().as_call(0.0),
            log=str(self.ledger.place(call_id).relative_to(self._project.root)),
        )

    def _order(
        self, definition: AgentDefinition, call: Call, prompt: str, cwd: Path, session: str
    ) -> Order:
        settings, limits = self._project.config.agents, definition.limits
        spec = self._project.roster.spec(definition)
        own = getattr(spec, "model", "")
        return Order(
            prompt=prompt,
            cwd=str(cwd),
            folder=str(self.ledger.place(call.id)),
            config_dir=str(self._project.work / "agents" / "config" / self._agent),
            session=session,
            model=definition.model or own,
            tools=definition.tools,
            seconds=60 * (limits.minutes or settings.minutes),
            silence_seconds=60 * (limits.silence_minutes or settings.silence_minutes),
            memory_bytes=limits.memory_bytes or settings.memory_bytes,
            allowed_paths=(str(cwd),),
            allowed_commands=getattr(spec, "allow_commands", ()),
        )

    def spent(self, running: Call | None = None) -> Spent:
        """What the sprint's calls used, with a running one as it is now."""
        calls = [call for call in self.ledger.calls() if running is None or call.id != running.id]
        if running is not None:
            calls.append(running)
        return spent(calls, story=story_of(self._task.id), task=self._task.id)

    def _over(self) -> tuple[str, str] | None:
        return over(self.budgets, self.spent())

    def _counted(self, definition: AgentDefinition, turn: Turn) -> Turn:
        """A call that did not say what it used escapes no budget: what it did is not taken."""
        why = unsaid(self.budgets, definition.limits, turn.usage)
        if not why or turn.ending not in (Ending.FINISHED, Ending.DENIED):
            return turn
        if self.budgets.unknown_usage == "warn":
            self.note(f"{definition.name}: {why}")
            return turn
        return turn.evolve(ending=Ending.BUDGET, detail=why, circle=UNKNOWN)

    def _circle(self, turn: Turn) -> str:
        """Whose budget ended the call; its own limits when no wider one is reached."""
        if turn.ending is not Ending.BUDGET:
            return ""
        found = self._over()
        return found[0] if found else "call"


class _Meter:
    """Holds a running call to the budgets, and keeps the ledger up to date."""

    def __init__(self, outside: OutsideAgents, definition: AgentDefinition, call: Call) -> None:
        self._outside, self._definition, self._call = outside, definition, call
        self._written = time.monotonic()
        self._last = Usage()

    def over_budget(self, used: Usage) -> str:
        """Why the call has to end now; empty while every budget holds."""
        running = self._call.evolve(usage=used)
        now = time.monotonic()
        grown = used.tokens != self._last.tokens or used.cost_usd != self._last.cost_usd
        if grown or now - self._written >= BUSY_SECONDS:
            self._written, self._last = now, used
            self._outside.ledger.put(running)
        own = reached(self._definition.limits.evolve(minutes=None), used)
        if own:
            return f"this call's own limit is used up: {own}"
        found = over(self._outside.budgets, self._outside.spent(running))
        return found[1] if found else ""


def _ended(call: Call, turn: Turn) -> Call:
    return call.evolve(
        finished_at=datetime.now(UTC),
        ending=turn.ending,
        detail=turn.detail,
        session=turn.session,
        usage=turn.usage,
    )
