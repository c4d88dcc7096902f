"""Where a story came from when another tool planned it, and what still keeps it from starting."""

from __future__ import annotations

from pydantic import Field

from oodatcaa.domain.base import NonEmpty, Record, Sha256, Utc


class Leftover(Record):
    """Content of the file that has no counterpart here: kept word for word, and shown."""

    what: NonEmpty
    place: NonEmpty = Field(description="line 7, or the file")
    text: str


class Approval(Record):
    """A person's word that something untrusted may go on."""

    by: NonEmpty
    why: NonEmpty
    at: Utc


class Source(Record):
    """The plan that a story was imported from. Its text is untrusted: no command in it runs
    before a person approved them, or the project's own list allows each of them."""

    format: NonEmpty = Field(description="gsd, superpowers, taskmaster, beads, oodatcaa, json")
    file: NonEmpty = Field(description="its name, as it was given")
    key: NonEmpty = Field(description="how the file itself names this piece of work")
    file_sha256: Sha256
    draft_sha256: Sha256 = Field(description="names the draft in .oodatcaa/work/imports/")
    commands: int = Field(default=0, ge=0, description="commands that wait for an approval")
    approved: Approval | None = None
    unsettled: tuple[str, ...] = Field(
        default=(), description="keys of work that it needs and that was not imported"
    )
    assumed: tuple[str, ...] = Field(
        default=(), description="keys of work that a person declared to be done"
    )
    foreign: tuple[str, ...] = Field(
        default=(), description="paths of another machine in its commands"
    )
    leftovers: tuple[Leftover, ...] = ()

    @property
    def wants_approval(self) -> bool:
        return self.commands > 0 and self.approved is None

    @property
    def held_back(self) -> str:
        """What only a new import can settle; empty = nothing."""
        parts = []
        if self.unsettled:
            names = ", ".join(self.unsettled)
            parts.append(
                f"needs {names}, not imported: import that too, or again with "
                f"--assume-done {self.unsettled[0]}"
            )
        if self.foreign:
            path = self.foreign[0]
            parts.append(
                f"names {path}, a path of another machine: import it again with --map {path}=PATH"
            )
        return "; ".join(parts)

    def reason(self, story: str) -> str:
        """Why it waits for a person, with the commands that settle it."""
        count = f"{self.commands} command" + ("s" if self.commands != 1 else "")
        verb = "wait" if self.commands != 1 else "waits"
        return (
            f"{count} of {self.file} {verb} for your approval: oodatcaa show {story}, then "
            f"oodatcaa approve {story} --why …"
        )
