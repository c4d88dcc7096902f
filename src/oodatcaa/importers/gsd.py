"""Plans in the "get shit done" form: YAML front matter, then tasks between XML-like tags.

The result is a draft: steps, gates and criteria of a story to come. Commands are taken over as
they are written; nothing is run, and what could not work on this machine is reported.
"""

from __future__ import annotations

import re
from functools import cached_property

from oodatcaa.domain.draft import DraftStep, DraftStory
from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.goals import Goals
from oodatcaa.domain.task import slugify
from oodatcaa.importers.commands import foreign_paths, script
from oodatcaa.importers.findings import Findings, leftovers, short
from oodatcaa.importers.gsd_front import Front
from oodatcaa.importers.gsd_goals import goals_of
from oodatcaa.importers.plan_text import (
    commands_in,
    commands_of,
    content_of,
    dedent,
    items_of,
    key_of,
    objective_of,
    split_front,
    title_of,
)
from oodatcaa.importers.records import Imported, ImportKind
from oodatcaa.importers.sections import CONTAINERS, FIELDS, Outline, Section, outline

KNOWN = FIELDS | {
    "objective",
    "execution_context",
    "context",
    "tasks",
    "task",
    "feature",
    "verification",
    "success_criteria",
    "output",
    "interfaces",
}
STEP_PARTS = (
    "name",
    "title",
    "files",
    "action",
    "done",
    "behavior",
    "implementation",
    "read_first",
    "acceptance_criteria",
)
_CHANGES = re.compile(r"--fix\b|\bruff format\b(?![^\n]*--(?:check|diff))|\bprettier --write\b")


def read_plan(text: str, *, source: str) -> Imported:
    """The plan in `text` as one draft, if it has a goal or a task, and everything odd about it.

    Never raises.
    """
    findings = Findings(source)
    text = text.replace("\r\n", "\n").removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    values, body, line, lines = split_front(text, findings)
    front = Front(values, lines, findings)
    parts = outline(body, line, KNOWN)
    for where, problem in parts.problems:
        findings.error("plan.damaged", where, problem)
    for where, loose in parts.loose:
        findings.info("plan.unmapped", where, "text outside every section", loose)
    draft = _Drafter(findings, front, parts, source).draft()
    found = findings.all()
    # Neither a goal nor a task: there is nothing that anybody could do.
    drafts = (draft.evolve(leftovers=leftovers(found)),) if draft.goal or draft.steps else ()
    return Imported(kind=ImportKind.GSD, source=source, drafts=drafts, findings=found)


def _asked(task: Section) -> str:
    """What a checkpoint without a name is about: the first line of what is asked or was built."""
    if not task.attributes.get("type", "").startswith("checkpoint"):
        return ""
    parts = [task.part(name) for name in ("decision", "what-built", "action", "instructions")]
    lines = [part.text.strip().split("\n")[0] for part in parts if part]
    return short(next((line for line in lines if line), ""), 80)


class _Drafter:
    def __init__(self, findings: Findings, front: Front, parts: Outline, source: str) -> None:
        self.findings = findings
        self.front = front
        self.parts = parts
        self.source = source
        self.gates: list[GateSpec] = []
        self.statements: dict[str, None] = {}
        self.read_first: list[str] = []

    def draft(self) -> DraftStory:
        front = self.front
        phase, plan, wave = front.text("phase"), front.text("plan"), front.text("wave")
        files = front.texts("files_modified") + front.texts("files-modified")
        depends = front.needed(phase, plan)
        must_haves = front.take("must_haves", {})
        objective = self._section("objective")
        goal, purpose, output = objective_of(objective.text if objective else "")
        if not goal:
            self.findings.error("plan.no_objective", None, "the plan has no <objective>")
        steps = self._steps()
        named = [*files, *(name for step in steps for name in step.files)]
        goals = goals_of(must_haves, named, self.findings, front.lines)
        autonomous = front.autonomous(asks=any(step.needs_human for step in steps))
        self._criteria()
        self._promised(goals)
        self._compare_files(files, steps, goals)
        for name in depends:
            self.findings.info(
                "plan.depends_on",
                front.lines.of("depends_on", name),
                f"it waits for the plan {name}, which stands in another file",
            )
        references = self._references()
        self._rest()
        key = key_of(phase, plan) or self.source
        title = title_of(goal) or key
        return DraftStory(
            key=key,
            title=title,
            slug=slugify(title),
            goal=goal,
            purpose=purpose,
            output=output,
            phase=phase,
            wave=int(wave) if re.fullmatch(r"\d{1,6}", wave) else None,
            autonomous=autonomous,
            depends_on=depends,
            files=files,
            goals=goals,
            steps=steps,
            gates=tuple(self.gates),
            statements=tuple(self.statements),
            references=references,
        )

    def _section(self, name: str) -> Section | None:
        found = [section for section in self.parts.sections if section.name == name]
        for extra in found[1:]:
            self.findings.warning(
                "plan.duplicate",
                extra.line,
                f"<{name}> a second time; the first counts",
                extra.text,
            )
        return found[0] if found else None

    def _steps(self) -> tuple[DraftStep, ...]:
        sections: list[Section] = []
        for section in self.parts.sections:
            if section.name == "tasks":
                sections += [part for part in section.parts if part.name in CONTAINERS]
                self._odd_parts(section)
            elif section.name == "task":
                self.findings.warning("plan.damaged", section.line, "a <task> outside <tasks>")
                sections.append(section)
            elif section.name == "feature":
                sections.append(section)
        if not sections:
            self.findings.error("plan.no_tasks", None, "the plan has no <task>")
        return tuple(self._step(number, item) for number, item in enumerate(sections, start=1))

    def _odd_parts(self, tasks: Section) -> None:
        for part in tasks.parts:
            if part.name not in CONTAINERS:
                self.findings.info(
                    "plan.unmapped", part.line, f"<{part.name}> between the tasks", content_of(part)
                )

    def _step(self, number: int, task: Section) -> DraftStep:
        texts = {part: self._part(task, part) for part in STEP_PARTS}
        kind = task.attributes.get("type", "tdd" if task.name == "feature" else "auto")
        name = texts["name"] or texts["title"]
        self._check_name(number, name, task)
        title = re.sub(r"^Task\s+\d+\s*[:.-]\s*", "", name) or _asked(task) or f"Step {number}"
        human = kind.startswith("checkpoint")
        if human:
            self.findings.warning(
                "plan.checkpoint", task.line, f"task {number} ({kind}) waits for a person"
            )
        gates = self._verify(number, title, task, human=human)
        gates += self._accepted(number, task, texts["acceptance_criteria"])
        self.read_first += [text.lstrip("@") for text in items_of(texts["read_first"])]
        extra = {
            part.name: content_of(part)
            for part in task.parts
            if part.name not in (*STEP_PARTS, "verify") and not human
        }
        if extra:
            self.findings.info("plan.unmapped", task.line, f"task {number}: more sections", extra)
        known = {"type": kind, "gate": "blocking"} if human else {"type": kind}
        marks = {k: v for k, v in task.attributes.items() if known.get(k) != v}
        if marks:
            self.findings.info("plan.unmapped", task.line, f"task {number}: attributes", marks)
        files = re.split(r"[\n,]+", texts["files"])
        return DraftStep(
            number=number,
            title=" ".join(title.split())[:200],
            kind=kind,
            files=tuple(name.strip().lstrip("-* ") for name in files if name.strip("-* \t")),
            action=self._action(task, texts, human=human),
            done=texts["done"],
            gates=gates,
            needs_human=human,
        )

    def _check_name(self, number: int, name: str, task: Section) -> None:
        told = re.match(r"Task\s+(\d+)", name)
        if told and int(told[1][:9]) != number:
            self.findings.warning(
                "plan.numbering", task.line, f"task {number} calls itself {told[0]!r}"
            )
        if not name and not task.attributes.get("type", "").startswith("checkpoint"):
            self.findings.warning("plan.no_name", task.line, f"task {number} has no <name>")

    @staticmethod
    def _action(task: Section, texts: dict[str, str], *, human: bool) -> str:
        """What is to be done; of a checkpoint everything that the person has to read."""
        if human:
            shown = [part for part in task.parts if part.name not in ("name", "title", "verify")]
            return "\n\n".join(f"{part.name}: {content_of(part)}" for part in shown)
        parts = [texts["action"] or texts["implementation"]]
        if task.attributes.get("tdd") == "true":
            parts.insert(0, "Test first: write a test that fails, then the code.")
        if texts["behavior"]:
            parts.insert(0, f"Behaviour, to be tested first:\n{texts['behavior']}")
        return "\n\n".join(part for part in parts if part)

    def _accepted(self, number: int, task: Section, text: str) -> tuple[str, ...]:
        """Gates from a task's own <acceptance_criteria>; words go to the statements."""
        ids: list[str] = []
        for item in items_of(text):
            commands, name, statement = commands_in(item)
            for command in commands:
                ids.append(f"V{number}.c{len(ids) + 1}")
                self._gate(ids[-1], name, command, task.line, statement=statement)
            if not commands or statement != item:
                self.statements[item] = None
        return tuple(ids)

    def _part(self, task: Section, name: str) -> str:
        parts = [part for part in task.parts if part.name == name]
        for extra in parts[1:]:
            self.findings.warning(
                "plan.duplicate", extra.line, f"<{name}> a second time in one task", extra.text
            )
        return dedent(parts[0].text) if parts else ""

    def _verify(self, number: int, title: str, task: Section, *, human: bool) -> tuple[str, ...]:
        """Gates from every <verify> of a task; their ids."""
        ids: list[str] = []
        for part in (part for part in task.parts if part.name == "verify"):
            commands, prose = commands_of(part.text)
            for command in commands:
                gate = f"V{number}" + (f".{len(ids) + 1}" if ids else "")
                ids.append(gate)
                self._gate(gate, f"Step {number}: {title}", command, part.line)
            if prose:
                self.statements[prose] = None
                self.findings.warning(
                    "plan.verify_prose",
                    part.line,
                    f"task {number}: no command decides {short(prose)!r}",
                    prose,
                )
        if not ids and not human and not any(part.name == "verify" for part in task.parts):
            self.findings.warning(
                "plan.no_verify", task.line, f"task {number} has no <verify>: nothing decides it"
            )
        return tuple(ids)

    def _gate(self, gate: str, name: str, command: str, line: int, statement: str = "") -> None:
        """Record a command. A script gets `set -e`: no later success may hide a failure."""
        self._warn_of_paths(command, line)
        if _CHANGES.search(command):
            self.findings.warning(
                "plan.gate_changes",
                line,
                f"{gate} changes files as it runs; a check's own are thrown away afterwards",
                command,
            )
        guarded = script(command)
        if guarded != command:
            self.findings.info(
                "plan.set_e", line, f"{gate}: 'set -e' was put before a script of several commands"
            )
        self.gates.append(
            GateSpec(
                id=gate,
                name=" ".join(name.split())[:120],
                kind=GateKind.COMMAND,
                command=guarded,
                statement=statement,
                verbatim=True,
            )
        )

    def _warn_of_paths(self, command: str, line: int) -> None:
        for path in foreign_paths(command):
            tops = {name.split("/")[0] for name in self.task_files if "/" in name}
            inside = [part for part in re.split(r"[/\\]", path) if part in tops]
            hint = f"; perhaps --map {path}={inside[0]}" if inside else ""
            self.findings.warning(
                "plan.foreign_path",
                line,
                f"{path} is a path of another machine: its command can not pass here{hint}",
                command,
            )

    @cached_property
    def task_files(self) -> tuple[str, ...]:
        found: list[str] = []
        for section in self.parts.sections:
            for task in section.parts:
                part = task.part("files")
                found += part.text.split() if part else []
        return tuple(dict.fromkeys(found))

    def _criteria(self) -> None:
        """<verification> and <success_criteria>: a line in backticks is a command, else words."""
        number = 0
        for part in ("verification", "success_criteria"):
            section = self._section(part)
            for text in items_of(section.text if section else ""):
                commands, name, statement = commands_in(text)
                for command in commands:
                    number += 1
                    line = section.line if section else 1
                    self._gate(f"AC{number}", name, command, line, statement=statement)
                if not commands or statement != text:
                    self.statements[text] = None

    def _promised(self, goals: Goals) -> None:
        if goals.artifacts:
            paths = tuple(dict.fromkeys(item.path for item in goals.artifacts))
            self.gates.append(
                GateSpec(
                    id="F1",
                    name="Promised files",
                    kind=GateKind.FILES,
                    paths=paths,
                    statement=f"At the commit there are: {', '.join(paths)}",
                )
            )
        truths = {item.statement for item in goals.truths}
        self.statements = {text: None for text in self.statements if text not in truths}

    def _compare_files(
        self, files: tuple[str, ...], steps: tuple[DraftStep, ...], goals: Goals
    ) -> None:
        """The same files are named in up to three places."""
        named = {name for step in steps for name in step.files}
        for name in sorted(named - set(files)):
            self.findings.warning(
                "plan.files_differ",
                self.front.lines.of("files_modified"),
                f"{name} is in a task, but not in files_modified",
            )
        for name in sorted(set(files) - named) if named else []:
            self.findings.warning(
                "plan.files_differ",
                self.front.lines.of("files_modified", name),
                f"{name} is in files_modified, but in no task",
            )
        for item in goals.artifacts:
            if files and item.path not in files:
                self.findings.warning(
                    "plan.files_differ",
                    self.front.lines.of("must_haves", item.path),
                    f"{item.path} must exist afterwards, but is not in files_modified",
                )

    def _references(self) -> tuple[str, ...]:
        found: list[str] = []
        for name in ("execution_context", "context"):
            section = self._section(name)
            lines = section.text.split("\n") if section else []
            found += [line.strip()[1:].strip() for line in lines if line.strip().startswith("@")]
            rest = dedent("\n".join(x for x in lines if not x.strip().startswith("@")))
            if section and rest:
                self.findings.info("plan.unmapped", section.line, f"text in <{name}>", rest)
        return tuple(dict.fromkeys(name for name in [*found, *self.read_first] if name))

    def _rest(self) -> None:
        """Whatever nothing above has taken."""
        taken = {"objective", "execution_context", "context", "tasks", "task"}
        taken |= {"verification", "success_criteria", "feature"}
        for section in self.parts.sections:
            if section.name not in taken:
                self.findings.info(
                    "plan.unmapped",
                    section.line,
                    f"<{section.name}> is kept word for word",
                    content_of(section),
                )
        self.front.rest()
