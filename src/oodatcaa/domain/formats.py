"""The formats by name; light enough for a command line's help."""

from __future__ import annotations

from enum import StrEnum


class ImportKind(StrEnum):
    """Formats that are understood."""

    OODATCAA = "oodatcaa"
    GSD = "gsd"
    SUPERPOWERS = "superpowers"
    TASKMASTER = "taskmaster"
    BEADS = "beads"
    JSON = "json"


class ExportKind(StrEnum):
    """Formats that are written."""

    BEADS = "beads"
    TASKMASTER = "taskmaster"
    JSON = "json"
