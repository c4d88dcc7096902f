"""Merge a story, check the merge, export its records, move the target, prove it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from oodatcaa.app.checking import Checker
from oodatcaa.app.work import Claimed
from oodatcaa.domain import submission
from oodatcaa.domain.evidence import Evidence, GateSpec, verdict_of
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.task import Failure, Integration, Story
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.kit.files import write_atomic
from oodatcaa.vcs import TargetDirty, TargetMoved
from oodatcaa.vcs.integration import MergeCandidate
from oodatcaa.views.changelog import changelog_entry, insert_changelog

HISTORY = Path(".oodatcaa") / "history"
MERGE_TRIES = 3


def integrate(claimed: Claimed, story: Story, plan: Plan, gates: tuple[GateSpec, ...]) -> str:
    """One word for the log: done, needs_adapt or needs_human."""
    for tries in range(1, MERGE_TRIES + 1):
        try:
            return _integrate(claimed, story, plan, gates)
        except TargetMoved as error:
            claimed.broadcast.say(f"{story.id} {error.message}; merging again ({tries})")
        except (TargetDirty, OodatcaaError) as error:
            hint = f"; {error.hint}" if error.hint else ""
            return _failed(
                claimed, story, plan, f"{error.message}{hint}", human=True, code=error.code
            )
    return _failed(
        claimed, story, plan, "the target moved during every try", human=True, code="merge"
    )


def _integrate(claimed: Claimed, story: Story, plan: Plan, gates: tuple[GateSpec, ...]) -> str:
    project = claimed.project
    target = project.sprint().target_branch
    message = f"Merge {story.id}: {story.title}"
    with project.repo.merge_into(target, plan.branch, message, story.id) as candidate:
        if not candidate.ok:
            files = ", ".join(candidate.conflicts[:5])
            return _failed(
                claimed, story, plan, f"merge conflicts in {files}", human=True, code="merge"
            )
        claimed.broadcast.say(f"{story.id} merged in a worktree; running its gates on the merge")
        evidence = Checker(project, claimed.desk).run(
            gates, plan, story, candidate.sha, say=claimed.broadcast.say
        )
        problems = verdict_of(evidence, gates)
        if problems:
            summary = f"gates are not green after the merge: {problems[0]}"
            return _failed(claimed, story, plan, summary, human=False, code="gate", lines=problems)
        merge_commit = candidate.merge or candidate.sha
        _record(claimed, story, plan, candidate, evidence, merge_commit)
        claimed.stop_if_asked()
        _still_ours(claimed)
        advanced = project.repo.advance(target, candidate.sha, candidate.base)
    return _prove(claimed, story, plan, target, advanced.sha, merge_commit, evidence)


def _still_ours(claimed: Claimed) -> None:
    """The target is only moved by the attempt that holds the lease now."""
    task = claimed.project.board().find(claimed.task.id)
    if task is None or task.lease is None or task.lease.attempt != claimed.attempt:
        raise RefusedError("lease.lost", f"{claimed.task.id} is held by another attempt now")


def _record(
    claimed: Claimed,
    story: Story,
    plan: Plan,
    candidate: MergeCandidate,
    evidence: tuple[Evidence, ...],
    merge_commit: str,
) -> None:
    """Changelog and history, committed on top of the merge."""
    project = claimed.project
    sprint = project.sprint()
    integration = _integration(story, sprint.target_branch, merge_commit, evidence, plan)
    changelog = candidate.worktree / "CHANGELOG.md"
    old = changelog.read_text(encoding="utf-8") if changelog.exists() else ""
    entry = changelog_entry(story, integration, plan.goal)
    write_atomic(changelog, insert_changelog(old, entry))
    folder = HISTORY / f"sprint-{sprint.number}" / story.id
    exported = export_records(claimed, story, candidate.worktree / folder, evidence)
    paths = ["CHANGELOG.md", *(str(folder / name) for name in exported)]
    candidate.commit(paths, f"[docs] {story.id} changelog and records")


def export_records(
    claimed: Claimed, story: Story, target: Path, fresh: tuple[Evidence, ...]
) -> list[str]:
    """Copy plans, reports and facts; summarise the evidence; return the names written."""
    project = claimed.project
    names: list[str] = []
    sources = (
        ("plans", project.plans.folder(story.id), ("*.md", "plan-v*[0-9].json")),
        ("reports", project.work / "reports" / story.id, ("*.md", "*.json")),
        ("facts", project.work / "facts" / story.id, ("*.json",)),
    )
    for label, folder, patterns in sources:
        for path in sorted({found for pattern in patterns for found in folder.glob(pattern)}):
            if ".attempt-" in path.name:
                continue
            name = f"{label}/{path.name}"
            write_atomic(target / name, path.read_bytes())
            names.append(name)
    summary = [summarise(item) for item in (*project.evidence.of_story(story.id), *fresh)]
    unique = {str(item["id"]): item for item in summary}
    write_atomic(target / "evidence.json", json.dumps(list(unique.values()), indent=2) + "\n")
    return [*names, "evidence.json"]


def summarise(evidence: Evidence) -> dict[str, object]:
    """What is kept of one piece of evidence in git: no output, only its hash."""
    kept = evidence.model_dump(mode="json", exclude={"output_path", "gate", "host"})
    return {**kept, "gate": evidence.gate.id, "name": evidence.gate.name}


def _integration(
    story: Story, target: str, commit: str, evidence: tuple[Evidence, ...], plan: Plan
) -> Integration:
    return Integration(
        target=target,
        merge_commit=commit,
        tag=f"{story.id}-complete",
        evidence=tuple(item.id for item in evidence),
        artefacts=promised_files(plan),
        at=datetime.now(UTC),
    )


def promised_files(plan: Plan) -> tuple[str, ...]:
    return tuple(path for path in plan.deliverables if "/" in path and " " not in path)


def _prove(
    claimed: Claimed,
    story: Story,
    plan: Plan,
    target: str,
    head: str,
    merge_commit: str,
    evidence: tuple[Evidence, ...],
) -> str:
    """Look at the repository as it is now; only then is the story done."""
    repo = claimed.project.repo
    tag = f"{story.id}-complete"
    number = claimed.project.sprint().number
    if repo.try_resolve(f"refs/tags/{tag}") not in (None, head):
        tag = f"sprint-{number}-{tag}"
    repo.tag(tag, head, f"{story.id}: {story.title}")
    present = set(repo.paths_at(head))
    problems = [
        *([] if repo.is_ancestor(repo.resolve(plan.branch), target) else ["branch not in target"]),
        *([] if repo.resolve(tag) == head else [f"tag {tag} does not resolve to {head[:12]}"]),
        *(f"{path} is not there" for path in promised_files(plan) if path not in present),
    ]
    if problems:
        return _failed(claimed, story, plan, "; ".join(problems), human=True, code="proof")
    integration = _integration(story, target, merge_commit, evidence, plan).evolve(tag=tag)
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
        evidence,
        summary=(
            f"merged into {target} as {merge_commit[:12]} with --no-ff, tagged {tag}",
            f"proof: {plan.branch} is an ancestor of {target}, the tag resolves, "
            f"{len(promised_files(plan))} promised files exist at {head[:12]}, gates green "
            "after the merge",
        ),
        commit=head,
    )
    return "done"


def _failed(
    claimed: Claimed,
    story: Story,
    plan: Plan,
    summary: str,
    *,
    human: bool,
    code: str,
    lines: tuple[str, ...] = (),
) -> str:
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
        "needs a person" if human else "needs adaptation", plan, summary=(summary, *lines)
    )
    return "needs_human" if human else "needs_adapt"
