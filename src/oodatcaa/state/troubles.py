"""Refusals of the store that need no more than their words."""

from __future__ import annotations

from pathlib import Path

from oodatcaa.errors import StateError


def unwritable(work_dir: Path, error: OSError) -> StateError:
    return StateError(
        "queue.unwritable",
        f"{work_dir} can not be written: {error.strerror or error}",
        hint="make the folder and its files writable, then repeat the command",
    )


def unsure(journal: Path, error: OSError) -> StateError:
    return StateError(
        "queue.write_unsure",
        f"{journal}: {error.strerror or error}; the change is in the queue, "
        "but a power cut may undo it",
        hint="free space or make the folder writable, then run: oodatcaa doctor",
    )


def nested() -> StateError:
    return StateError(
        "queue.nested",
        "a decision may not start another transaction",
        hint="this is a defect of the program; nothing was written",
    )
