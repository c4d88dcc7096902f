"""The front matter of a GSD plan, key by key; what nobody asks for is left over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from oodatcaa.importers.findings import Findings, as_json, short
from oodatcaa.importers.gsd_goals import texts_of
from oodatcaa.importers.plan_text import FrontLines, key_of

_NEEDED = re.compile(
    r"(?:.*/)?(?P<phase>\d+(?:\.\d+)*)(?:-[a-z][\w-]*?)??-(?P<plan>\d+)(?:-PLAN)?(?:\.md)?",
    re.IGNORECASE,
)


class Front:
    def __init__(self, values: Mapping[str, Any], lines: FrontLines, findings: Findings) -> None:
        self._left = dict(values)
        self.lines = lines
        self.findings = findings

    def take(self, key: str, default: Any = "") -> Any:
        return self._left.pop(key, default)

    def text(self, key: str) -> str:
        value = self.take(key)
        if isinstance(value, str):
            return value.strip()
        self.findings.warning("plan.field", self.lines.of(key), f"{key} is no plain text", value)
        return ""

    def texts(self, key: str) -> tuple[str, ...]:
        """A list, or a text with commas between its entries."""
        value = self.take(key, ())
        if isinstance(value, str):
            value = [part.strip() for part in re.split(r"[,\n]", value) if part.strip()]
        return texts_of(value, key, self.findings, self.lines.of(key))

    def needed(self, phase: str, plan: str) -> tuple[str, ...]:
        """`depends_on` as keys: `01`, `14-01`, `14-slug-01` and `14-01-PLAN.md` are one plan."""
        found = []
        for name in self.texts("depends_on"):
            match = _NEEDED.fullmatch(name)
            if name.isdecimal():
                found.append(key_of(phase, name.zfill(len(plan) if plan.isdecimal() else 0)))
            elif match:
                found.append(f"{match['phase']}-{match['plan']}")
            else:
                found.append(name)
        return tuple(dict.fromkeys(found))

    def autonomous(self, *, asks: bool) -> bool:
        """False when the plan says that it needs a person; a contradiction is reported."""
        said = self.text("autonomous").lower()
        line = self.lines.of("autonomous")
        if said not in ("", "true", "false", "yes", "no"):
            self.findings.warning("plan.field", line, f"autonomous: {short(said)} is no yes or no")
        alone = said not in ("false", "no")
        if not alone and not asks:
            self.findings.warning(
                "plan.autonomous", line, "it says that it needs a person, but has no checkpoint"
            )
        elif said in ("true", "yes") and asks:
            self.findings.warning(
                "plan.autonomous", line, "it says that it needs nobody, but has a checkpoint"
            )
        return alone and not asks

    def rest(self) -> None:
        """Report what no field of a story holds; it is kept word for word."""
        kind = self.text("type") or "execute"
        if kind not in ("execute", "tdd"):
            line = self.lines.of("type")
            self.findings.warning(
                "plan.type", line, f"type {short(kind)} is neither execute nor tdd"
            )
        if kind != "execute":
            self.findings.info("plan.unmapped", self.lines.of("type"), "type", kind)
        for key, value in self._left.items():
            line, text = self.lines.of(key), as_json(value)
            if key == "user_setup" and value:
                what = "user_setup: a person has to see to this before it runs"
                self.findings.warning("plan.unmapped", line, what, text)
            else:
                self.findings.info("plan.unmapped", line, f"{key} is kept word for word", text)
