"""The closed vocabularies of tasks; free of pydantic, so that `--help` can name them cheaply."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    PLANNER = "planner"
    BUILDER = "builder"
    TESTER = "tester"
    REFINER = "refiner"
    INTEGRATOR = "integrator"


class StoryStatus(StrEnum):
    NEEDS_PLAN = "needs_plan"
    PLANNING = "planning"
    PLANNING_COMPLETE = "planning_complete"
    READY_FOR_INTEGRATOR = "ready_for_integrator"
    INTEGRATING = "integrating"
    DONE = "done"
    BLOCKED = "blocked"
    NEEDS_ADAPT = "needs_adapt"
    ADAPTING = "adapting"
    NEEDS_HUMAN = "needs_human"
    CANCELLED = "cancelled"


class SubtaskStatus(StrEnum):
    READY = "ready"
    IN_PROGRESS = "in_progress"
    AWAITING_TEST = "awaiting_test"
    TESTING = "testing"
    DONE = "done"
    BLOCKED = "blocked"
    NEEDS_ADAPT = "needs_adapt"
    ADAPTING = "adapting"
    NEEDS_HUMAN = "needs_human"
    CANCELLED = "cancelled"


class StoryKind(StrEnum):
    FRAMEWORK = "framework"
    DATA = "data"
    TRAIN = "train"
    EVALUATE = "evaluate"
    PUBLISH = "publish"
    CUSTOM = "custom"


class SubtaskKind(StrEnum):
    BUILD = "build"
    TEST = "test"


class Approval(StrEnum):
    """Where a story waits for a person's word although nothing went wrong."""

    NONE = "none"
    PLAN = "plan"
    MERGE = "merge"


class ArtefactKind(StrEnum):
    RUN = "run"
    DATA = "data"
    FILE = "file"
    MODEL = "model"
