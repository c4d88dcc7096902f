"""The integration queue: ready stories are merged, checked together, then the target moves.

One integrator works on a target at a time. The story it holds is tried together with the others
that are ready; when the gates fail on them all, on half of them, down to the held story alone. The
target moves by one fast-forward, and each story is done only after a look at the repository.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from oodatcaa.app import claims
from oodatcaa.app.checking import Checker, story_gates
from oodatcaa.app.exporting import HISTORY, export_records, promised_files
from oodatcaa.app.target import turn, write_ahead
from oodatcaa.app.work import Claimed
from oodatcaa.domain import submission
from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec, Verdict, verdict_of
from oodatcaa.domain.goal_gates import person_gates
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.task import (
    Failure,
    Integration,
    ManualLease,
    Role,
    Story,
    StoryStatus,
)
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.kit.files import write_atomic
from oodatcaa.vcs import TargetDirty, TargetMoved
from oodatcaa.vcs.integration import MergeChain
from oodatcaa.views.changelog import changelog_entry, insert_changelog

MERGE_TRIES = 3
BATCH = 8
"""Stories that are tried together at most; each keeps its own merge commit."""
_OWN_VARIABLE = re.compile(r"\{(?!python\}|worktree\})[a-z]")


@dataclass
class Merged:
    """One story in a chain of merges. `commit` is where its records stand."""

    story: Story
    plan: Plan
    gates: tuple[GateSpec, ...]
    merge: str = ""
    commit: str = ""
    evidence: tuple[Evidence, ...] = ()
    problems: tuple[str, ...] = ()


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
        except _GatesFailed as failed:
            return _red(claimed, failed.merged[0])
        except TargetMoved as error:
            return _failed(
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
            return _failed(claimed, held, summary, human=True, code=error.code, lines=details)


def _integrate(claimed: Claimed, held: Merged) -> str:
    """Try all that is ready, then half of it, and so on; the held story is always in it."""
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
        except _GatesFailed as failed:
            size = len(failed.merged) // 2
            if size == 0:
                raise
            names = ", ".join(item.story.id for item in failed.merged)
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
        plan = project.plans.load(story.id, story.plan_version)
        waived = {item.gate_id for item in story.waivers if item.at <= now < item.until}
        if all(gate.id in waived for gate in person_gates(plan.goals)):
            found.append(Merged(story, plan, story_gates(plan)))
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
        for item in merged:
            _record(claimed, chain, item)
        claimed.stop_if_asked()
        _still_ours(claimed)
        write_ahead(claimed.project, target, chain.base, chain.head, names)
        advanced = project.repo.advance(target, chain.head, chain.base)
    outcome = _prove(claimed, merged[0], target)
    for item in merged[1:]:
        _prove_other(claimed, item, target)
    if advanced.note:
        claimed.broadcast.say(advanced.note)
    return outcome


def _merge_all(claimed: Claimed, chain: MergeChain, batch: list[Merged]) -> list[Merged]:
    merged = []
    repo = claimed.project.repo
    for item in batch:
        story, branch = item.story, item.plan.branch
        message = f"Merge {story.id}: {story.title}"
        candidate = chain.add(branch, repo.resolve(branch), message)
        if candidate.ok:
            merged.append(replace(item, merge=candidate.merge or chain.head))
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
        story = item.story
        if story.id != claimed.task.id:
            story = story.evolve(attempt=story.attempt + 1)
        reused = tuple(shared[_key(gate)] for gate in item.gates if _key(gate) in shared)
        rest = tuple(gate for gate in item.gates if _key(gate) not in shared)
        fresh = (
            checker.run(rest, item.plan, story, commit, say=claimed.broadcast.say) if rest else ()
        )
        for found in fresh:
            if found.verdict is Verdict.PASSED and _same_for_all(found.gate):
                shared[_key(found.gate)] = found
        item.evidence = (*reused, *fresh)
        item.problems = verdict_of(item.evidence, item.gates)


def _key(gate: GateSpec) -> str:
    return gate.model_dump_json()


def _same_for_all(gate: GateSpec) -> bool:
    return gate.kind is GateKind.COMMAND and not _OWN_VARIABLE.search(gate.command)


def _still_ours(claimed: Claimed) -> None:
    """The target is only moved by the attempt that holds the lease now."""
    task = claimed.project.board().find(claimed.task.id)
    if task is None or task.lease is None or task.lease.attempt != claimed.attempt:
        raise RefusedError("lease.lost", f"{claimed.task.id} is held by another attempt now")


def _record(claimed: Claimed, chain: MergeChain, item: Merged) -> None:
    """Changelog and history, committed on top of the merges."""
    project, story = claimed.project, item.story
    sprint = project.sprint()
    integration = _integration(item, sprint.target_branch)
    changelog = chain.worktree / "CHANGELOG.md"
    old = changelog.read_text(encoding="utf-8") if changelog.exists() else ""
    entry = changelog_entry(story, integration, item.plan.goal)
    write_atomic(changelog, insert_changelog(old, entry))
    folder = HISTORY / f"sprint-{sprint.number}" / story.id
    exported = export_records(claimed, story, chain.worktree / folder, item.evidence)
    paths = ["CHANGELOG.md", *(str(folder / name) for name in exported)]
    chain.commit(paths, f"[docs] {story.id} changelog and records")
    item.commit = chain.head


def _integration(item: Merged, target: str) -> Integration:
    return Integration(
        target=target,
        merge_commit=item.merge,
        tag=f"{item.story.id}-complete",
        evidence=tuple(found.id for found in item.evidence),
        artefacts=promised_files(item.plan),
        at=datetime.now(UTC),
    )


def _prove_other(claimed: Claimed, item: Merged, target: str) -> None:
    """A story of the batch that landed with the held one: claim it and look for the proof.

    When it can not be claimed any more (cancelled a moment ago, say) the log says that it is in
    the target; whoever claims it next finds it merged.
    """
    lease = claimed.task.lease
    try:
        task = claims.claim(
            claimed.project.store,
            claimed.project.policy,
            role=Role.INTEGRATOR,
            owner=claimed.owner,
            task=item.story.id,
            manual=isinstance(lease, ManualLease),
        )
    except RefusedError as error:
        claimed.broadcast.say(f"{item.story.id} is in {target}, but: {error.message}")
        return
    other = replace(claimed, task=task, started_at=datetime.now(UTC))
    _prove(other, item, target)
    claimed.broadcast.say(f"{item.story.id} done, in the same batch as {claimed.task.id}")


def _prove(claimed: Claimed, item: Merged, target: str) -> str:
    """Look at the repository as it is now; only then is the story done."""
    repo, story, plan = claimed.project.repo, item.story, item.plan
    head = item.commit
    tag = f"{story.id}-complete"
    number = claimed.project.sprint().number
    if repo.try_resolve(f"refs/tags/{tag}") not in (None, head):
        tag = f"sprint-{number}-{tag}"
    repo.tag(tag, head, f"{story.id}: {story.title}")
    present = set(repo.paths_at(head))
    problems = [
        *([] if repo.is_ancestor(repo.resolve(plan.branch), target) else ["branch not in target"]),
        *([] if repo.is_ancestor(head, target) else [f"{head[:12]} is not in {target}"]),
        *([] if repo.resolve(tag) == head else [f"tag {tag} does not resolve to {head[:12]}"]),
        *(f"{path} is not there" for path in promised_files(plan) if path not in present),
    ]
    if problems:
        return _failed(claimed, item, "; ".join(problems), human=True, code="proof")
    integration = _integration(item, target).evolve(tag=tag)
    claimed.project.store.transact(
        lambda board, now: submission.submit_integration(
            board,
            now,
            story=story.id,
            owner=claimed.owner,
            attempt=claimed.attempt,
            integration=integration,
        )
    )
    try:
        repo.remove_story_worktree(story.id)
    except OodatcaaError as error:
        # The story is integrated; a worktree with leftovers stays for a person to look at.
        claimed.broadcast.say(f"{story.id} worktree kept: {error.message}")
    claimed.report(
        "complete",
        plan,
        item.evidence,
        summary=(
            f"merged into {target} as {item.merge[:12]} with --no-ff, tagged {tag}",
            f"proof: {plan.branch} is an ancestor of {target}, the tag resolves, "
            f"{len(promised_files(plan))} promised files exist at {head[:12]}, gates green "
            "after the merge",
        ),
        commit=head,
    )
    return "done"


def _conflicting(claimed: Claimed, held: Merged, paths: tuple[str, ...]) -> str:
    target = claimed.project.sprint().target_branch
    some = ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "")
    return _failed(
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
    return _failed(claimed, held, summary, human=human, code=code, lines=held.problems)


def _failed(
    claimed: Claimed,
    item: Merged,
    summary: str,
    *,
    human: bool,
    code: str,
    lines: tuple[str, ...] = (),
) -> str:
    story = item.story
    failure = Failure(kind=code, task=story.id, summary=summary, gates=lines, at=datetime.now(UTC))
    claimed.project.store.transact(
        lambda board, now: submission.integration_failed(
            board,
            now,
            story=story.id,
            owner=claimed.owner,
            attempt=claimed.attempt,
            failure=failure,
            human=human,
        )
    )
    claimed.report(
        "needs a person" if human else "needs adaptation",
        item.plan,
        item.evidence,
        summary=(summary, *lines),
    )
    return "needs_human" if human else "needs_adapt"
