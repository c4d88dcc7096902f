"""Commits and tags."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from oodatcaa.errors import OodatcaaError
from oodatcaa.vcs.git import CREW, GitPolicy, Output, run_git
from oodatcaa.vcs.identity import identity_environment
from oodatcaa.vcs.reading import dirty_paths, resolve, try_resolve
from oodatcaa.vcs.records import TagExists

COMMIT_HOOKS = ("pre-commit", "prepare-commit-msg", "commit-msg")
_FROM_STDIN = ("--pathspec-from-file=-", "--pathspec-file-nul")


def commit_files(
    worktree: Path,
    paths: Iterable[str | Path] | None,
    message: str,
    *,
    policy: GitPolicy = CREW,
    allow_empty: bool = False,
) -> str | None:
    """Commit exactly `paths` (every change when None); the new commit, or None: nothing changed.

    What other hands staged stays staged and out of the commit. Paths are literal, absolute or
    relative to `worktree`, which must be the top of a checkout. On a refusal the files stay in
    the folder, staged. Raises OodatcaaError: git.add_failed, git.hook_refused, git.signing_failed,
    git.commit_failed, git.embedded_repository.
    """
    if paths is None:
        chosen = _every_change(worktree)
    else:
        chosen = tuple(_relative(worktree, path) for path in paths)
    if chosen:
        _add(worktree, chosen, policy)
    if not allow_empty and not _any_staged(worktree, chosen):
        return None
    args = ["commit", "--quiet", "--cleanup=whitespace", "-m", message]
    if allow_empty:
        args.append("--allow-empty")
    output = run_git(
        worktree,
        [*args, "--only", *(_FROM_STDIN if chosen else ())],
        policy=policy,
        stdin="\0".join(chosen) if chosen else None,
        env=identity_environment(worktree),
        may_fail=True,
    )
    if not output.ok:
        raise _refused(worktree, output, policy)
    return resolve(worktree, "HEAD")


def tag_commit(cwd: Path, name: str, sha: str, message: str, *, policy: GitPolicy = CREW) -> str:
    """An annotated tag on `sha`; the commit it names. The same tag again is fine (TagExists if
    it names another commit)."""
    wanted = resolve(cwd, sha)
    found = try_resolve(cwd, f"refs/tags/{name}")
    if found is None:
        output = run_git(
            cwd,
            ["tag", "--annotate", "--cleanup=whitespace", "--file=-", name, wanted],
            policy=policy,
            stdin=message,
            env=identity_environment(cwd),
            may_fail=True,
        )
        found = try_resolve(cwd, f"refs/tags/{name}")  # somebody may have been faster
        if found is None:
            raise OodatcaaError(
                "git.tag_failed",
                f"tag {name} could not be made",
                hint=f"try by hand: git tag -a {name} {wanted[:12]}",
                details=output.messages(),
            )
    if found != wanted:
        raise TagExists(name, found, wanted)
    return found


def _relative(worktree: Path, path: str | Path) -> str:
    name = os.path.relpath(path, worktree) if Path(path).is_absolute() else os.path.normpath(path)
    if name == ".." or name.startswith("../"):
        raise OodatcaaError(
            "git.outside", f"{path} is not in {worktree}", hint="name files of this checkout"
        )
    return name


def _every_change(worktree: Path) -> tuple[str, ...]:
    found = dirty_paths(worktree)
    embedded = [path for path in found if path.endswith("/")]
    if embedded:
        raise OodatcaaError(
            "git.embedded_repository",
            f"{worktree} holds another git repository, which a commit can not carry",
            hint="remove it or add it to .gitignore",
            details=embedded,
        )
    return found


def _add(worktree: Path, chosen: Sequence[str], policy: GitPolicy) -> None:
    output = run_git(
        worktree,
        ["add", "--all", *_FROM_STDIN],
        policy=policy,
        stdin="\0".join(chosen),
        may_fail=True,
    )
    if not output.ok:
        raise OodatcaaError(
            "git.add_failed",
            f"git can not add all of {len(chosen)} paths in {worktree}",
            hint="a path that is ignored or does not exist can not be committed",
            details=output.messages(),
        )


def _any_staged(worktree: Path, chosen: Sequence[str]) -> bool:
    staged = run_git(worktree, ["diff", "--cached", "--name-only", "-z", "--no-renames"]).fields()
    exact, folders = set(chosen), tuple(f"{path}/" for path in chosen)
    return any(name in exact or name.startswith(folders) or "." in exact for name in staged)


def _refused(worktree: Path, output: Output, policy: GitPolicy) -> OodatcaaError:
    said = output.messages()
    first = said[0] if said else f"exit code {output.code}"
    kept = "the files are kept and staged; when it is mended: git commit"
    if "failed to sign" in output.err or "failed to write commit object" in output.err:
        return OodatcaaError(
            "git.signing_failed",
            f"the commit could not be signed: {first}",
            hint=kept,
            details=said,
        )
    hooks = _hooks(worktree) if policy.hooks else ()
    if hooks:
        return OodatcaaError(
            "git.hook_refused",
            f"a hook ({', '.join(hooks)}) refused the commit: {first}",
            hint=kept,
            details=said,
        )
    return OodatcaaError(
        "git.commit_failed", f"git commit failed: {first}", hint=kept, details=said
    )


def _hooks(worktree: Path) -> tuple[str, ...]:
    folder = run_git(
        worktree,
        ["config", "--get", "--path", "core.hooksPath"],
        policy=GitPolicy(hooks=True),
        may_fail=True,
    ).line
    where = (
        Path(folder)
        if folder
        else Path(
            run_git(
                worktree,
                ["rev-parse", "--path-format=absolute", "--git-path", "hooks"],
                policy=GitPolicy(hooks=True),
            ).line
        )
    )
    where = where if where.is_absolute() else worktree / where
    return tuple(name for name in COMMIT_HOOKS if os.access(where / name, os.X_OK))
