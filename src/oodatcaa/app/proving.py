"""A story of a merged batch: what is known about it, and the proof that it is in the target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from oodatcaa.app import claims
from oodatcaa.app.claimed import Claimed
from oodatcaa.domain import submission
from oodatcaa.domain.evidence import Evidence, GateSpec
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.task import Failure, Integration, ManualLease, Role, Story
from oodatcaa.errors import OodatcaaError, RefusedError


@dataclass
class Merged:
    """One story in a chain of merges: the commit of its branch that was tested, its merge, the
    commit that its gates ran at, and the one where its records stand."""

    story: Story
    plan: Plan
    gates: tuple[GateSpec, ...]
    tested: str = ""
    merge: str = ""
    checked: str = ""
    commit: str = ""
    evidence: tuple[Evidence, ...] = ()
    problems: tuple[str, ...] = ()


def integration_of(item: Merged, target: str) -> Integration:
    return Integration(
        target=target,
        merge_commit=item.merge,
        tag=f"{item.story.id}-complete",
        evidence=tuple(found.id for found in item.evidence),
        artefacts=item.plan.promised_files,
        at=datetime.now(UTC),
    )


def prove_other(claimed: Claimed, item: Merged, target: str) -> None:
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
    try:
        outcome = prove(other, item, target)
    except OodatcaaError as error:
        claimed.broadcast.say(f"{item.story.id} is in {target}, but: {error.message}")
        outcome = failed(other, item, error.message, human=True, code=error.code)
    claimed.broadcast.say(f"{item.story.id} {outcome}, in the same batch as {claimed.task.id}")


def prove(claimed: Claimed, item: Merged, target: str) -> str:
    """Look at the repository as it is now; only then is the story done."""
    repo, story, plan = claimed.project.repo, item.story, item.plan
    head = item.commit
    tag = _tagged(claimed, item, target)
    present = set(repo.paths_at(head))
    problems = [
        *([] if repo.is_ancestor(item.tested, target) else ["branch not in target"]),
        *([] if repo.is_ancestor(head, target) else [f"{head[:12]} is not in {target}"]),
        *([] if _marks(claimed, item, tag, target) else [f"tag {tag} is not at the merge"]),
        *(f"{path} is not there" for path in plan.promised_files if path not in present),
    ]
    if problems:
        return failed(claimed, item, "; ".join(problems), human=True, code="proof")
    integration = integration_of(item, target).evolve(tag=tag)
    claimed.project.store.transact(
        lambda board, now: submission.submit_integration(
            board,
            now,
            story=story.id,
            owner=claimed.owner,
            attempt=claimed.attempt,
            integration=integration,
            commit=item.checked,
            evidence=item.evidence,
            gates=item.gates,
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
            f"proof: {item.tested[:12]}, the tested commit of {plan.branch}, is an ancestor of "
            f"{target}, the tag resolves, "
            f"{len(plan.promised_files)} promised files exist at {head[:12]}, gates green "
            "after the merge",
        ),
        commit=head,
    )
    return "done"


def _tagged(claimed: Claimed, item: Merged, target: str) -> str:
    """The story's tag: the one of an attempt that died after tagging, or a new one."""
    repo, story = claimed.project.repo, item.story
    name = f"{story.id}-complete"
    names = (name, f"sprint-{claimed.project.sprint().number}-{name}")
    for tag in names:
        if _marks(claimed, item, tag, target):
            return tag
    tag = names[0] if repo.try_resolve(f"refs/tags/{name}") is None else names[1]
    repo.tag(tag, item.commit, f"{story.id}: {story.title}")
    return tag


def _marks(claimed: Claimed, item: Merged, tag: str, target: str) -> bool:
    """Whether the tag names a commit of the target that holds the story."""
    repo = claimed.project.repo
    found = repo.try_resolve(f"refs/tags/{tag}")
    if found is None:
        return False
    return repo.is_ancestor(item.tested, found) and repo.is_ancestor(found, target)


def failed(
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
