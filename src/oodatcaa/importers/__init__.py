"""Plans and queues written by other tools, read into records of the domain.

Parsing is pure; only the door (`detect`, `import_file`) reads a file, and nothing is ever written
or run. What does not fit is a finding with its place and content, never a traceback.
"""

from oodatcaa.importers.fresh import as_drafts
from oodatcaa.importers.front import detect, import_file
from oodatcaa.importers.records import (
    DraftStory,
    Finding,
    Imported,
    ImportKind,
    Severity,
    SprintFacts,
)

__all__ = [
    "DraftStory",
    "Finding",
    "ImportKind",
    "Imported",
    "Severity",
    "SprintFacts",
    "as_drafts",
    "detect",
    "import_file",
]
