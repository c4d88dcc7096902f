"""Which task belongs to which story, and the id that it gets on the board."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from oodatcaa.domain.task import SubtaskKind
from oodatcaa.importers.findings import Findings
from oodatcaa.importers.oodatcaa.dialect import RawTask
from oodatcaa.importers.oodatcaa.words import BUILD_WORDS, ID, STORY_WORDS, TEST_WORDS

_STORY_ID = re.compile(r"T\d{3,}")


@dataclass(slots=True, eq=False)
class Placed:
    """A task with its new id. `story` is the new id of the story it belongs to ("" for a story);
    `raw` is None for a story that only its subtasks speak of."""

    id: str
    old: str
    raw: RawTask | None
    story: str = ""
    kind: SubtaskKind = SubtaskKind.BUILD
    line: int = 1
    children: list[Placed] = field(default_factory=list)


@dataclass(slots=True)
class Placement:
    stories: list[Placed]
    subtasks: list[Placed]
    by_old: dict[str, Placed]
    """Upper-case id of the file -> task."""

    def find(self, old: str) -> Placed | None:
        return self.by_old.get(old.strip().upper())

    def all(self) -> list[Placed]:
        return [*self.stories, *self.subtasks]


class Placer:
    def __init__(self, tasks: list[RawTask], findings: Findings) -> None:
        self.tasks = tasks
        self.findings = findings
        self.by_old = {task.id.upper(): task for task in tasks if task.id}
        self.stories: dict[str, Placed] = {}
        """Upper-case old id -> story."""
        self._used: set[str] = set()
        self._names: dict[int, str] = {}

    def place(self) -> Placement:
        parents = {id(task): self._parent(task) for task in self.tasks}
        tops = [task for task in self.tasks if not parents[id(task)]]
        owners = [(task, self._top(task, parents)) for task in self.tasks if parents[id(task)]]
        missing = list(dict.fromkeys(top for _, top in owners if top not in self.by_old))
        self._stories(tops, missing, owners)
        subtasks = self._subtasks(owners)
        placed = [*self.stories.values(), *subtasks]
        index = {item.old.upper(): item for item in placed}
        for item in placed:
            if item.id != item.old:
                self.findings.info("id.renamed", item.line, f"{item.old} becomes {item.id}")
        return Placement(list(self.stories.values()), subtasks, index)

    def _name(self, task: RawTask) -> str:
        """The id in the file, or a name for a task that has none."""
        if task.id:
            return task.id
        if id(task) not in self._names:
            same = sum(name.startswith(f"(line {task.line}") for name in self._names.values())
            self._names[id(task)] = f"(line {task.line}{f', no. {same + 1}' if same else ''})"
        return self._names[id(task)]

    def _parent(self, task: RawTask) -> str:
        """The upper-case id of the task it belongs to; "" = it is a story."""
        match = ID.fullmatch(task.id)
        prefix = match["story"].upper() if match and match["letter"] else ""
        named = task.parent.upper() if task.parent.upper() != task.id.upper() else ""
        inside = task.found.inside.upper()
        claims = [claim for claim in (prefix, inside, named) if claim and claim != task.id.upper()]
        if len(set(claims)) > 1 and self._story_of(inside) != prefix:
            self.findings.warning(
                "parent.differs",
                task.line,
                f"{task.label}: its id, its place and its parent field name different stories: "
                + ", ".join(dict.fromkeys(claims)),
            )
        self._check_type(task, claims)
        known = [claim for claim in claims if claim in self.by_old]
        return next(iter([*known, *claims]), "")

    def _story_of(self, old: str) -> str:
        match = ID.fullmatch(old)
        return match["story"].upper() if match else old

    def _check_type(self, task: RawTask, claims: list[str]) -> None:
        part = task.type in BUILD_WORDS or task.type in TEST_WORDS
        if part and not claims:
            self.findings.error(
                "parent.missing",
                task.line,
                f"{task.label} is a {task.type} that belongs to no story; it becomes a story",
            )
        elif task.type in ("story", "epic") and claims:
            self.findings.warning(
                "type.differs",
                task.line,
                f"{task.label} is called a {task.type}, but belongs to {claims[0]}; "
                "it becomes a subtask",
            )
        elif task.type and not part and task.type not in STORY_WORDS:
            self.findings.info(
                "type.unknown", task.line, f"{task.label}: unknown type {task.type!r}"
            )

    def _top(self, task: RawTask, parents: dict[int, str]) -> str:
        """The story at the top of a chain of parents."""
        seen = {task.id.upper()}
        current = parents[id(task)]
        while current in self.by_old and parents[id(self.by_old[current])]:
            if current in seen:
                self.findings.error(
                    "parent.cycle", task.line, f"{task.label}: its parents go round in a circle"
                )
                match = ID.fullmatch(current)
                top = match["story"].upper() if match else current
                return top if top not in seen else f"{top} (STORY)"
            seen.add(current)
            current = parents[id(self.by_old[current])]
        return current

    def _stories(
        self, tops: list[RawTask], missing: list[str], owners: list[tuple[RawTask, str]]
    ) -> None:
        wanted: list[tuple[str, RawTask | None, int]] = [
            (self._name(task), task, task.line) for task in tops
        ]
        for old in missing:
            parts = [task for task, top in owners if top == old]
            self.findings.error(
                "parent.missing",
                parts[0].line,
                f"the story {old} of {', '.join(task.label for task in parts)} is not in the file; "
                "it is made up",
            )
            wanted.append((old, None, parts[0].line))
        for exact in (True, False):  # ids that already fit are never taken by others
            for old, task, line in wanted:
                if bool(_STORY_ID.fullmatch(old)) is exact:
                    new = old if exact and old not in self._used else self._free("T", old, 3)
                    self._used.add(new)
                    self.stories[old.upper()] = Placed(new, old, task, line=line)
        order = [old.upper() for old, _, _ in wanted]
        self.stories = {old: self.stories[old] for old in order}

    def _free(self, prefix: str, old: str, width: int) -> str:
        """`prefix` and the first free number, if possible the one in `old`."""
        digits = re.search(r"\d{1,9}", old)
        number = int(digits[0]) if digits else 1
        for candidate in (number, *self._counting()):
            new = f"{prefix}{candidate:0{width}d}"
            if new not in self._used:
                return new
        raise AssertionError("numbers do not run out")

    def _counting(self) -> Iterable[int]:
        return range(1, len(self.tasks) * 3 + 3)

    def _subtasks(self, owners: list[tuple[RawTask, str]]) -> list[Placed]:
        found: list[Placed] = []
        wishes = [self._wish(task, self.stories[top]) for task, top in owners]
        taken = [wish for wish, (task, _) in zip(wishes, owners, strict=True) if wish == task.id]
        self._used.update(taken)
        for wish, (task, top) in zip(wishes, owners, strict=True):
            story = self.stories[top]
            letter = wish[len(story.id) + 1]
            new = wish
            if wish != task.id and wish in self._used:
                new = self._free(f"{story.id}-{letter}", wish[len(story.id) + 2 :], 2)
            self._used.add(new)
            kind = SubtaskKind.TEST if letter == "T" else SubtaskKind.BUILD
            placed = Placed(new, self._name(task), task, story.id, kind, task.line)
            story.children.append(placed)
            found.append(placed)
        return found

    def _wish(self, task: RawTask, story: Placed) -> str:
        match = ID.fullmatch(task.id)
        letter = (match["letter"] or "").upper() if match else ""
        by_type = "T" if task.type in TEST_WORDS else "B"
        if letter in ("B", "T") and task.type in BUILD_WORDS | TEST_WORDS and letter != by_type:
            self.findings.warning(
                "kind.differs",
                task.line,
                f"{task.label} is called a {task.type}; the letter of its id counts",
            )
        letter = letter if letter in ("B", "T") else by_type
        digits = match["number"] if match and match["number"] else ""
        number = int(digits) if digits and len(digits) < 9 else 1
        return f"{story.id}-{letter}{number:02d}"
