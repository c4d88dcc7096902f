"""A sprint played on the real rules with a clock that the test moves, its events collected."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypeVar

from crew_boards import AC, GATE, NOW, POLICY, checked, fresh_board, plan_for, proof, seen
from oodatcaa.domain.board import Board, Decision, Event
from oodatcaa.domain.evidence import Verdict
from oodatcaa.domain.negotiation import claim
from oodatcaa.domain.rounds import negotiate
from oodatcaa.domain.submission import submit_build, submit_integration, submit_plan, submit_test
from oodatcaa.domain.task import Role

T = TypeVar("T")


class Recorded:
    """Every verb takes the minutes that pass before it."""

    def __init__(self, board: Board | None = None) -> None:
        self.board = board or fresh_board()
        self.events: list[Event] = []
        self.now: datetime = NOW

    def done(self, decision: Decision[T]) -> T:
        self.board = decision.board
        self.events += decision.events
        return decision.value

    def wait(self, minutes: float) -> Recorded:
        self.now += timedelta(minutes=minutes)
        return self

    def round(self, *dead: str) -> None:
        self.done(negotiate(self.board, POLICY, self.now, dead=frozenset(dead)))

    def take(self, role: Role, task: str, owner: str = "") -> int:
        held = self.done(
            claim(
                self.board,
                POLICY,
                self.now,
                role=role,
                owner=owner or f"{role.value}-A",
                host="here",
                pid=None,
                process_started_at=None,
                task=task,
            )
        )
        return held.attempt

    def plan(self, story: str, minutes: float, *, builds: int = 1) -> None:
        attempt = self.take(Role.PLANNER, story)
        self.wait(minutes)
        plan = plan_for(self.board.story_by_id[story], builds=builds)
        self.done(
            submit_plan(
                self.board, self.now, story=story, owner="planner-A", attempt=attempt, plan=plan
            )
        )

    def adapt(self, story: str, minutes: float, first: int) -> None:
        self.take(Role.REFINER, story)
        self.wait(minutes)
        held = self.board.story_by_id[story]
        plan = plan_for(held, first=first)
        self.done(
            submit_plan(
                self.board,
                self.now,
                story=story,
                owner="refiner-A",
                attempt=held.attempt,
                plan=plan,
            )
        )

    def build(self, subtask: str, minutes: float, verdict: Verdict = Verdict.PASSED) -> None:
        attempt = self.take(Role.BUILDER, subtask)
        self.wait(minutes)
        held = self.board.subtask_by_id[subtask]
        self.done(
            submit_build(
                self.board,
                self.now,
                subtask=subtask,
                owner="builder-A",
                attempt=attempt,
                commit="c1",
                artefacts=(),
                evidence=(seen(held, GATE, verdict),),
                gates=(GATE,),
                failure=None,
            )
        )
        self.round()

    def verify(self, subtask: str, minutes: float) -> None:
        attempt = self.take(Role.TESTER, subtask)
        self.wait(minutes)
        held = self.board.subtask_by_id[subtask]
        self.done(
            submit_test(
                self.board,
                self.now,
                subtask=subtask,
                owner="tester-A",
                attempt=attempt,
                commit="c1",
                evidence=(seen(held, AC),),
                gates=(AC,),
            )
        )

    def integrate(self, story: str, minutes: float) -> None:
        attempt = self.take(Role.INTEGRATOR, story)
        self.wait(minutes)
        self.done(
            submit_integration(
                self.board,
                self.now,
                story=story,
                owner="integrator-A",
                attempt=attempt,
                integration=proof(story),
                **checked(self.board, story),
            )
        )
        self.round()

    def story(self, story: str, *, plan: float, build: float, test: float, merge: float) -> None:
        """The whole life of a story that can begin now."""
        self.plan(story, plan)
        self.build(f"{story}-B01", build)
        self.verify(f"{story}-T01", test)
        self.integrate(story, merge)
