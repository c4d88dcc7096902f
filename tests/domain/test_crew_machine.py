"""Random events, legal and illegal ones, in any order: every rule of the board must survive."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from crew_boards import AC, GATE, NOW, checked, failure, fresh_board, plan_for, proof, seen
from oodatcaa.domain.board import Board, Decision, Event
from oodatcaa.domain.evidence import Verdict, Waiver
from oodatcaa.domain.lifecycle import (
    STORY_TABLE,
    SUBTASK_TABLE,
    initial_story,
    invariants,
    is_cancelled,
    legal,
    tasks_of,
)
from oodatcaa.domain.negotiation import (
    Claim,
    Stop,
    claim,
    heartbeat,
    lease_key,
    negotiate,
    next_action,
    release,
    renew_after_sleep,
    sprint_outcome,
)
from oodatcaa.domain.policy import Policy, WipLimits
from oodatcaa.domain.progress import progress
from oodatcaa.domain.submission import (
    approve,
    cancel,
    fail_task,
    give_up,
    integration_failed,
    submit_build,
    submit_integration,
    submit_plan,
    submit_test,
    waive,
)
from oodatcaa.domain.task import Role, Story, StoryKind, StoryStatus, Subtask, SubtaskKind
from oodatcaa.errors import RefusedError

POLICY = Policy(
    max_expiries=2, wip=WipLimits(planner=1, builder=2, tester=1, refiner=1, integrator=1)
)
STEPS = {(row.source.value, row.target.value) for row in (*STORY_TABLE, *SUBTASK_TABLE)}
OWNERS = st.sampled_from(["ann", "bob", "cleo", "dan", "eve"])
PICK = st.integers(0, 10**6)
VERDICTS = st.sampled_from([Verdict.PASSED] * 6 + [Verdict.FAILED, Verdict.CRASHED, Verdict.WAIVED])


def a_story(number: int, *depends_on: str) -> Story:
    return initial_story(
        NOW,
        id=f"T00{number}",
        slug="s",
        kind=StoryKind.CUSTOM,
        title=f"story {number}",
        depends_on=depends_on,
        estimate_minutes=number,
    )


class Crew(RuleBasedStateMachine):
    """`tokens` are all leases ever handed out: most of them are stale, as in real life."""

    @initialize(
        rounds=st.integers(0, 3),
        steps=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 9, 14, 20]),
        keep=PICK,
    )
    def start(self, rounds: int, steps: int, keep: int) -> None:
        stories = (a_story(1), a_story(2), a_story(3, "T001", "T002"), a_story(4, "T003"))
        self.now = NOW
        self.board: Board = fresh_board(stories, rounds)
        self.tokens: list[tuple[str, str, int]] = []
        self.done: set[str] = set()
        self.work(Role.PLANNER, steps, 100, keep, hold=True)

    # -- how every event is tried -------------------------------------------------------------

    def attempt(
        self, act: Callable[[], Decision[Any]], *, one_step: bool = True
    ) -> Decision[Any] | None:
        old = self.board
        copy = old.model_dump_json()
        decision: Decision[Any] | None = None
        refusal: RefusedError | None
        try:
            decision = act()
        except RefusedError as error:
            refusal = error
        else:
            refusal = None
        if decision is None:
            assert old.model_dump_json() == copy
            assert refusal is not None
            assert refusal.code
            assert refusal.hint
            return None
        self.board = decision.board
        if one_step:
            assert legal(old, self.board, POLICY) == ()
        self.check_step(old, decision.events)
        return decision

    def check_step(self, old: Board, events: tuple[Event, ...]) -> None:
        """Every change of a status is told by a chain of events along rows of the tables."""
        told = {task.id: task.status.value for task in tasks_of(old)}
        for event in events:
            if event.before is not None and event.before != event.after:
                assert (event.before, event.after) in STEPS
                assert told[event.subject] == event.before
                assert event.after is not None
                told[event.subject] = event.after
        for task in tasks_of(self.board):
            before = old.find(task.id)
            if before is not None:
                assert told[task.id] == task.status.value
                assert task.attempt >= before.attempt
        assert all(self.board.find(task.id) is not None for task in tasks_of(old))
        if self.board is old:
            assert events == ()

    def token(self, pick: int, fresh: bool) -> tuple[str, str, int]:
        held = [(t.id, t.lease.owner, t.attempt) for t in tasks_of(self.board) if t.lease]
        pool = held if fresh and held else [*self.tokens, ("T001", "nobody", 1)]
        return pool[pick % len(pool)]

    def is_current(self, token: tuple[str, str, int]) -> bool:
        task = self.board.find(token[0])
        return (
            task is not None
            and task.lease is not None
            and ((task.lease.owner, task.lease.attempt) == token[1:])
        )

    # -- time and owners ----------------------------------------------------------------------

    @rule(minutes=st.sampled_from([0.1, 1, 29, 31, 46, 91, 600]))
    def time_passes(self, minutes: float) -> None:
        self.now += timedelta(minutes=minutes)

    @rule(pick=PICK)
    def the_machine_slept(self, pick: int) -> None:
        held = [lease_key(t) for t in tasks_of(self.board) if t.lease]
        alive = frozenset(key for n, key in enumerate(held) if pick >> n & 1)
        hung = {t.id for t in tasks_of(self.board) if t.lease and t.lease.courtesy}
        self.now += timedelta(hours=9)
        self.attempt(lambda: renew_after_sleep(self.board, self.now, alive))
        for key in alive:
            settled = negotiate(self.board, POLICY, self.now).board
            task = settled.find(key.split("#")[0])
            assert task is not None
            assert (task.lease is not None) == (task.id not in hung)

    @rule(pick=PICK, kill=st.booleans())
    def a_round(self, pick: int, kill: bool) -> None:
        held = [t.id for t in tasks_of(self.board) if t.lease]
        some = frozenset(task for n, task in enumerate(held) if pick >> n & 1)
        names: dict[str, frozenset[str]] = {"dead": some} if kill else {"alive": some}
        self.attempt(lambda: negotiate(self.board, POLICY, self.now, **names), one_step=False)

    # -- agents -------------------------------------------------------------------------------

    @rule(role=st.sampled_from(Role), owner=OWNERS, pid=st.sampled_from([None, 7, 8]))
    def claims_an_offer(self, role: Role, owner: str, pid: int | None) -> None:
        self.claims(role, owner, pid, None)

    @rule(role=st.sampled_from(Role), owner=OWNERS, pick=PICK)
    def claims_one(self, role: Role, owner: str, pick: int) -> None:
        ids = [task.id for task in tasks_of(self.board)] + ["T099"]
        self.claims(role, owner, None, ids[pick % len(ids)])

    def claims(self, role: Role, owner: str, pid: int | None, task: str | None) -> None:
        before = self.board
        decision = self.attempt(
            lambda: claim(
                self.board,
                POLICY,
                self.now,
                role=role,
                owner=owner,
                host="here",
                pid=pid,
                process_started_at=1.0 if pid else None,
                task=task,
            ),
            one_step=False,
        )
        if decision is None:
            return
        got = decision.value
        assert got.lease is not None
        assert (got.lease.owner, got.lease.role) == (owner, role)
        was = before.find(got.id)
        assert was is not None
        if was.lease is None:
            assert got.attempt == was.attempt + 1
        self.tokens.append((got.id, owner, got.attempt))

    @rule(pick=PICK, fresh=st.booleans())
    def beats(self, pick: int, fresh: bool) -> None:
        task, owner, attempt = token = self.token(pick, fresh)
        current = self.is_current(token)
        act = heartbeat
        decision = self.attempt(
            lambda: act(self.board, self.now, task=task, owner=owner, attempt=attempt)
        )
        assert (decision is not None) == current
        assert decision is None or not decision.events

    @rule(pick=PICK, fresh=st.booleans())
    def releases(self, pick: int, fresh: bool) -> None:
        task, owner, attempt = token = self.token(pick, fresh)
        current = self.is_current(token)
        decision = self.attempt(
            lambda: release(
                self.board, self.now, task=task, owner=owner, attempt=attempt, why="tired"
            )
        )
        assert (decision is not None) == current

    @rule(pick=PICK, verdict=VERDICTS, crash=st.booleans(), keep=PICK, builds=st.integers(1, 3))
    def hands_in(self, pick: int, verdict: Verdict, crash: bool, keep: int, builds: int) -> None:
        self.submits(self.token(pick, True), verdict, crash and pick % 4 == 0, keep, builds)

    @rule(pick=PICK, verdict=VERDICTS)
    def hands_in_late(self, pick: int, verdict: Verdict) -> None:
        token = self.token(pick, False)
        if not self.is_current(token):
            assert self.submits(token, verdict, False, 0, 1) is None

    def submits(
        self, token: tuple[str, str, int], verdict: Verdict, crash: bool, keep: int, builds: int
    ) -> Decision[Any] | None:
        name, owner, attempt = token
        task = self.board.find(name)
        assert task is not None
        if crash:
            trouble = failure(name, "crash")
            return self.attempt(
                lambda: fail_task(
                    self.board, self.now, task=name, owner=owner, attempt=attempt, failure=trouble
                )
            )
        who: dict[str, Any] = {"owner": owner, "attempt": attempt}
        if isinstance(task, Subtask):
            return self.attempt(lambda: self.result(task, verdict, who))
        if task.status is StoryStatus.INTEGRATING or (keep + builds) % 2:
            return self.attempt(
                lambda: submit_integration(
                    self.board,
                    self.now,
                    story=name,
                    integration=proof(name),
                    **checked(self.board, name),
                    **who,
                )
            ) or self.plans(task, keep, builds, who)
        return self.plans(task, keep, builds, who)

    def plans(
        self, story: Story, keep: int, builds: int, who: dict[str, Any]
    ) -> Decision[Any] | None:
        subtasks = self.board.subtasks_of(story.id)
        alive = [item for item in subtasks if not is_cancelled(item)]
        keeps = tuple(item.id for n, item in enumerate(alive) if keep >> n & 1)
        version = story.plan_version + (2 if keep % 17 == 0 else 1)
        first = 1 + sum(item.kind is SubtaskKind.BUILD for item in subtasks) + keep % 2
        plan = plan_for(
            story, version, builds=builds, first=first, keeps=keeps, parallel=bool(keep % 3)
        )
        return self.attempt(
            lambda: submit_plan(self.board, self.now, story=story.id, plan=plan, **who)
        )

    def result(self, task: Subtask, verdict: Verdict, who: dict[str, Any]) -> Decision[Any]:
        commit = f"c{task.story}"
        if task.kind is SubtaskKind.BUILD:
            return submit_build(
                self.board,
                self.now,
                subtask=task.id,
                commit=commit,
                artefacts=(),
                evidence=(seen(task, GATE, verdict, commit=commit, attempt=who["attempt"]),),
                gates=(GATE,),
                failure=None,
                **who,
            )
        return submit_test(
            self.board,
            self.now,
            subtask=task.id,
            commit=commit,
            evidence=(seen(task, AC, verdict, commit=commit, attempt=who["attempt"]),),
            gates=(AC,),
            **who,
        )

    @rule(pick=PICK, fresh=st.booleans(), human=st.booleans(), giving_up=st.booleans())
    def fails(self, pick: int, fresh: bool, human: bool, giving_up: bool) -> None:
        name, owner, attempt = self.token(pick, fresh)
        trouble = failure(name, "merge")
        if giving_up:
            self.attempt(
                lambda: give_up(
                    self.board, self.now, story=name, owner=owner, attempt=attempt, reason="no way"
                )
            )
        else:
            self.attempt(
                lambda: integration_failed(
                    self.board,
                    self.now,
                    story=name,
                    owner=owner,
                    attempt=attempt,
                    failure=trouble,
                    human=human,
                )
            )

    @rule(
        role=st.sampled_from([*Role, Role.BUILDER, Role.TESTER]),
        steps=st.integers(1, 8),
        luck=st.sampled_from([100, 3, 1]),
        keep=PICK,
        hold=st.booleans(),
    )
    def the_crew_works(self, role: Role, steps: int, luck: int, keep: int, hold: bool) -> None:
        """An orderly stretch, so that stories get far enough for what happens late in them."""
        self.work(role, steps, luck, keep, hold)

    def work(self, role: Role, steps: int, luck: int, keep: int, hold: bool) -> None:
        for number in range(steps):
            verdict = Verdict.FAILED if number % luck == luck - 1 else Verdict.PASSED
            held = [t for t in tasks_of(self.board) if t.lease and t.lease.role is role]
            if not held:
                self.claims(role, f"{role.value}-X", None, None)
            held = [t for t in tasks_of(self.board) if t.lease and t.lease.role is role]
            if held and held[0].lease and not (hold and number == steps - 1):
                token = (held[0].id, held[0].lease.owner, held[0].attempt)
                self.submits(token, verdict, False, keep, 1 + number % 2)
            role = list(Role)[(list(Role).index(role) + 1) % len(Role)]

    # -- people -------------------------------------------------------------------------------

    @rule(pick=PICK)
    def somebody_approves(self, pick: int) -> None:
        stories = self.board.stories
        stuck = [story for story in stories if story.status is StoryStatus.NEEDS_HUMAN]
        story = (stuck or stories)[pick % len(stuck or stories)]
        self.attempt(lambda: approve(self.board, self.now, story=story.id, by="Kim", why="go on"))

    @rule(pick=PICK, really=st.sampled_from([True, *[False] * 9]))
    def somebody_cancels(self, pick: int, really: bool) -> None:
        tasks = tasks_of(self.board)
        if really:
            task = tasks[pick % len(tasks)]
            self.attempt(lambda: cancel(self.board, self.now, task=task.id, by="Kim", why="no"))

    @rule(pick=PICK, hours=st.integers(-1, 5))
    def somebody_waives(self, pick: int, hours: int) -> None:
        story = self.board.stories[pick % len(self.board.stories)]
        waiver = Waiver(
            gate_id=("X1", "AC1")[pick % 2],
            by="Kim",
            why="known",
            at=self.now,
            until=self.now + timedelta(hours=hours),
        )
        self.attempt(lambda: waive(self.board, self.now, story=story.id, waiver=waiver))

    # -- what must always hold ----------------------------------------------------------------

    @invariant()
    def the_board_is_sound(self) -> None:
        assert invariants(self.board, POLICY) == ()
        assert Board.model_validate_json(self.board.model_dump_json()) == self.board
        assert self.board.evolve() == self.board

    @invariant()
    def done_is_proven_and_final(self) -> None:
        now_done = {s.id for s in self.board.stories if s.status is StoryStatus.DONE}
        assert self.done <= now_done
        self.done = now_done
        for story in self.board.stories:
            if story.id in now_done:
                assert story.integration is not None
                assert story.integration.evidence
        assert 0 <= progress(self.board).objective_percent <= 100

    @invariant()
    def a_second_round_decides_nothing(self) -> None:
        first = negotiate(self.board, POLICY, self.now)
        assert invariants(first.board, POLICY) == ()
        second = negotiate(first.board, POLICY, self.now)
        assert second.board is first.board
        assert second.events == ()
        assert second.value.changed is False

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        settled = negotiate(self.board, POLICY, self.now).board
        outcome = sprint_outcome(settled)
        actions = [next_action(settled, POLICY, role, self.now) for role in Role]
        held = any(task.lease for task in tasks_of(settled))
        if outcome == "running" and not held:
            assert any(isinstance(action, Claim) for action in actions)
        if outcome != "running":
            assert all(isinstance(action, Stop) for action in actions)
        if outcome == "needs_human":
            assert any(s.status is StoryStatus.NEEDS_HUMAN for s in settled.stories)


TestCrew = Crew.TestCase
TestCrew.settings = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
