"""The integration queue: ready stories are merged, checked together, then the target moves.

One integrator works on a target at a time. The story it holds is tried together with the others
that are ready; when the gates fail on them all, on half of them, down to the held story alone. The
target moves by one fast-forward, and each story is done only after a look at the repository.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import NoReturn

from oodatcaa.app.accepted import accepted_plan
from oodatcaa.app.checking import Checker, story_gates
from oodatcaa.app.claimed import Claimed
from oodatcaa.app.exporting import HISTORY, export_records
from oodatcaa.app.ground_rules import asked_gates, said
from oodatcaa.app.proving import Merged, failed, integration_of, prove, prove_other
from oodatcaa.app.target import turn, write_ahead
from oodatcaa.app.tested import tested_commit
from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec, Verdict, verdict_of
from oodatcaa.domain.goal_gates import person_gates
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.task import (
    Story,
    StoryStatus,
)
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.vcs import TargetDirty, TargetMoved
from oodatcaa.vcs.integration import MergeChain
from oodatcaa.views.changelog import changelog_entry, insert_changelog

MERGE_TRIES = 3
BATCH = 8
"""Stories that are tried together at most; each keeps its own merge commit."""
_OWN_VARIABLE = re.compile(r"\{(?!python\}|worktree\})[a-z]")


class _Conflict(Exception):
    """The held story does not merge with the target."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        super().__init__(", ".join(paths))
        self.paths = paths


class _GatesFailed(Exception):
    """The gates are not green on this chain."""

    def __init__(self, merged: list[Merged]) -> None:
        super().__init__("gates")
        self.merged = merged


def integrate(claimed: Claimed, story: Story, plan: Plan, gates: tuple[GateSpec, ...]) -> str:
    """One word for the log: done, needs_adapt or needs_human."""
    held = Merged(story, plan, gates)
    with turn(claimed):
        try:
            return _integrate(claimed, held)
        except _Conflict as conflict:
            return _conflicting(claimed, held, conflict.paths)
        except _GatesFailed as error:
            return _red(claimed, error.merged[0])
        except TargetMoved as error:
            return failed(
                claimed,
                held,
                f"the target moved during every try: {error.message}",
                human=True,
                code="merge",
            )
        except (TargetDirty, OodatcaaError) as error:
            if error.code == "lease.lost":
                raise
            hint = f"; {error.hint}" if error.hint else ""
            details = tuple(error.details)
            summary = f"{error.message}{hint}"
            return failed(claimed, held, summary, human=True, code=error.code, lines=details)


def _integrate(claimed: Claimed, held: Merged) -> str:
    """Try all that is ready, then half of it, and so on; the held story is always in it."""
    held.tested = tested_commit(claimed.project, held.story, held.plan.branch)
    target = claimed.project.sprint().target_branch
    held.gates = (*held.gates, *asked_gates(claimed.project, held.tested, target))
    moved = 0
    size = BATCH
    while True:
        batch = [held, *_others(claimed, held)][:size]
        try:
            return _land(claimed, batch)
        except TargetMoved as error:
            moved += 1
            if moved >= MERGE_TRIES:
                raise
            claimed.broadcast.say(f"{held.story.id} {error.message}; merging again ({moved})")
        except _GatesFailed as error:
            size = len(error.merged) // 2
            if size == 0:
                raise
            names = ", ".join(item.story.id for item in error.merged)
            claimed.broadcast.say(f"the gates fail on {names} together; trying {size} of them")


def _others(claimed: Claimed, held: Merged) -> list[Merged]:
    """Ready stories that nobody holds and that need no person's word, in the board's order."""
    project = claimed.project
    found = []
    now = datetime.now(UTC)
    for story in project.board().stories:
        ready = story.status is StoryStatus.READY_FOR_INTEGRATOR and story.lease is None
        if not ready or story.id == held.story.id:
            continue
        try:
            plan = accepted_plan(project, story)
            tested = tested_commit(project, story, plan.branch)
            rules = asked_gates(project, tested, project.sprint().target_branch)
        except OodatcaaError as error:
            claimed.broadcast.say(f"{story.id} is left out of this batch: {error.message}")
            continue
        waived = {item.gate_id for item in story.waivers if item.at <= now < item.until}
        if all(gate.id in waived for gate in (*person_gates(plan.goals), *rules)):
            found.append(Merged(story, plan, (*story_gates(plan), *rules), tested))
    return found


def _land(claimed: Claimed, batch: list[Merged]) -> str:
    project = claimed.project
    target = project.sprint().target_branch
    with project.repo.merge_chain(target, batch[0].story.id) as chain:
        merged = _merge_all(claimed, chain, batch)
        names = ", ".join(item.story.id for item in merged)
        claimed.broadcast.say(f"{names} merged in a worktree; running the gates on the merge")
        _check(claimed, merged, chain.head)
        if any(item.problems for item in merged):
            raise _GatesFailed(merged)
        _record_all(claimed, chain, merged)
        claimed.stop_if_asked()
        seen = tuple(dict.fromkeys(found.id for item in merged for found in item.evidence))
        write_ahead(claimed, target, chain.base, chain.head, names, seen)
        advanced = project.repo.advance(target, chain.head, chain.base)
    outcome = prove(claimed, merged[0], target)
    for item in merged[1:]:
        prove_other(claimed, item, target)
    if advanced.note:
        claimed.broadcast.say(advanced.note)
    return outcome


def _merge_all(claimed: Claimed, chain: MergeChain, batch: list[Merged]) -> list[Merged]:
    merged = []
    for item in batch:
        story = item.story
        message = f"Merge {story.id}: {story.title}"
        try:
            candidate = chain.add(item.plan.branch, item.tested, message)
        except OodatcaaError as error:
            if item is batch[0]:
                raise
            claimed.broadcast.say(f"{story.id} is left out of this batch: {error.message}")
            continue
        if candidate.already:
            # An attempt that died after the target had moved: its merge is there.
            found = claimed.project.repo.merge_of(item.tested, chain.base)
            merged.append(replace(item, merge=found or item.tested))
        elif candidate.merge is not None:
            merged.append(replace(item, merge=candidate.merge))
        elif item is batch[0]:
            raise _Conflict(candidate.conflicts)
        else:
            claimed.broadcast.say(f"{story.id} does not merge with the others; it waits its turn")
    return merged


def _check(claimed: Claimed, merged: list[Merged], commit: str) -> None:
    """Every story's gates on the common merge; a gate that is the same for several runs once."""
    checker = Checker(claimed.project, claimed.desk)
    shared: dict[str, Evidence] = {}
    for item in merged:
        story = _as_claimed(claimed, item)
        reused = tuple(shared[_key(gate)] for gate in item.gates if _key(gate) in shared)
        rest = tuple(gate for gate in item.gates if _key(gate) not in shared)
        fresh: tuple[Evidence, ...] = ()
        if rest:
            try:
                fresh = checker.run(rest, item.plan, story, commit, say=claimed.broadcast.say)
            except OodatcaaError as error:
                _leave_out(merged, item, error)
        for found in fresh:
            if found.verdict is Verdict.PASSED and _same_for_all(found.gate):
                shared[_key(found.gate)] = found
        item.checked = commit
        item.evidence = (*reused, *fresh)
        item.problems = verdict_of(item.evidence, item.gates)


def _leave_out(merged: list[Merged], item: Merged, error: OodatcaaError) -> NoReturn:
    """What is wrong with another story makes the batch smaller; the held one is not to blame."""
    if item is merged[0] or isinstance(error, TargetMoved | TargetDirty):
        raise error
    item.problems = (error.message,)
    raise _GatesFailed(merged) from error


def _as_claimed(claimed: Claimed, item: Merged) -> Story:
    """The story under the attempt that will prove it: another one is claimed once it landed."""
    if item.story.id == claimed.task.id:
        return item.story
    return item.story.evolve(attempt=item.story.attempt + 1)


def _key(gate: GateSpec) -> str:
    return gate.model_dump_json()


def _same_for_all(gate: GateSpec) -> bool:
    return gate.kind is GateKind.COMMAND and not _OWN_VARIABLE.search(gate.command)


def _record_all(claimed: Claimed, chain: MergeChain, merged: list[Merged]) -> None:
    for item in merged:
        try:
            _record(claimed, chain, item)
        except OodatcaaError as error:
            _leave_out(merged, item, error)


def _record(claimed: Claimed, chain: MergeChain, item: Merged) -> None:
    """Changelog and history, committed on top of the merges."""
    project, story = claimed.project, item.story
    sprint = project.sprint()
    integration = integration_of(item, sprint.target_branch)
    changelog = chain.worktree / "CHANGELOG.md"
    old = changelog.read_text(encoding="utf-8") if changelog.exists() else ""
    entry = changelog_entry(story, integration, item.plan.goal)
    write_atomic(changelog, insert_changelog(old, entry))
    folder = HISTORY / f"sprint-{sprint.number}" / story.id
    report = replace(claimed, task=_as_claimed(claimed, item)).composed(
        "complete",
        item.plan,
        item.evidence,
        summary=(
            f"merged for {sprint.target_branch} as {item.merge[:12]} with --no-ff; the tag is "
            f"{integration.tag}",
            f"gates green on the merge at {item.checked[:12]}; the tested commit of "
            f"{item.plan.branch} is {item.tested[:12]}",
            *said(project, item.tested, chain.base),
        ),
        next_steps=(f"{sprint.target_branch} moves to this commit, or nobody ever sees it.",),
        commit=item.checked,
    )
    exported = export_records(claimed, story, chain.worktree / folder, item.evidence, report)
    paths = ["CHANGELOG.md", *(str(folder / name) for name in exported)]
    chain.commit(paths, f"[docs] {story.id} changelog and records")
    item.commit = chain.head


def _conflicting(claimed: Claimed, held: Merged, paths: tuple[str, ...]) -> str:
    target = claimed.project.sprint().target_branch
    some = ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "")
    return failed(
        claimed,
        held,
        f"{held.plan.branch} conflicts with {target} in {some}",
        human=False,
        code="conflict",
        lines=paths,
    )


def _red(claimed: Claimed, held: Merged) -> str:
    """The gates fail on the held story alone: to the refiner, or to the person who decides."""
    open_gates = [item for item in held.evidence if not item.acceptable]
    asked = [item for item in open_gates if item.gate.kind is GateKind.PERSON]
    unchecked = [item for item in open_gates if item.verdict is Verdict.NOT_RUN]
    if open_gates and len(asked) == len(open_gates):
        summary = f"a person decides whether this is true: {asked[0].gate.name}"
        human, code = True, "person"
    elif open_gates and len(unchecked) == len(open_gates):
        summary = f"the merge could not be checked: {held.problems[0]}"
        human, code = True, "not_run"
    else:
        summary = f"gates are not green after the merge: {held.problems[0]}"
        human, code = False, "gate"
    return failed(claimed, held, summary, human=human, code=code, lines=held.problems)
