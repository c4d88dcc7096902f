"""The builder: runs a plan's steps in the story's worktree, one executor per kind of step."""

from oodatcaa.roles.builder.work import build

__all__ = ["build"]
