"""Git: worktrees, branches, merges, tags. The only room that imports GitPython."""

from oodatcaa.vcs.git import CREW, GitPolicy
from oodatcaa.vcs.integration import MergeCandidate
from oodatcaa.vcs.records import (
    Advanced,
    CheckOwner,
    Count,
    Head,
    RepositoryStatus,
    TagExists,
    TargetDirty,
    TargetMoved,
    TreeInventory,
    Worktree,
)
from oodatcaa.vcs.repository import Repository

__all__ = [
    "CREW",
    "Advanced",
    "CheckOwner",
    "Count",
    "GitPolicy",
    "Head",
    "MergeCandidate",
    "Repository",
    "RepositoryStatus",
    "TagExists",
    "TargetDirty",
    "TargetMoved",
    "TreeInventory",
    "Worktree",
]
