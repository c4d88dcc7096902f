"""Hand-kept counters against what the tasks themselves say."""

from __future__ import annotations

import re
from collections.abc import Callable

from oodatcaa.domain.task import SubtaskKind
from oodatcaa.importers.findings import Findings
from oodatcaa.importers.oodatcaa.facts import Counter, Facts, number_of
from oodatcaa.importers.oodatcaa.identity import Placed, Placement
from oodatcaa.importers.oodatcaa.words import (
    BUILD_WORDS,
    CANCELLED_WORDS,
    DONE_WORDS,
    STORY_WORDS,
    TEST_WORDS,
    normal,
    word_set,
)

_TOTAL = re.compile(r"total(?:_tasks|_count)?|tasks?_total|tasks?(?:_count)?|num_tasks")
_STORIES = re.compile(r"(?:total_|num_)?stor(?:y|ies)(?:_tasks|_count|_total)?")
_PARTS = re.compile(r"(?:total_|num_)?subtasks?(?:_count|_total|_created)?")
_SHARE = re.compile(
    r"(?:.*_)?(?:percent|percentage|progress|completion|completion_rate|success_rate|complete_pct)"
)
_OF_WORD = re.compile(
    r"(?:(?:num|total)_)?(?P<word>[a-z_]+?)_(?P<what>tasks|count|total|stories|subtasks)"
    r"|(?P<what2>tasks|stories|subtasks)_(?P<word2>[a-z_]+)"
)
_STATUSES = word_set(
    "needs_plan planning planning_complete blocked ready in_progress awaiting_test testing "
    "ready_for_integrator integrating done needs_adapt adapting cancelled assigned "
    "ready_for_test completed adapted needs_human"
)


class CounterCheck:
    def __init__(self, placement: Placement, findings: Findings, *, damaged: bool) -> None:
        self.tasks = [task for task in placement.all() if task.raw is not None]
        self.findings = findings
        self.damaged = damaged

    def check(self, facts: Facts) -> None:
        """Report wrong counters; numbers that count nothing known join the unmapped content."""
        for counter in facts.counters:
            allowed = self.expected(counter, self.tasks)
            if allowed is None:
                facts.unmapped[counter.key] = (_plain(counter.value), counter.line)
            else:
                self._compare(counter.key, counter.value, counter.line, allowed)

    def check_story(self, story: Placed) -> None:
        """Counters that a story keeps of its own subtasks."""
        if story.raw is None:
            return
        parts = [part for part in story.children if part.raw is not None]
        texts = {
            key: (number_of(value), story.line)
            for key, value in story.raw.unmapped.items()
            if isinstance(value, str) and number_of(value) is not None
        }
        for key, (value, line) in {**texts, **story.raw.numbers}.items():
            counter = Counter(key, float(value or 0), line, True)
            allowed = self.expected(counter, parts)
            if allowed is None or not ("subtask" in normal(key) or _SHARE.fullmatch(normal(key))):
                continue
            story.raw.unmapped.pop(key, None)
            self._compare(f"{story.old}: {key}", counter.value, line, allowed)

    def _compare(self, key: str, value: float, line: int, allowed: set[float]) -> None:
        tolerance = 1.0 if _SHARE.fullmatch(normal(key.rpartition(": ")[2])) else 0.0
        if any(abs(value - right) <= tolerance for right in allowed):
            return
        right = " or ".join(
            f"{number:.3g}" if number % 1 else f"{number:g}" for number in sorted(allowed)
        )
        note = "; part of the file is damaged" if self.damaged else ""
        self.findings.warning(
            "counter.wrong", line, f"{key} says {value:g}, counted: {right}{note}"
        )

    def expected(self, counter: Counter, tasks: list[Placed]) -> set[float] | None:
        """The values that would be right; None when the key is no counter that we know."""
        name = normal(counter.key)
        if _TOTAL.fullmatch(name) and (counter.counted or name != "tasks"):
            return {float(len(tasks))}
        if _STORIES.fullmatch(name):
            return {float(sum(not task.story for task in tasks))}
        if _PARTS.fullmatch(name):
            return {float(sum(bool(task.story) for task in tasks))}
        if _SHARE.fullmatch(name):
            return _shares(tasks)
        match = _OF_WORD.fullmatch(name)
        if match is None and not counter.counted:
            return None
        word = (match["word"] or match["word2"]) if match else name
        what = (match["what"] or match["what2"]) if match else ""
        chosen = _counts(word, tasks)
        if chosen is None:
            return None
        if what in ("stories", "subtasks"):
            tasks = [task for task in tasks if bool(task.story) == (what == "subtasks")]
        return {float(sum(map(chosen, tasks)))}


def _counts(word: str, tasks: list[Placed]) -> Callable[[Placed], bool] | None:
    """The question that a counter called `word` asks of every task; None = no such question."""

    def status(task: Placed) -> str:
        return task.raw.status if task.raw else ""

    if word in DONE_WORDS:
        return lambda task: status(task) in DONE_WORDS
    if word in CANCELLED_WORDS:
        return lambda task: status(task) in CANCELLED_WORDS
    if word in ("remaining", "open", "unfinished", "pending_total"):
        return lambda task: status(task) not in DONE_WORDS | CANCELLED_WORDS
    if word in _STATUSES or any(status(task) == word for task in tasks):
        return lambda task: status(task) == word
    if word in BUILD_WORDS:
        return lambda task: bool(task.story) and task.kind is SubtaskKind.BUILD
    if word in TEST_WORDS:
        return lambda task: bool(task.story) and task.kind is SubtaskKind.TEST
    if word in STORY_WORDS:
        return lambda task: task.raw is not None and task.raw.type == word
    return None


def _shares(tasks: list[Placed]) -> set[float]:
    """Percent done, of all tasks, of the stories, and of those that were not cancelled."""
    found = set()
    for some in (tasks, [task for task in tasks if not task.story]):
        words = [task.raw.status for task in some if task.raw]
        done = sum(word in DONE_WORDS for word in words)
        for total in (len(words), sum(word not in CANCELLED_WORDS for word in words)):
            if total:
                share = 100 * done / total
                found |= {share}
    return found or {0.0}


def _plain(value: float) -> int | float:
    return int(value) if value == int(value) else value
