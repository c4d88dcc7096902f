"""A role's completion report: what was done, with what result, and what the next one must know."""

from __future__ import annotations

from oodatcaa.domain.evidence import Evidence, GateKind, Verdict
from oodatcaa.domain.report import Action, Challenge, Report
from oodatcaa.domain.task import Role
from oodatcaa.views.markdown import (
    bold,
    bullets,
    code,
    facts,
    link,
    numbered,
    page,
    prose,
    prose_bullets,
    section,
    stack,
    stop,
    table,
)
from oodatcaa.views.units import (
    count,
    duration,
    interval,
    listing,
    minutes,
    moment,
    sentence,
    short,
    size,
    words,
)

_ORDER = (Verdict.FAILED, Verdict.CRASHED, Verdict.NOT_RUN, Verdict.WAIVED, Verdict.PASSED)


def report(report: Report, *, evidence_dir: str | None = None, plan_dir: str | None = None) -> str:
    """The report as Markdown.

    The folders are relative to where the page will lie, without a slash at the end; the defaults
    suit `reports/T001/<role>.md` beside `plans/` and `evidence/`. `evidence_dir` may also be
    one `.json` file that holds all records (`../evidence.json` in an exported history).
    """
    evidence_at = evidence_dir or f"../../evidence/{report.story}"
    plan_at = plan_dir or f"../../plans/{report.story}"
    return page(
        f"{sentence(report.role.value)} report for {report.task}: {report.title}",
        _head(report, plan_at),
        section("Objective", prose(report.objective)),
        section("Summary", prose_bullets(report.summary)),
        _actions(report),
        _deliverables(report),
        _metrics(report),
        section("Evidence", evidence_table(report.evidence, evidence_at)),
        _challenges(report),
        section("Decisions", numbered(prose(line) for line in report.decisions)),
        section(f"Handoff notes{_for_whom(report.role)}", prose_bullets(report.handoff)),
        section("Sprint impact", prose_bullets(report.sprint_impact)),
        section("Lessons learned", prose_bullets(report.lessons)),
        section("Next steps", numbered(prose(line) for line in report.next_steps)),
        _completion(report),
    )


def _head(report: Report, plan_at: str) -> str:
    took = (report.finished_at - report.started_at).total_seconds()
    return facts(
        [
            ("Status", bold(report.outcome)),
            ("Agent", f"{prose(report.agent)} ({report.role.value})"),
            ("Attempt", str(report.attempt)),
            ("Started", moment(report.started_at)),
            ("Finished", f"{moment(report.finished_at)} (took {duration(took)})"),
            ("Commit", code(short(report.commit))),
            ("Plan", f"{link('agent plan', f'{plan_at}/AGENT_PLAN.md')}, "
             f"{link('test plan', f'{plan_at}/TEST_PLAN.md')}"),
        ]
    )  # fmt: skip


def _for_whom(role: Role) -> str:
    successor = {
        Role.PLANNER: " for the builder",
        Role.BUILDER: " for the tester",
        Role.TESTER: " for the integrator",
        Role.REFINER: " for the builder",
    }
    return successor.get(role, "")


def _actions(report: Report) -> str:
    rows = [
        (str(place), prose(action.title), prose(action.outcome), duration(action.minutes * 60),
         "no estimate" if action.estimate_minutes is None else minutes(action.estimate_minutes))
        for place, action in enumerate(report.actions, 1)
    ]  # fmt: skip
    if len(rows) > 1:
        spent = sum(action.minutes for action in report.actions)
        estimates = [action.estimate_minutes for action in report.actions]
        known = [estimate for estimate in estimates if estimate is not None]
        rows.append(
            ("", bold("total"), "", duration(spent * 60), minutes(sum(known)) if known else "")
        )
    return section(
        "Actions taken",
        table(("No.", "Action", "Outcome", "Took", "Estimate"), rows, "rllrr"),
        *(_action_facts(place, action) for place, action in enumerate(report.actions, 1)),
    )


def _action_facts(place: int, action: Action) -> str:
    return section(f"{place}. {action.title}", prose_bullets(action.facts), level=3)


def _deliverables(report: Report) -> str:
    sized = any(item.size_bytes is not None for item in report.deliverables)
    rows = [
        (code(item.path), prose(item.what), *([_size(item.size_bytes)] if sized else []))
        for item in report.deliverables
    ]
    return section(
        "Deliverables",
        table(("Path", "What", *(["Size"] if sized else [])), rows, "llr"),
    )


def _size(amount: int | None) -> str:
    return "" if amount is None else size(amount)


def _metrics(report: Report) -> str:
    rows = [(prose(item.name), prose(item.value), prose(item.source)) for item in report.metrics]
    return section("Metrics", table(("Metric", "Value", "Source"), rows, "lrl"))


def evidence_table(evidence: tuple[Evidence, ...], folder: str) -> str:
    """What the framework saw, gate by gate; what did not pass comes first.

    `folder` is where the evidence records lie, relative to the page; or one `.json` file that
    holds them all, as in an exported history.
    """
    if not evidence:
        return ""
    found = sorted(evidence, key=lambda item: _ORDER.index(item.verdict))
    details = [
        f"{link(item.gate.id, _record(item, folder))} {prose(item.gate.name)}: "
        f"{bold(words(item.verdict.value))}. {stop(item.detail)}{_waiver(item)}"
        for item in found
        if item.verdict is not Verdict.PASSED
    ]
    return stack(
        evidence_counts(evidence),
        bullets(details),
        table(
            ("Gate", "Verdict", "Checked by", "Seen", "Exit", "Took", "Commit", "Record"),
            [_evidence_row(item, folder) for item in found],
            "llllrrll",
        ),
    )


def evidence_counts(evidence: tuple[Evidence, ...]) -> str:
    """`9 gates: 8 passed and 1 failed.`"""
    parts = [
        f"{total} {words(verdict.value)}"
        for verdict in reversed(_ORDER)
        if (total := sum(item.verdict is verdict for item in evidence))
    ]
    return f"{count(len(evidence), 'gate')}: {listing(parts)}."


def _evidence_row(item: Evidence, folder: str) -> tuple[str, ...]:
    critical = " (critical)" if item.gate.critical else ""
    return (
        f"{item.gate.id} {prose(item.gate.name)}{critical}",
        words(item.verdict.value),
        _checked_by(item),
        prose(item.detail)
        + (f", 95 % interval {interval(*item.interval)}" if item.interval else ""),
        "" if item.exit_code is None else str(item.exit_code),
        duration(item.duration_seconds),
        code(short(item.commit)),
        link(item.id, _record(item, folder)),
    )


def _record(item: Evidence, folder: str) -> str:
    return folder if folder.endswith(".json") else f"{folder}/{item.id}.json"


def _checked_by(item: Evidence) -> str:
    if item.gate.kind is GateKind.METRIC:
        return code(str(item.gate.bound)) if item.gate.bound else "metric"
    if item.gate.kind is GateKind.FILES:
        return count(len(item.gate.paths), "promised file")
    if item.gate.artifact is not None or item.gate.link is not None:
        return "looked at in the commit"
    if item.gate.kind is GateKind.PERSON:
        return "a person"
    return code(item.command or item.gate.command, 60)


def _waiver(item: Evidence) -> str:
    waiver = item.waiver
    if waiver is None:
        return ""
    return f" Waived by {prose(waiver.by)} until {moment(waiver.until)}: {stop(waiver.why)}"


def _challenges(report: Report) -> str:
    return section(
        "Challenges and solutions",
        *(_challenge(place, item) for place, item in enumerate(report.challenges, 1)),
    )


def _challenge(place: int, item: Challenge) -> str:
    solution = prose(item.solution) or "None yet."
    lines = [("What happened", prose(item.what)), ("Solution", solution)]
    if item.at is not None:
        lines.insert(0, ("When", moment(item.at)))
    return section(f"Challenge {place}", facts(lines), level=3)


def _completion(report: Report) -> str:
    took = (report.finished_at - report.started_at).total_seconds()
    return section(
        "Completion summary",
        facts(
            [
                ("Result", f"{report.task} {prose(report.outcome)}"),
                ("Time", duration(took)),
                ("Actions", str(len(report.actions)) if report.actions else None),
                ("Deliverables", str(len(report.deliverables)) if report.deliverables else None),
                ("Evidence", evidence_counts(report.evidence) if report.evidence else None),
                ("Next", prose(report.next_steps[0]) if report.next_steps else None),
            ]
        ),
    )
