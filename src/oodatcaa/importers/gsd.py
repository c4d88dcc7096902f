"""Plans in the "get shit done" form: YAML front matter, then tasks between XML-like tags.

The result is a draft: steps, gates and criteria of a story to come. Commands are taken over as
they are written; nothing is run, and what could not work on this machine is reported.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.task import slugify
from oodatcaa.importers.findings import Findings, as_json, short
from oodatcaa.importers.plan_text import (
    PROGRAM,
    commands_of,
    content_of,
    dedent,
    items_of,
    key_of,
    objective_of,
    split_front,
    title_of,
)
from oodatcaa.importers.records import (
    DraftArtifact,
    DraftLink,
    DraftStep,
    DraftStory,
    Imported,
    ImportKind,
    MustHaves,
)
from oodatcaa.importers.sections import FIELDS, Outline, Section, outline

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
_CHANGES = re.compile(r"--fix\b|\bruff format\b(?![^\n]*--(?:check|diff))|\bprettier --write\b")
_ELSEWHERE = re.compile(
    r"(?:/Users|/home|/Volumes|/root|/mnt|[A-Za-z]:\\Users)[/\\][^\s\"';&|)]+|(?<=cd )/[^\s\"';&|]+"
)


def read_plan(text: str, *, source: str) -> Imported:
    """The plan in `text` as one draft, and everything odd about it. Never raises."""
    findings = Findings(source)
    text = text.replace("\r\n", "\n").removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    front, body, line = split_front(text, findings)
    parts = outline(body, line, KNOWN)
    for where, problem in parts.problems:
        findings.error("plan.damaged", where, problem)
    for where, loose in parts.loose:
        findings.info("plan.unmapped", where, "text outside every section", loose)
    draft = _Drafter(findings, front, parts, source).draft()
    return Imported(kind=ImportKind.GSD, source=source, drafts=(draft,), findings=findings.all())


class _Drafter:
    def __init__(
        self, findings: Findings, front: dict[str, Any], parts: Outline, source: str
    ) -> None:
        self.findings = findings
        self.front = dict(front)
        self.parts = parts
        self.source = source
        self.gates: list[GateSpec] = []
        self.statements: list[str] = []

    def draft(self) -> DraftStory:
        phase, plan = self._text("phase"), self._text("plan")
        wave = self._text("wave")
        files = self._texts("files_modified")
        depends = self._texts("depends_on")
        autonomous = self._text("autonomous").lower() != "false"
        must = self._must_haves()
        objective = self._section("objective")
        goal, purpose, output = objective_of(objective.text if objective else "")
        if not goal:
            self.findings.error("plan.no_objective", None, "the plan has no <objective>")
        steps = self._steps()
        self._criteria()
        self._artifact_gates(must)
        self._compare_files(files, steps, must)
        if depends:
            self.findings.info(
                "plan.depends_on",
                None,
                f"it waits for the plans {', '.join(depends)}; import them too, or leave it out",
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
            must_haves=must,
            steps=steps,
            gates=tuple(self.gates),
            statements=tuple(self.statements),
            references=references,
        )

    def _text(self, key: str) -> str:
        value = self.front.pop(key, "")
        if isinstance(value, str):
            return value.strip()
        self.findings.warning("plan.field", 1, f"{key} is no plain text", value)
        return ""

    def _texts(self, key: str) -> tuple[str, ...]:
        return self._as_texts(key, self.front.pop(key, ()))

    def _as_texts(self, key: str, value: Any) -> tuple[str, ...]:
        """A list of texts; a single text is a list of one."""
        items = value if isinstance(value, list | tuple) else [value] if value else []
        odd = [item for item in items if not isinstance(item, str)]
        if odd:
            self.findings.warning("plan.field", 1, f"{key} holds more than texts", odd)
        return tuple(item.strip() for item in items if isinstance(item, str) and item.strip())

    def _must_haves(self) -> MustHaves:
        value = self.front.pop("must_haves", {})
        if not isinstance(value, dict):
            if value:
                self.findings.warning("plan.field", 1, "must_haves is no mapping", value)
            return MustHaves()
        value = dict(value)
        truths = self._as_texts("must_haves.truths", value.pop("truths", ()))
        artifacts = tuple(
            DraftArtifact(path=item["path"], provides=item["provides"], contains=item["contains"])
            for item in self._entries(
                "artifacts", value.pop("artifacts", ()), ("path", "provides", "contains")
            )
        )
        links = tuple(
            DraftLink(source=item["from"], to=item["to"], via=item["via"], pattern=item["pattern"])
            for item in self._entries(
                "key_links", value.pop("key_links", ()), ("from", "to", "via", "pattern")
            )
        )
        if value:
            self.findings.info("plan.unmapped", 1, "unknown must_haves", value)
        return MustHaves(truths=truths, artifacts=artifacts, links=links)

    def _entries(self, name: str, value: Any, keys: tuple[str, ...]) -> list[dict[str, str]]:
        """Mappings with text values under `keys`; whatever else is in them is reported."""
        found = []
        for item in value if isinstance(value, list) else [value] if value else []:
            if isinstance(item, str):
                item = {keys[0]: item}
            if not isinstance(item, dict) or not isinstance(item.get(keys[0]), str):
                self.findings.warning("plan.field", 1, f"must_haves.{name}: unreadable", item)
                continue
            texts = {key: item[key] for key in keys if isinstance(item.get(key), str)}
            rest = {key: part for key, part in item.items() if key not in texts}
            if rest:
                self.findings.info("plan.unmapped", 1, f"must_haves.{name}: more fields", rest)
            found.append({key: texts.get(key, "").strip() for key in keys})
        return found

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
                sections += [part for part in section.parts if part.name == "task"]
                self._odd_parts(section)
            elif section.name == "task":
                self.findings.warning("plan.damaged", section.line, "a <task> outside <tasks>")
                sections.append(section)
        if not sections:
            self.findings.error("plan.no_tasks", None, "the plan has no <task>")
        return tuple(self._step(number, item) for number, item in enumerate(sections, start=1))

    def _odd_parts(self, tasks: Section) -> None:
        for part in tasks.parts:
            if part.name != "task":
                self.findings.info(
                    "plan.unmapped", part.line, f"<{part.name}> between the tasks", content_of(part)
                )

    def _step(self, number: int, task: Section) -> DraftStep:
        texts = {name: self._part(task, name) for name in ("name", "files", "action", "done")}
        kind = task.attributes.get("type", "auto")
        title = re.sub(r"^Task\s+\d+\s*[:.-]\s*", "", texts["name"]) or f"Step {number}"
        told = re.match(r"Task\s+(\d+)", texts["name"])
        if told and int(told[1][:9]) != number:
            self.findings.warning(
                "plan.numbering", task.line, f"task {number} calls itself {told[0]!r}"
            )
        if not texts["name"]:
            self.findings.warning("plan.no_name", task.line, f"task {number} has no <name>")
        human = kind.startswith("checkpoint")
        if human:
            self.findings.warning(
                "plan.checkpoint", task.line, f"task {number} ({kind}) waits for a person"
            )
        gates = self._verify(number, title, task, human=human)
        files = re.split(r"[\n,]+", texts["files"])
        extra = {
            part.name: content_of(part)
            for part in task.parts
            if part.name not in ("name", "files", "action", "verify", "done")
        }
        if extra:
            self.findings.info("plan.unmapped", task.line, f"task {number}: more sections", extra)
        return DraftStep(
            number=number,
            title=" ".join(title.split()),
            kind=kind,
            files=tuple(name.strip().lstrip("-* ") for name in files if name.strip("-* \t")),
            action=texts["action"],
            done=texts["done"],
            gates=gates,
            needs_human=human,
        )

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
                self.statements.append(prose)
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
                "plan.gate_changes", line, f"{gate}: a check that changes files as it runs", command
            )
        several = re.sub(r"\"[^\"]*\"|'[^']*'|\\\n|(&&|\|\||\||;)\s*\n", "", command)
        if "\n" in several.strip() and not command.startswith("set -e"):
            command = f"set -e\n{command}"
            self.findings.info(
                "plan.set_e", line, f"{gate}: 'set -e' was put before a script of several commands"
            )
        self.gates.append(
            GateSpec(
                id=gate,
                name=" ".join(name.split())[:120],
                kind=GateKind.COMMAND,
                command=command,
                statement=statement,
            )
        )

    def _warn_of_paths(self, command: str, line: int) -> None:
        for path in dict.fromkeys(match[0] for match in _ELSEWHERE.finditer(command)):
            tops = {name.split("/")[0] for name in self._all_files() if "/" in name}
            inside = [part for part in re.split(r"[/\\]", path) if part in tops]
            hint = f"; in this repository perhaps {inside[0]!r}" if inside else ""
            self.findings.warning(
                "plan.foreign_path",
                line,
                f"{path} is a path of another machine: its command can not pass here{hint}",
                command,
            )

    def _all_files(self) -> list[str]:
        found: list[str] = []
        for section in self.parts.sections:
            for task in section.parts:
                part = task.part("files")
                found += part.text.split() if part else []
        return found

    def _criteria(self) -> None:
        """<verification> and <success_criteria>: a line in backticks is a command, else words."""
        number = 0
        for name in ("verification", "success_criteria"):
            section = self._section(name)
            for text in items_of(section.text if section else ""):
                quoted = re.findall(r"`([^`]+)`", text)
                commands = [part for part in quoted if PROGRAM.match(part)]
                for command in commands:
                    number += 1
                    line = section.line if section else 1
                    self._gate(f"AC{number}", text, command, line, statement=text)
                if not commands and text not in self.statements:
                    self.statements.append(text)

    def _artifact_gates(self, must: MustHaves) -> None:
        for number, item in enumerate(must.artifacts, start=1):
            self.gates.append(
                GateSpec(
                    id=f"F{number}",
                    name=item.provides or item.path,
                    kind=GateKind.FILES,
                    paths=(item.path,),
                    statement=f"{item.path} exists",
                )
            )
            if item.contains:
                command = f"grep -qF -e {shlex.quote(item.contains)} -- {shlex.quote(item.path)}"
                self.gates.append(
                    GateSpec(
                        id=f"F{number}.1",
                        name=f"{item.path} contains {short(item.contains, 40)}",
                        kind=GateKind.COMMAND,
                        command=command,
                        statement=f"{item.path} contains {item.contains}",
                    )
                )
        self.statements += [truth for truth in must.truths if truth not in self.statements]

    def _compare_files(
        self, files: tuple[str, ...], steps: tuple[DraftStep, ...], must: MustHaves
    ) -> None:
        """The same files are named in up to three places."""
        named = {name for step in steps for name in step.files}
        for name in sorted(named - set(files)):
            self.findings.warning(
                "plan.files_differ", None, f"{name} is in a task, but not in files_modified"
            )
        for name in sorted(set(files) - named) if named else []:
            self.findings.warning(
                "plan.files_differ", None, f"{name} is in files_modified, but in no task"
            )
        for item in must.artifacts:
            if files and item.path not in files:
                self.findings.warning(
                    "plan.files_differ",
                    None,
                    f"{item.path} must exist afterwards, but is not in files_modified",
                )

    def _references(self) -> tuple[str, ...]:
        found: list[str] = []
        for name in ("execution_context", "context"):
            section = self._section(name)
            lines = section.text.split("\n") if section else []
            for line in (line.strip() for line in lines):
                if line.startswith("@"):
                    found.append(line[1:].strip())
                elif line:
                    self.findings.info(
                        "plan.unmapped", section.line if section else 1, f"text in <{name}>", line
                    )
        return tuple(name for name in found if name)

    def _rest(self) -> None:
        """Whatever nothing above has taken."""
        taken = {"objective", "execution_context", "context", "tasks", "task"}
        taken |= {"verification", "success_criteria"}
        for section in self.parts.sections:
            if section.name not in taken:
                self.findings.info(
                    "plan.unmapped",
                    section.line,
                    f"<{section.name}> has no place in a story",
                    content_of(section),
                )
        self.front.pop("type", None)
        for key, value in self.front.items():
            self.findings.info("plan.unmapped", 1, f"{key} has no place in a story", as_json(value))
