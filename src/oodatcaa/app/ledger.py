"""The ledger of agents' calls: one folder per call, written when it starts, grows and ends.

A call whose process was killed stays in it with what it used until then, so that no budget
forgets it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from oodatcaa.domain.agents import Call
from oodatcaa.errors import StateError
from oodatcaa.kit.files import write_atomic

FILE = "call.json"


class Ledger:
    """The calls of one sprint, below `.oodatcaa/work/agents/sprint-<n>/`."""

    def __init__(self, work: Path, sprint: int) -> None:
        self.folder = work / "agents" / f"sprint-{sprint:03d}"
        self._ended: dict[str, Call] = {}

    def new_id(self, task: str, attempt: int, agent: str) -> str:
        """A free name; only the holder of the task's claim asks for one."""
        number = 1
        while (self.folder / f"{task}-a{attempt}-{number}-{agent}").exists():
            number += 1
        return f"{task}-a{attempt}-{number}-{agent}"

    def place(self, call_id: str) -> Path:
        return self.folder / call_id

    def put(self, call: Call) -> None:
        write_atomic(self.place(call.id) / FILE, call.model_dump_json(indent=2) + "\n")

    def calls(self) -> tuple[Call, ...]:
        """Every call so far, oldest first. Raises StateError for one that can not be read."""
        found = [self._read(path) for path in self.folder.glob(f"*/{FILE}")]
        return tuple(sorted(found, key=lambda call: (call.started_at, call.id)))

    def _read(self, path: Path) -> Call:
        known = self._ended.get(path.parent.name)
        if known is not None:
            return known
        try:
            call = Call.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            first = str(error).splitlines()[0]
            raise StateError(
                "ledger.unreadable", f"{path}: {first}", hint="move it away, then go on"
            ) from error
        if call.ending is not None:
            self._ended[call.id] = call
        return call
