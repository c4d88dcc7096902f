"""Worktrees, branches, merges and tags: the only place that uses GitPython."""
