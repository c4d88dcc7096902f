"""Contradictions between what a task says and what its lease, its times and others say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta

from oodatcaa.domain.policy import LeaseMinutes
from oodatcaa.domain.task import Role, SubtaskKind
from oodatcaa.importers.findings import Findings, as_json, short
from oodatcaa.importers.oodatcaa.dialect import LeaseFacts, RawTask
from oodatcaa.importers.oodatcaa.facts import Facts
from oodatcaa.importers.oodatcaa.identity import Placed, Placement
from oodatcaa.importers.oodatcaa.links import Links
from oodatcaa.importers.oodatcaa.times import TimeFact, parse_ttl
from oodatcaa.importers.oodatcaa.words import (
    ACTIVE_WORDS,
    CANCELLED_WORDS,
    DONE_WORDS,
    ROLE_WORDS,
)

_OVER = DONE_WORDS | CANCELLED_WORDS
_ROLE_OF_STATUS = {
    "planning": "planner",
    "testing": "tester",
    "integrating": "integrator",
    "adapting": "refiner",
}


class Checks:
    def __init__(
        self,
        placement: Placement,
        links: Links,
        facts: Facts,
        findings: Findings,
        now: datetime,
        nested: Iterable[tuple[str, TimeFact]] = (),
    ) -> None:
        self.nested = nested
        self.placement = placement
        self.links = links
        self.facts = facts
        self.findings = findings
        self.now = now
        self.pairs: list[tuple[Placed, RawTask]] = [
            (task, task.raw) for task in placement.all() if task.raw is not None
        ]

    def run(self) -> None:
        self._attach_leases()
        for task, raw in self.pairs:
            self._lease(task, raw)
            self._dependencies(task, raw)
            self._order(raw)
            self._sprint(raw)
        self._owners()
        self._times()
        self._unmapped()

    def _attach_leases(self) -> None:
        for old, lease in self.facts.leases.items():
            task = self.placement.find(old)
            if task is None or task.raw is None:
                self.findings.error(
                    "lease.unknown_task",
                    lease.line,
                    f"a lease on {old}, which is not in the file",
                    as_json(lease.raw),
                )
            elif task.raw.lease is None:
                task.raw.lease = lease
                task.raw.owner = lease.owner or task.raw.owner
            elif task.raw.lease.raw != lease.raw:
                self.findings.warning(
                    "lease.differs",
                    lease.line,
                    f"{task.old} has two leases; the one inside the task counts",
                    as_json(lease.raw),
                )

    def _lease(self, task: Placed, raw: RawTask) -> None:
        active = raw.status in ACTIVE_WORDS
        if raw.lease is None:
            if active:
                by = f" (by {raw.owner})" if raw.owner else ""
                self.findings.warning(
                    "active.no_lease", task.line, f"{task.old} is {raw.status}{by} without a lease"
                )
            return
        lease = raw.lease
        held = f"held by {lease.owner or 'nobody named'}"
        if raw.status in _OVER:
            self.findings.warning(
                "lease.on_finished",
                lease.line,
                f"{task.old} is {raw.status}, but still has a lease, {held}",
                as_json(lease.raw),
            )
        elif not active:
            self.findings.warning(
                "lease.on_idle",
                lease.line,
                f"{task.old} is {raw.status or 'without status'}, but has a lease, {held}",
                as_json(lease.raw),
            )
        self._ttl(task, raw, lease)

    def _ttl(self, task: Placed, raw: RawTask, lease: LeaseFacts) -> None:
        usual = self._usual_minutes(task, raw, lease)
        if lease.ttl is None:
            if raw.status in ACTIVE_WORDS:
                self.findings.info(
                    "lease.no_ttl", lease.line, f"{task.old}: a lease without time to live"
                )
            return
        ttl = parse_ttl(lease.ttl, lease.ttl_key, usual)
        if ttl is None:
            self.findings.warning(
                "lease.ttl_invalid",
                lease.line,
                f"{task.old}: time to live {short(lease.ttl)} can not be read",
                lease.ttl,
            )
            return
        minutes, guessed = ttl
        if guessed:
            self.findings.info(
                "lease.ttl_unit",
                lease.line,
                f"{task.old}: ttl {short(lease.ttl)} was read as {minutes:g} minutes",
            )
        seen = [fact.moment.at for fact in lease.times if not fact.key.startswith("expire")]
        if seen and raw.status not in _OVER:
            end = min(max(seen), self.now) + timedelta(minutes=minutes)
            if end > self.now:
                self.findings.warning(
                    "lease.still_live",
                    lease.line,
                    f"{task.old}: the lease of {lease.owner or 'nobody named'} runs until "
                    f"{end.isoformat()}; somebody may still be working outside",
                )

    def _usual_minutes(self, task: Placed, raw: RawTask, lease: LeaseFacts) -> float:
        by_kind = "tester" if task.kind is SubtaskKind.TEST and task.story else "builder"
        role = lease.role or _ROLE_OF_STATUS.get(raw.status, by_kind)
        told = self.facts.sprint.lease_minutes.get(role)
        if told:
            return told
        return LeaseMinutes().seconds(Role(role)) / 60 if role in list(Role) else 60.0

    def _dependencies(self, task: Placed, raw: RawTask) -> None:
        if raw.status == "blocked" and not raw.depends:
            why = f", it says: {raw.reason}" if raw.reason else ""
            self.findings.warning(
                "blocked.no_dependency",
                task.line,
                f"{task.old} is blocked without a dependency{why}",
            )
        others = [self.placement.find(old) for old in raw.depends]
        known = [other for other in others if other is not None and other.raw is not None]
        undone = [other for other in known if other.raw and other.raw.status not in DONE_WORDS]
        if raw.status == "blocked" and known and len(known) == len(others) and not undone:
            self.findings.info(
                "blocked.stale", task.line, f"{task.old} is blocked, but all it waits for is done"
            )
        if undone and (raw.status in ACTIVE_WORDS or raw.status in DONE_WORDS):
            names = ", ".join(f"{o.old} is {o.raw.status}" for o in undone if o.raw)
            self.findings.warning(
                "dependency.not_done", task.line, f"{task.old} is {raw.status}, but {names}"
            )

    def _order(self, raw: RawTask) -> None:
        """Times of one stage that go backwards, and synonyms that do not agree."""
        groups: dict[tuple[str, str, str], list[TimeFact]] = {}
        for where, facts in (("", raw.times), ("lease ", raw.lease.times if raw.lease else [])):
            for fact in facts:
                groups.setdefault((where, fact.stage, fact.role), []).append(fact)
        for (where, stage, role), facts in groups.items():
            if role and len({fact.moment.at for fact in facts}) > 1:
                self.findings.warning(
                    "time.synonyms_differ",
                    facts[-1].line,
                    f"{raw.label}: {where}"
                    + ", ".join(f"{fact.key} {fact.raw}" for fact in facts)
                    + " mean the same and differ",
                )
            if role == "finish":
                started = groups.get((where, stage, "start"), [])
                created = groups.get((where, "", "create"), [])
                self._backwards(raw, [*started, *created], facts)
            elif role == "start":
                self._backwards(raw, groups.get((where, "", "create"), []), facts)
            elif where and not role:
                self._backwards(raw, groups.get((where, "", "start"), []), facts)

    def _backwards(
        self, raw: RawTask, before: Iterable[TimeFact], after: Iterable[TimeFact]
    ) -> None:
        for first in before:
            for second in after:
                if second.moment.at < first.moment.at:
                    self.findings.warning(
                        "time.order",
                        second.line,
                        f"{raw.label}: {second.key} {second.raw} is before {first.key} {first.raw}",
                    )

    def _sprint(self, raw: RawTask) -> None:
        """A task that says it belongs to another sprint than the file."""
        value = raw.unmapped.get("sprint")
        number = self.facts.sprint.number
        told = re.search(r"\d+", str(value)) if isinstance(value, str | int) else None
        if told is None or number is None or len(told[0]) > 6:
            return
        del raw.unmapped["sprint"]
        if int(told[0]) != number:
            self.findings.warning(
                "sprint.differs",
                raw.line,
                f"{raw.label} says sprint {short(value)}, the file says {number}",
            )

    def _owners(self) -> None:
        held: dict[str, list[tuple[Placed, str]]] = {}
        for task, raw in self.pairs:
            owner = raw.lease.owner if raw.lease and raw.lease.owner else raw.owner
            busy = raw.status in ACTIVE_WORDS or (raw.lease and raw.status not in _OVER)
            if owner and busy and owner.lower() not in ROLE_WORDS:
                held.setdefault(owner.lower(), []).append((task, owner))
        for several in held.values():
            if len(several) > 1:
                names = ", ".join(task.old for task, _ in several)
                self.findings.warning(
                    "owner.several",
                    several[0][0].line,
                    f"{several[0][1]} holds {len(several)} tasks at once: {names}",
                )

    def _times(self) -> None:
        every = [(raw.label, fact) for _, raw in self.pairs for fact in raw.all_times()]
        every += [("the sprint", fact) for fact in self.facts.times]
        known = {(fact.line, fact.key, fact.raw) for _, fact in every}
        deep = ((o, t) for o, t in self.nested if (t.line, t.key, t.raw) not in known)
        for label, fact in (*every, *dict.fromkeys(deep)):
            if fact.moment.at > self.now:
                zone = "; it has no zone and was read as UTC" if fact.moment.zone == "naive" else ""
                self.findings.warning(
                    "time.future",
                    fact.line,
                    f"{label}: {fact.key} {fact.raw} is in the future{zone}",
                )
        naive = sorted({fact.line for _, fact in every if fact.moment.zone == "naive"})
        if naive:
            self.findings.info(
                "time.naive",
                naive[0],
                f"{len(naive)} lines have times without a zone, read as UTC",
                naive,
            )
        zones = sorted({fact.moment.zone for _, fact in every})
        if len(zones) > 1:
            self.findings.info(
                "time.mixed_zones", None, f"times in different zones: {', '.join(zones)}"
            )

    def _unmapped(self) -> None:
        """Each field that has no place on the board, once, with the values of all tasks."""
        fields: dict[str, dict[str, object]] = {}
        lines: dict[str, int] = {}
        for _, raw in self.pairs:
            for key, value in raw.unmapped.items():
                fields.setdefault(key, {})[raw.label] = value
                lines.setdefault(key, raw.line)
        for key, values in fields.items():
            self.findings.info(
                "field.unmapped",
                lines[key],
                f"{key} ({len(values)} task{'s' * (len(values) > 1)}) has no place on the board",
                values,
            )
        for key, (value, line) in self.facts.unmapped.items():
            self.findings.info("field.unmapped", line, f"{key} has no place on the board", value)
