"""Imported plans as plain text: what came from where, what would run, and what found no place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from oodatcaa.domain.adopting import Adopted, Outcome
from oodatcaa.domain.commit_message import commit_message
from oodatcaa.domain.draft import DraftStep, DraftStory
from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.past_work import PastWork
from oodatcaa.domain.source import Source
from oodatcaa.domain.task import Story, Subtask
from oodatcaa.views.units import printable


def draft_lines(story: Story, draft: DraftStory) -> list[str]:
    """Everything that a story was made of, its commands in full."""
    source = story.source
    lines = [f"{story.id}  {draft.title}"]
    lines += [f"    goal       {line}" for line in draft.goal.split("\n")[:1] if line]
    lines += [f"    waits for  {', '.join(story.depends_on)}"] if story.depends_on else []
    lines += [f"    priority   {draft.priority}"] if draft.priority is not None else []
    lines += [f"    wave       {draft.wave} of {draft.phase}"] if draft.wave is not None else []
    if source is not None:
        lines += [f"    from       {source.format} {source.file}, {source.key}"]
        lines += [f"    BLOCKED    {source.held_back}"] if source.held_back else []
    lines += [f"    changes    {', '.join(draft.files)}"] if draft.files else []
    for step in draft.steps:
        lines += _step_lines(step)
    lines += _goal_lines(draft)
    for gate in draft.gates:
        lines += _gate_lines(gate)
    lines += [f"    in words   {text}" for text in draft.statements]
    if source is not None and source.wants_approval:
        one = source.commands == 1
        count = "its 1 command does not run" if one else f"none of its {source.commands} runs"
        lines.append(f"    approval   {count} before oodatcaa approve {story.id}")
    return [printable(line) for line in lines]


def _step_lines(step: DraftStep) -> list[str]:
    """A step by its title; what is committed by its message, and what a person is asked in full."""
    message = commit_message(step.action) if step.kind == "commit" else ""
    title = f"{step.title}: {message.split(chr(10))[0]}" if message else step.title
    lines = [f"    step {step.number:>2}    [{step.kind}] {title}"]
    if step.needs_human:
        lines.append(f"{'':<15}you are asked here, and the steps after it wait:")
        lines += [f"{'':<15}{line}" for line in step.action.split("\n") if line.strip()]
    return lines


def _goal_lines(draft: DraftStory) -> list[str]:
    lines = [f"    truth      {item.statement}" for item in draft.goals.truths]
    for item in draft.goals.artifacts:
        wants = [f"at least {item.min_lines} lines"] if item.min_lines else []
        wants += [f"contains {text}" for text in item.contains]
        wants += [f"exports {text}" for text in item.exports]
        lines.append(f"    artifact   {item.path}{': ' if wants else ''}{', '.join(wants)}")
    for link in draft.goals.key_links:
        lines.append(f"    link       {link.source} -> {link.target} {link.pattern}".rstrip())
    return lines


def _gate_lines(gate: GateSpec) -> list[str]:
    if gate.kind is GateKind.FILES:
        return [f"    {gate.id:<10} files: {', '.join(gate.paths)}"]
    must = "must FAIL" if gate.expect == "failure" else "must pass"
    first, *rest = gate.command.split("\n")
    lines = [f"    {gate.id:<10} {must}: {first}", *(f"    {'':<10}   {line}" for line in rest)]
    if gate.statement:
        decides = "; the exit status decides" if gate.expect == "failure" else ""
        lines.append(f"    {'':<10}   ({gate.statement}{decides})")
    return lines


def source_lines(source: Source, draft: DraftStory | None) -> list[str]:
    """For `show`: where the story came from, its commands, and what was kept word for word."""
    approved = source.approved
    state = "no command needs an approval"
    if source.wants_approval:
        state = f"{source.commands} commands WAIT FOR APPROVAL"
    elif approved is not None:
        state = f"approved by {approved.by} {approved.at:%Y-%m-%d %H:%M} UTC: {approved.why}"
    lines = [
        "  imported from",
        f"    {source.format} {source.file}, {source.key}, sha256 {source.file_sha256[:16]}",
        f"    {state}",
    ]
    lines += [f"    held back: {source.held_back}"] if source.held_back else []
    lines += [f"    taken as done: {', '.join(source.assumed)}"] if source.assumed else []
    if draft is not None:
        lines += _command_lines(draft)
        lines += _plan_lines(draft)
    for item in source.leftovers:
        lines.append(f"    kept from {item.place}: {item.what}")
        lines += [f"      {line}" for line in item.text.split("\n")]
    return [printable(line) for line in lines]


def _plan_lines(draft: DraftStory) -> list[str]:
    """Everything else of the plan, in full: agents are told it, so people can read it."""
    wave = "" if draft.wave is None else str(draft.wave)
    pairs = [
        ("phase", draft.phase),
        ("wave", wave),
        ("priority", "" if draft.priority is None else str(draft.priority)),
        ("purpose", draft.purpose),
        ("output", draft.output),
        ("a person", "" if draft.autonomous else "is needed on the way"),
        ("read first", ", ".join(draft.references)),
        ("changes", ", ".join(draft.files)),
    ]
    lines = ["  the plan"]
    for name, text in pairs:
        for number, line in enumerate(text.split("\n") if text else ()):
            lines.append(f"    {name if number == 0 else '':<10} {line}")
    for step in draft.steps:
        lines.append(f"    step {step.number:>2}    [{step.kind}] {step.title}")
        lines += [f"      files: {', '.join(step.files)}"] if step.files else []
        lines += [f"      {line}" for line in step.action.split("\n") if step.action]
        lines += [f"      done: {line}" for line in step.done.split("\n") if step.done]
    lines += _goal_lines(draft)
    return lines + [f"    in words   {text}" for text in draft.statements]


def _command_lines(draft: DraftStory) -> list[str]:
    lines = ["  commands of the plan"] if draft.commands else []
    for gate in draft.gates:
        if gate.kind is GateKind.COMMAND:
            lines += _gate_lines(gate)
    lines += [f"    truth      {truth.command}" for truth in draft.goals.truths if truth.command]
    return lines


class Shown(Protocol):
    """What an import hands back, as far as it is shown."""

    @property
    def dry_run(self) -> bool: ...
    @property
    def sprint(self) -> bool: ...
    @property
    def adopted(self) -> Sequence[Adopted]: ...
    @property
    def stories(self) -> Sequence[Story]: ...
    @property
    def drafts(self) -> Sequence[DraftStory]: ...
    @property
    def changes(self) -> Mapping[str, Sequence[str]]: ...

    def summaries(self) -> Iterable[str]: ...
    def over(self) -> Iterable[str]: ...


def report_lines(report: Shown) -> list[str]:
    """Every file with every finding, every story, and what became of it."""
    lines = [printable(line) for line in report.summaries()]
    stories = {story.id: story for story in report.stories}
    for item, draft in zip(report.adopted, report.drafts, strict=True):
        lines += _adopted_lines(report, item, stories.get(item.story), draft)
    over = [printable(line) for line in report.over()]
    lines += ["", *over] if over else []
    if not report.sprint and report.adopted:
        lines += ["", "no sprint is open: the next one begins with these stories"]
    return lines


def _adopted_lines(
    report: Shown, item: Adopted, story: Story | None, draft: DraftStory
) -> list[str]:
    """What became of one draft: in full what is new, in short what stays as it was."""
    word = _WORDS[report.dry_run][item.outcome]
    if item.outcome in (Outcome.CREATED, Outcome.UPDATED) and story is not None:
        lines = ["", f"{word}{': ' + item.why if item.why else ''}", *draft_lines(story, draft)]
    else:
        lines = ["", f"{word}: {item.story}  {draft.title}"]
        lines += [f"    {item.why}"] if item.why else []
    lines += [f"    changed    {line}" for line in report.changes.get(item.story, ())]
    return [printable(line) for line in lines]


_WORDS = {
    False: {
        Outcome.CREATED: "created",
        Outcome.UNCHANGED: "unchanged",
        Outcome.UPDATED: "updated",
        Outcome.KEPT: "kept as it is",
    },
    True: {
        Outcome.CREATED: "would create",
        Outcome.UNCHANGED: "would not change",
        Outcome.UPDATED: "would update",
        Outcome.KEPT: "would keep as it is",
    },
}


def past_lines(past: PastWork) -> list[str]:
    """For `show`: a task that only an imported file knows."""
    lines = [
        f"{past.id} is not on the board; {past.format.value} {past.file} tells of it, "
        "not proven here"
    ]
    lines += [f"  called there   {past.called}"] if past.called != past.id else []
    lines += [f"  made of it     {past.here}"] if past.here else []
    if past.story is not None:
        lines += _task_lines(past.story, "  ")
        lines += [f"  goal           {past.story.goal}"] if past.story.goal else []
    elif not past.subtasks and past.told:
        lines.append(f"  {past.told}")
    for part in past.subtasks:
        lines += _task_lines(part, "    " if past.story else "  ")
    if past.notes:
        lines.append("  its history there")
        lines += [
            f"    {note.at:%Y-%m-%d %H:%M}  {note.subject}  {note.text}" for note in past.notes
        ]
    if past.findings:
        lines.append("  what the import found")
        lines += [f"    {text}" for text in past.findings]
    return [printable(line) for line in lines]


def _task_lines(task: Story | Subtask, margin: str) -> list[str]:
    facts = [task.status.value]
    facts += [f"{task.estimate_minutes} minutes estimated"]
    facts += [f"commit {task.commit}"] if task.commit else []
    facts += [f"waits for {', '.join(task.depends_on)}"] if task.depends_on else []
    facts += [task.reason] if task.reason else []
    return [f"{margin}{task.id:<9}  {task.title}", f"{margin}{'':<9}  {'; '.join(facts)}"]
