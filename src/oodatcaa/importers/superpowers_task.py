"""One task of a superpowers plan: its files, its steps, and what decides each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from oodatcaa.domain.draft import DraftStep
from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.source import Leftover
from oodatcaa.importers.commands import foreign_paths, script
from oodatcaa.importers.findings import Findings, short
from oodatcaa.importers.markdown import Block

STEP = re.compile(
    r"^(?:\[[ xX]\]\s*)?\*\*\s*Step\s+(\d+(?:\.\d+)*[a-z]?)\s*[:.)–—-]*\s*(.*?)\s*\*\*:?"
    r"[ \t]*(.*)$",
    re.IGNORECASE | re.DOTALL,
)
_PLAIN_BOX = re.compile(r"^\[[ xX]\]\s+(.*)$", re.DOTALL)
_LABEL = re.compile(r"^\**(Files|Interfaces|Context|Background|Notes?)\s*:?\**\s*:?\s*$", re.I)
_FILE = re.compile(
    r"^\**(Create|Modify|Test|Tests|Delete|Remove|Update|Edit|Add|Rename|Move|Extend|Read|Reference"
    r"|Reuse|See|Docs?)(?:\s*\([^)]*\))?\s*:?\**\s*:?\s*(.*)$",
    re.IGNORECASE | re.DOTALL,
)
_CODE = re.compile(r"`([^`]+)`")
_LINES = re.compile(r":\d+(?:\s*[-–,]\s*\d+)*$|:L\d+.*$|#L\d+.*$")
_RUN = re.compile(r"^\**Run\b[^:\n`]{0,40}:?\**\s*:?\s*(.*)$", re.IGNORECASE)
_EXPECTED = re.compile(r"^\**Expect(?:ed|s)?(?: output| result)?\**\s*:?\**\s*(.*)$", re.IGNORECASE)
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|`([^`]+)`")
_FAILS = re.compile(r"\b(FAIL(?:S|ED|URE|ING)?|error|errors)\b", re.IGNORECASE)
_PASSES = re.compile(r"\b(PASS(?:ES|ED|ING)?|succe\w+|no (?:\w+ )?errors?|0 failed|ok)\b", re.I)
_GONE = ("delete", "remove")
_PLAIN_VERBS = ("create", "add", "modify", "update", "edit", "test", "tests", "read", "reference")
_ONLY_READ = ("read", "reference", "reuse", "see")


@dataclass
class Task:
    words: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    steps: list[DraftStep] = field(default_factory=list)
    gates: list[GateSpec] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)


@dataclass
class _Step:
    title: str
    line: int
    text: list[str] = field(default_factory=list)
    runs: list[_Run] = field(default_factory=list)
    commit: list[str] = field(default_factory=list)


@dataclass
class _Run:
    command: str
    line: int
    expected: str = ""


class TaskDrafter:
    def __init__(self, body: list[Block], line: int, name: str, findings: Findings) -> None:
        self.body = body
        self.line = line
        self.name = name
        self.findings = findings
        self.task = Task()
        self.steps: list[_Step] = []
        self.label = ""
        self.waiting = ""
        """`run` or `expected` when its text is still to come."""
        self.promised: list[str] = []
        self.ticked = 0

    def read(self) -> Task:
        for block in self.body:
            self._block(block)
        for step in self.steps:
            self._finish(step)
        if self.ticked:
            self.findings.warning(
                "plan.ticked",
                self.line,
                f"{self.ticked} of {len(self.steps)} steps of {self.name} are ticked off there; "
                "nothing here proves them, so all are done",
            )
        if self.promised:
            paths = tuple(dict.fromkeys(self.promised))
            self.task.gates.append(
                GateSpec(
                    id="F1",
                    name="Promised files",
                    kind=GateKind.FILES,
                    paths=paths,
                    statement=f"At the commit there are: {', '.join(paths)}",
                )
            )
        if not self.steps:
            self.findings.warning("plan.no_steps", self.line, f"{self.name} has no steps")
            text = "\n\n".join(self.task.words)
            self.task.steps.append(DraftStep(number=1, title=self.name, action=text))
        return self.task

    def _block(self, block: Block) -> None:
        if block.kind == "code":
            self._code(block)
            return
        match = STEP.match(block.text) if block.kind == "text" else None
        if match is None and block.kind == "heading":
            told = re.match(r"^\W*Step\s+(\d+\w?)\s*[:.–—-]*\s*(.*)$", block.text, re.IGNORECASE)
            if told:
                self._begin(told[2], block.line)
                return
        if match:
            self.ticked += block.text.lower().startswith("[x]")
            self._begin(match[2], block.line)
            if match[3].strip():
                self._lines(match[3], block.line)
            return
        box = _PLAIN_BOX.match(block.text) if block.item and block.kind == "text" else None
        if box and self.label != "files":
            first, _, rest = box[1].partition("\n")
            self.ticked += block.text.lower().startswith("[x]")
            self._begin(first, block.line)
            if rest.strip():
                self._lines(rest, block.line + 1)
            return
        self._lines(block.text, block.line, item=block.item)

    def _begin(self, title: str, line: int) -> None:
        plain = " ".join(title.replace("**", "").split())
        self.steps.append(_Step(plain or f"Step {len(self.steps) + 1}", line))
        self.label = self.waiting = ""

    def _lines(self, text: str, line: int, *, item: bool = False) -> None:
        """Text that may hold `Run:`, `Expected:` and labels, each at the beginning of a line."""
        for offset, raw in enumerate(text.split("\n")):
            plain = raw.strip()
            where = line + offset
            label = _LABEL.match(plain)
            if label and not self.steps:
                self.label, self.waiting = label[1].lower().rstrip("s"), ""
                continue
            if not self.steps and _is_run(plain):
                # No step, but something that decides: the text so far is the work before it.
                self.steps.append(_Step(self.name, where, text=list(self.task.words)))
            if self._taken(plain, where):
                continue
            if plain:
                shown = f"- {raw}" if item and offset == 0 else raw
                (self.steps[-1].text if self.steps else self.task.words).append(shown)

    def _taken(self, plain: str, line: int) -> bool:
        if self.steps:
            return self._run(plain, line)
        return self.label == "file" and self._file(plain, line)

    def _file(self, plain: str, line: int) -> bool:
        match = _FILE.match(plain)
        verb, rest = (match[1].lower(), match[2]) if match else ("", plain)
        paths = [_LINES.sub("", path.strip()) for path in _CODE.findall(rest)]
        paths = [path for path in paths if re.search(r"[./]", path) and " " not in path]
        if not paths and match and rest.strip():
            word = rest.split()[0].strip(",;")
            paths = [_LINES.sub("", word)] if re.search(r"[./]", word) else []
        if not paths:
            return False
        plainly = verb in _PLAIN_VERBS and not re.sub(r"[\s,;]|\band\b|`[^`:#]*`", "", rest)
        if not plainly:  # line ranges, what is deleted or renamed, remarks
            self.task.leftovers.append(Leftover(what="file", place=f"line {line}", text=plain))
        if verb in _ONLY_READ:
            self.task.references += paths
            return True
        self.task.files += [path for path in paths if path not in self.task.files]
        if verb not in _GONE and verb not in ("rename", "move"):
            self.promised += paths
        elif verb not in _GONE:
            self.promised.append(paths[-1])
        if not match:
            self.findings.info("plan.file_verb", line, f"what to do with {paths[0]} is not said")
        return True

    def _run(self, plain: str, line: int) -> bool:
        step = self.steps[-1]
        text = plain.removeprefix("- ").removeprefix("* ")
        expected = _EXPECTED.match(text)
        if expected and step.runs:
            step.runs[-1].expected = expected[1].strip()
            self.waiting = "" if expected[1].strip() else "expected"
            return True
        run = _RUN.match(text)
        if run and (":" in text.split("`")[0] or not run[1]):
            commands = _CODE.findall(run[1]) or ([run[1].strip()] if run[1].strip() else [])
            step.runs += [_Run(command.strip(), line) for command in commands]
            inline = re.search(r"expect(?:ed|s)?\s*:?\s*(.*)$", _CODE.sub("", run[1]), re.I)
            if inline and commands:
                step.runs[-1].expected = inline[1]
            self.waiting = "" if commands else "run"
            return True
        if self.waiting == "expected" and plain and step.runs:
            step.runs[-1].expected, self.waiting = plain, ""
            return True
        return False

    def _code(self, block: Block) -> None:
        if not self.steps:
            self.task.words.append(_fenced(block))
            return
        step = self.steps[-1]
        if self.waiting == "run":
            step.runs.append(_Run(block.text.strip("\n"), block.line + 1))
            self.waiting = ""
        elif self.waiting == "expected" and step.runs:
            step.runs[-1].expected, self.waiting = block.text.strip(), ""
        elif re.search(r"^\s*git commit\b", block.text, re.MULTILINE) and (
            re.match(r"\W*commit\b", step.title, re.IGNORECASE) or not step.text
        ):
            step.commit.append(block.text.strip("\n"))
        else:
            step.text.append(_fenced(block))

    # -- records

    def _finish(self, step: _Step) -> None:
        """One step of the file: work for somebody, then what decides it, then a commit."""
        action = "\n".join(step.text).strip()
        if action or not (step.runs or step.commit):
            if re.match(r"\W*commit\b", step.title, re.IGNORECASE) and not action:
                self._add(step.title, "commit", "")
            else:
                self._add(step.title, "auto", action)
        for run in step.runs:
            gate = self._gate(step, run)
            self._add(step.title, "check", run.command, (gate,))
        for text in step.commit:
            self._add(step.title, "commit", text)

    def _add(self, title: str, kind: str, action: str, gates: tuple[str, ...] = ()) -> None:
        number = len(self.task.steps) + 1
        files = tuple(self.task.files) if kind == "auto" else ()
        self.task.steps.append(
            DraftStep(
                number=number,
                title=short(title, 200),
                kind=kind,
                action=action,
                gates=gates,
                files=files,
            )
        )

    def _gate(self, step: _Step, run: _Run) -> str:
        fails, message = read_expected(run.expected)
        gate = f"{'R' if fails else 'V'}{len(self.task.steps) + 1}"
        if not run.expected:
            self.findings.info(
                "plan.no_expected", run.line, f"{short(run.command)} has no Expected: it must pass"
            )
        for path in foreign_paths(run.command):
            self.findings.warning(
                "plan.foreign_path",
                run.line,
                f"{path} is a path of another machine: its command can not pass here",
                run.command,
            )
        self.task.gates.append(
            GateSpec(
                id=gate,
                name=short(step.title, 120),
                kind=GateKind.COMMAND,
                command=script(run.command),
                statement=f"expected: {' '.join(run.expected.split())}" if run.expected else "",
                expect="failure" if fails else "success",
                expect_output=message,
                verbatim=True,
            )
        )
        return gate


def _is_run(plain: str) -> bool:
    run = _RUN.match(plain)
    return run is not None and ":" in plain.split("`")[0] and bool(_CODE.search(run[1]))


def read_expected(text: str) -> tuple[bool, str]:
    """(whether it must fail, the message it should print) of an `Expected:`."""
    fail, good = _FAILS.search(text), _PASSES.search(text)
    fails = fail is not None and (good is None or fail.start() < good.start())
    quoted = _QUOTED.search(text) if fails else None
    return fails, next((part for part in quoted.groups() if part), "") if quoted else ""


def _fenced(block: Block) -> str:
    longest = max((len(run) for run in re.findall(r"`{3,}", block.text)), default=2)
    mark = "`" * max(3, longest + 1)
    return f"{mark}{block.info}\n{block.text.rstrip(chr(10))}\n{mark}"
