"""The vocabulary of the old queues: what each word of a dialect means here."""

from __future__ import annotations

import re

from oodatcaa.domain.task import StoryStatus, SubtaskKind, SubtaskStatus


def word_set(text: str) -> frozenset[str]:
    """The words of `text`."""
    return frozenset(text.split())


TASK_LISTS = frozenset(
    {"tasks", "subtasks", "sub_tasks", "stories", "children", "queue", "backlog", "items"}
)
"""Keys whose objects are tasks, whatever their ids look like."""

ID = re.compile(r"(?P<story>[A-Z]{1,3}\d{3,})(?:-(?P<letter>[A-Z])(?P<number>\d+))?", re.IGNORECASE)

SYNONYMS: dict[str, tuple[str, ...]] = {
    "title": ("title", "name"),
    "type": ("type", "task_type", "kind"),
    "status": ("status", "state"),
    "parent": ("parent", "parent_task", "parent_id", "parent_story", "story", "story_id"),
    "steps": ("plan_steps", "plan_step", "steps"),
    "depends": ("depends_on", "dependencies", "blocked_by"),
    "owner": ("owner", "assigned_to", "assignee", "agent", "assigned_agent", "claimed_by"),
    "estimate": (
        "estimate_minutes",
        "estimated_minutes",
        "estimated_time",
        "estimate",
        "estimated_duration",
        "time_estimate",
        "estimated_hours",
        "estimate_hours",
    ),
    "size": ("complexity", "size"),
    "goal": ("goal", "description", "objective_link"),
    "reason": (
        "reason",
        "blocked_reason",
        "block_reason",
        "status_reason",
        "adapt_reason",
        "cancellation_reason",
        "cancelled_reason",
    ),
    "commit": ("commit", "commit_sha", "head"),
    "adapt_round": ("adapt_round", "adaptation_round", "adapt_rounds", "adaptations"),
}
FIELD_OF = {key: field for field, keys in SYNONYMS.items() for key in keys}

ABSENT = frozenset({"", "null", "none", "n/a", "na", "nil", "-", "tbd", "undefined"})
"""String spellings of null."""

HISTORY = re.compile(
    r"(?:.*_)?(?:notes?|log|logs|history|events?|comments?|results?|summary|reasons?|tag|tags|"
    r"merged?_commit|handoff|message|outcome|feedback|deliverables?|artifacts?|artefacts?|"
    r"report|reports|evidence|corrected|decision|decisions|lessons?|risks?|blockers?|branch|"
    r"commits|validation|achievements?|highlights?)(?:_.*)?"
)
"""Fields that tell what happened; they become notes."""

ROLE_WORDS = {
    "planner": "planner",
    "builder": "builder",
    "tester": "tester",
    "refiner": "refiner",
    "integrator": "integrator",
    "negotiator": "negotiator",
}

BUILD_WORDS = word_set(
    "build builder building implementation implement impl code coding fix bugfix"
)
TEST_WORDS = word_set("test testing tester tests validation verification qa check")
STORY_WORDS = word_set(
    "story epic feature plan planning infra infrastructure docs documentation quality "
    "research task chore spike refactor process training integration"
)

SIZE_MINUTES = {"xs": 20, "s": 45, "m": 90, "l": 180, "xl": 360}
SIZE_MINUTES |= {"small": 45, "medium": 90, "large": 180, "low": 45, "high": 180}
DEFAULT_MINUTES = 60

DONE_WORDS = word_set("done completed complete finished closed merged integrated resolved")
CANCELLED_WORDS = word_set(
    "cancelled canceled obsolete abandoned dropped skipped wont_do deferred superseded"
)
ACTIVE_WORDS = word_set(
    "planning in_progress building testing integrating adapting active working claimed "
    "implementing reviewing started"
)
"""Somebody is said to work on it; there should be a lease."""
_WAITING = word_set("on_hold paused waiting blocked_by_dependency stuck")
_FAILED = word_set("failed error rejected test_failed needs_fix needs_rework")
_UNPLANNED = word_set("needs_plan backlog todo to_do pending new open not_started draft")


_STORY_VALUES = frozenset(status.value for status in StoryStatus)
_SUBTASK_VALUES = frozenset(status.value for status in SubtaskStatus)


def normal(word: str) -> str:
    """`Ready for Test` -> `ready_for_test`."""
    return re.sub(r"[^a-z0-9]+", "_", word.strip().lower()).strip("_")


def story_status(word: str, *, planned: bool) -> StoryStatus | None:
    """What a story's word means; None = an unknown word.

    Active work comes back to the state before its claim, because its lease does not live here.
    `planned` says that the story has subtasks: whatever happened to it came after planning.
    """
    at_work = StoryStatus.PLANNING_COMPLETE if planned else StoryStatus.NEEDS_PLAN
    if word in DONE_WORDS:
        return StoryStatus.DONE
    if word in CANCELLED_WORDS:
        return StoryStatus.CANCELLED
    if word in _UNPLANNED or word == "planning":
        return StoryStatus.NEEDS_PLAN
    if word == "integrating":
        return StoryStatus.READY_FOR_INTEGRATOR
    if word == "adapting" or word in _FAILED:
        return StoryStatus.NEEDS_ADAPT
    if word in _WAITING:
        return StoryStatus.BLOCKED
    if word in ACTIVE_WORDS or word in ("ready", "assigned", "ready_for_plan"):
        return at_work
    if word in ("planned", "adapted", "awaiting_test", "ready_for_test", "tested"):
        return StoryStatus.PLANNING_COMPLETE
    if word in ("ready_for_integration", "approved"):
        return StoryStatus.READY_FOR_INTEGRATOR
    return StoryStatus(word) if word in _STORY_VALUES else None


def subtask_status(word: str, kind: SubtaskKind) -> SubtaskStatus | None:
    """What a subtask's word means; None = an unknown word. Active work as in `story_status`.

    In the old process one subtask went through building, testing and integrating. A build that
    waits for its test was handed in but never verified: it is `ready`, so that its gates decide.
    """
    waits = SubtaskStatus.READY if kind is SubtaskKind.BUILD else SubtaskStatus.AWAITING_TEST
    if word in DONE_WORDS or word in (
        "ready_for_integrator",
        "ready_for_integration",
        "integrating",
        "approved",
        "tested",
    ):
        return SubtaskStatus.DONE
    if word in CANCELLED_WORDS:
        return SubtaskStatus.CANCELLED
    if word == "adapting" or word in _FAILED:
        return SubtaskStatus.NEEDS_ADAPT
    if word in _WAITING or word in _UNPLANNED or word == "planning":
        return SubtaskStatus.BLOCKED
    if word in ACTIVE_WORDS or word in (
        "ready",
        "assigned",
        "awaiting_test",
        "ready_for_test",
        "ready_for_testing",
        "adapted",
        "planned",
        "planning_complete",
    ):
        return waits
    return SubtaskStatus(word) if word in _SUBTASK_VALUES else None
