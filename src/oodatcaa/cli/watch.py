"""Live progress of a crew: each agent's newest line, and the training run with its memory."""

from __future__ import annotations

from datetime import UTC, datetime

from oodatcaa.app.activity import Activity, read_activities
from oodatcaa.app.project import Project
from oodatcaa.cli.show import say
from oodatcaa.domain.training import GB, TrainProgress

BAR = 24


class Watch:
    """Prints what changed since the last tick, line by line: fit for a terminal and for a file."""

    def __init__(self, project: Project) -> None:
        self._project = project
        # What a killed agent of an earlier crew left is not news.
        self._since = datetime.now(UTC)
        self._seen: dict[str, str] = {}
        self._steps: dict[str, tuple[str, int]] = {}

    def tick(self) -> None:
        for activity in read_activities(self._project.work):
            if activity.at < self._since:
                continue
            if activity.text and self._seen.get(activity.agent) != activity.text:
                self._seen[activity.agent] = activity.text
                if activity.task:
                    say(f"{activity.at:%H:%M:%S} {activity.agent:<13} {activity.text}")
            self._training(activity)

    def _training(self, activity: Activity) -> None:
        progress = activity.progress
        if progress is None:
            return
        mark = (progress.phase, progress.iteration)
        if self._steps.get(activity.agent) != mark:
            self._steps[activity.agent] = mark
            say(f"{activity.at:%H:%M:%S} {activity.agent:<13} {bar(progress)}")


def bar(progress: TrainProgress) -> str:
    """`training [####----] 12/40 loss 1.32 123 tokens/s 2.1 of 16.0 GB`."""
    share = progress.iteration / progress.iters if progress.iters else 0.0
    filled = round(BAR * min(1.0, share))
    parts = [
        f"{progress.phase} [{'#' * filled}{'-' * (BAR - filled)}]",
        f"{progress.iteration}/{progress.iters}",
    ]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
    if progress.memory_bytes is not None:
        limit = progress.memory_limit_bytes / GB
        parts.append(f"{progress.memory_bytes / GB:.2f} of {limit:.1f} GB")
    return "  ".join(parts)
