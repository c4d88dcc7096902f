"""What must be true, exist and be connected when a story is in the target branch.

Plans say it goal-backward: not which tasks were ticked off, but what can be looked at afterwards.
"""

from __future__ import annotations

from pydantic import Field

from oodatcaa.domain.base import NonEmpty, Record


class Truth(Record):
    """An observable behaviour. Its command decides it; without a command a person does."""

    statement: NonEmpty
    command: str = Field(default="", description="exit code 0 = it holds; empty = a person decides")


class ArtifactCheck(Record):
    """A file that exists with substance in it, not as a stub."""

    path: NonEmpty = Field(description="in the repository, at the merged commit")
    provides: str = Field(default="", description="what it is there for, for people")
    min_lines: int = Field(default=0, ge=0, description="lines that are not blank")
    contains: tuple[NonEmpty, ...] = Field(default=(), description="texts that must stand in it")
    exports: tuple[NonEmpty, ...] = Field(
        default=(), description="names it defines at its top level (Python), or mentions (others)"
    )


class KeyLink(Record):
    """A connection without which two finished files do nothing together."""

    source: NonEmpty = Field(description="path of the file (or folder) that holds the connection")
    target: NonEmpty = Field(description="what it connects to: a path, a module, an endpoint")
    via: str = Field(default="", description="how, for people: an import, a call, a query")
    pattern: str = Field(
        default="", description="regular expression found in `source`; empty = the target's name"
    )


class Goals(Record):
    """Empty by default: a plan without them is checked by its criteria and gates alone."""

    truths: tuple[Truth, ...] = ()
    artifacts: tuple[ArtifactCheck, ...] = ()
    key_links: tuple[KeyLink, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.truths or self.artifacts or self.key_links)
