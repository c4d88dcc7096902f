"""`oodatcaa doctor`: everything checked against everything; repairs only what is safe.

Every module looks at one area: what it gathers from disk and git is judged by pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass

from oodatcaa.app.doctor import git, leftovers, machine, queue, records, runs
from oodatcaa.app.doctor.finding import Area, Fact, Finding, Severity
from oodatcaa.app.doctor.repairs import ACTIONS, ONCE
from oodatcaa.app.project import Project
from oodatcaa.errors import OodatcaaError

__all__ = ["AREAS", "Diagnosis", "Fact", "Finding", "Mended", "Severity", "diagnose", "mend"]

AREAS: tuple[Area, ...] = (
    Area("speed", machine.look_at_speed),
    Area("disk", machine.look_at_disk),
    Area("config", machine.look_at_config),
    Area("queue", queue.look_at_queue),  # before anything reads the board, which settles edits
    Area("objective", machine.look_at_objective),
    Area("model", machine.look_at_model),
    Area("git", git.look_at_checkout),
    Area("log", queue.look_at_log),
    Area("leases", queue.look_at_leases),
    Area("crew", queue.look_at_crew),
    Area("sprints", queue.look_at_sprints),
    Area("plans", records.look_at_plans),
    Area("evidence", records.look_at_evidence),
    Area("stories", git.look_at_stories),
    Area("worktrees", git.look_at_worktrees),
    Area("runs", runs.look_at_runs),
    Area("data", runs.look_at_data),
    Area("leftovers", leftovers.look_at_leftovers),
)

PASSES = 4
"""A damaged queue hides what else is wrong: so often is looked again."""


@dataclass(frozen=True)
class Diagnosis:
    """What was looked at, and everything that does not fit. Healthy = no finding at all."""

    facts: tuple[Fact, ...]
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong that the crew relies on; notes do not count."""
        return not any(one.severity is Severity.BAD for one in self.findings)


@dataclass(frozen=True)
class Mended:
    """One repair that changed something, or that failed with the reason."""

    code: str
    text: str
    ok: bool = True


def diagnose(project: Project) -> Diagnosis:
    """Every area, also after one that can not be read. Changes nothing, takes no lock for long."""
    facts: list[Fact] = []
    found_once: dict[tuple[str, str], Finding] = {}
    for area in AREAS:
        try:
            more, found = area.look(project)
        except OodatcaaError as error:
            more, found = (), _unreadable(area, error)
        facts += more
        for one in found:
            key = (one.code, one.meaning)  # several areas meet the same broken file
            if key not in found_once or (one.action and not found_once[key].action):
                found_once[key] = one
    return Diagnosis(tuple(facts), tuple(found_once.values()))


def _unreadable(area: Area, error: OodatcaaError) -> tuple[Finding, ...]:
    place = machine.PLACES.get(area.name, area.name)
    repair = f"nothing: {error.hint}" if error.hint else "nothing: a person decides"
    meanings = [error.message, *error.details]
    return tuple(Finding(error.code, place, line, repair) for line in meanings)


def mend(project: Project) -> tuple[Mended, ...]:
    """Every safe repair that the findings call for; what changed, one line each. Done again, with
    nothing damaged in between, it changes nothing: what a repair brings to light is mended too."""
    done: list[Mended] = []
    tried: set[tuple[str, str]] = set()
    for _ in range(PASSES):
        more = _mend_once(project, tried)
        done += more
        if not more:
            break
    return tuple(done)


def _mend_once(project: Project, tried: set[tuple[str, str]]) -> list[Mended]:
    done: list[Mended] = []
    at_once: set[str] = set()
    for finding in diagnose(project).findings:
        key = (finding.code, finding.place)
        if not finding.action or finding.action in at_once or key in tried:
            continue
        tried.add(key)
        if finding.action in ONCE:
            at_once.add(finding.action)
        try:
            text = ACTIONS[finding.action](project, finding)
        except OodatcaaError as error:
            done.append(Mended(finding.code, f"{finding.place}: {error.message}", ok=False))
            continue
        if text:
            done.append(Mended(finding.code, text))
    return done
