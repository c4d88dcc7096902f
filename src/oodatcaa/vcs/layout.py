"""Find the repository from any folder of any of its worktrees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.rehearsal import work_dir
from oodatcaa.vcs.git import Output, run_git

STATE_FOLDER = ".oodatcaa"
LIVE = (f"{STATE_FOLDER}/work", f"{STATE_FOLDER}/worktrees")
"""Paths of the main checkout that are live state and never part of a commit."""


@dataclass(frozen=True)
class Layout:
    """`root` is the main checkout, `common` git's common folder, `here` the checkout of `start`."""

    root: Path
    common: Path
    here: Path

    @property
    def work_dir(self) -> Path:
        return work_dir(self.root, self.root / STATE_FOLDER / "work")

    @property
    def worktrees_dir(self) -> Path:
        return self.root / STATE_FOLDER / "worktrees"


def find_layout(start: Path) -> Layout:
    """Raises OodatcaaError: git.not_a_repository, git.bare_repository, git.unsafe_owner."""
    start = start.resolve()
    output = run_git(
        start,
        ["rev-parse", "--path-format=absolute", "--git-common-dir"],
        may_fail=True,
        search_up=True,
    )
    if not output.ok:
        raise _why_not(start, output)
    common = Path(output.line)
    if run_git(common, ["rev-parse", "--is-bare-repository"]).line == "true":
        raise OodatcaaError(
            "git.bare_repository",
            f"{common} is a bare repository: it has no checkout to work beside",
            hint=f"clone it and work there: git clone '{common}'",
        )
    root = _main_checkout(common, start)
    top = run_git(start, ["rev-parse", "--show-toplevel"], may_fail=True, search_up=True)
    # Inside .git itself there is no top level; the main checkout is what is meant.
    here = Path(top.line) if top.ok and top.line else root
    return Layout(root=root, common=common, here=here)


def _main_checkout(common: Path, start: Path) -> Path:
    if common.name == ".git":
        return common.parent
    # A separate git folder (or a submodule's): its setting names the checkout, else only a
    # command from inside the main checkout knows it.
    setting = run_git(common, ["config", "--local", "core.worktree"], may_fail=True)
    if setting.ok and setting.line:
        return (common / setting.line).resolve()
    own = run_git(start, ["rev-parse", "--absolute-git-dir"], search_up=True).line
    top = run_git(start, ["rev-parse", "--show-toplevel"], may_fail=True, search_up=True)
    if Path(own) == common and top.ok:
        return Path(top.line)
    raise OodatcaaError(
        "git.no_main_checkout",
        f"{common} does not say where its main checkout is",
        hint="run the command once in the main checkout, or tell git: "
        f"git --git-dir='{common}' config core.worktree <main checkout>",
    )


def _why_not(start: Path, output: Output) -> OodatcaaError:
    said = output.messages()
    if "dubious ownership" in output.err:
        return OodatcaaError(
            "git.unsafe_owner",
            f"git refuses the repository at {start}: it belongs to another user",
            hint=f"if you trust it: git config --global --add safe.directory '{start}'",
            details=said,
        )
    return OodatcaaError(
        "git.not_a_repository",
        f"{start} is not in a git repository",
        hint="git init",
        details=() if "not a git repository" in output.err else said,
    )
