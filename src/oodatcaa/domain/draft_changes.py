"""What differs between two versions of one imported plan, in words."""

from __future__ import annotations

from collections.abc import Iterable

from oodatcaa.domain.draft import DraftStep, DraftStory

MOST_LINES = 20
_WHOLE = ("title", "goal", "purpose", "output", "phase", "wave", "priority", "goals", "gates")
"""Fields of which it is said that they changed, not how."""


def draft_changes(old: DraftStory, new: DraftStory) -> tuple[str, ...]:
    """One line a change, the most telling first, and at most MOST_LINES; empty = the same work."""
    found = _steps(old.steps, new.steps)
    for name, before, after in (
        ("command", old.commands, new.commands),
        ("dependency", old.depends_on, new.depends_on),
        ("file", old.paths, new.paths),
        ("criterion in words", old.statements, new.statements),
        ("reference", old.references, new.references),
    ):
        found += _list(name, before, after)
    known = {"goals": bool(found), "gates": bool(found)}
    found += [
        f"{name} changed"
        for name in _WHOLE
        if getattr(old, name) != getattr(new, name) and not known.get(name)
    ]
    if not found and old != new:
        found.append("what is kept word for word changed")
    more = len(found) - MOST_LINES
    return tuple(found[:MOST_LINES]) + ((f"and {more} more",) if more > 0 else ())


def _steps(old: tuple[DraftStep, ...], new: tuple[DraftStep, ...]) -> list[str]:
    """Steps are known again by their title: a number moves with every insertion."""
    before = {(step.title, step.kind): step for step in old}
    after = {(step.title, step.kind): step for step in new}
    found = [f"new step: {title}" for title, kind in after if (title, kind) not in before]
    found += [f"step gone: {title}" for title, kind in before if (title, kind) not in after]
    for key in before.keys() & after.keys():
        unnumbered = {"number": 1, "gates": ()}
        if before[key].evolve(**unnumbered) != after[key].evolve(**unnumbered):
            found.append(f"step changed: {key[0]}")
    return sorted(found)


def _list(name: str, old: Iterable[str], new: Iterable[str]) -> list[str]:
    before, after = dict.fromkeys(old), dict.fromkeys(new)
    found = [f"new {name}: {_line(text)}" for text in after if text not in before]
    return found + [f"{name} gone: {_line(text)}" for text in before if text not in after]


def _line(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 120 else plain[:119] + "…"
