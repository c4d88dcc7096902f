"""Run git unattended: a clean environment, no prompts, no pager, a time limit, patient about locks.

Commands go through a runner of our own because GitPython can neither take variables out of the
environment (a calling hook's GIT_DIR would reach every command) nor end a hook's whole process
tree on a timeout. Objects are read through GitPython (`vcs.objects`).
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from oodatcaa.domain.base import Record
from oodatcaa.errors import OodatcaaError, StateError
from oodatcaa.vcs.links import refuse_redirected

# What a calling hook (or `git -c`) hands down and what would redirect or change our commands.
# GIT_CONFIG_COUNT stays: it is how containers set safe.directory, and hooks do not set it.
LEAKING = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_QUARANTINE_PATH",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_GRAFT_FILE",
    "GIT_SHALLOW_FILE",
    "GIT_REPLACE_REF_BASE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_LITERAL_PATHSPECS",
    "GIT_GLOB_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
    "GIT_REFLOG_ACTION",
    "GIT_EXTERNAL_DIFF",
    "GIT_DIFF_OPTS",
    "GIT_AUTHOR_DATE",
    "GIT_COMMITTER_DATE",
)

QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_EDITOR": ":",
    "GIT_SEQUENCE_EDITOR": ":",
    "GIT_PAGER": "cat",
    "GIT_MERGE_AUTOEDIT": "no",
    # refs/replace would show another object than the one that is merged and pushed.
    "GIT_NO_REPLACE_OBJECTS": "1",
    # Reading commands such as `status` must not take index.lock from an agent that commits.
    "GIT_OPTIONAL_LOCKS": "0",
    # Messages are matched for held locks; only their language changes, not the encoding.
    "LC_MESSAGES": "C",
    "LANGUAGE": "C",
}

# Settings of the user that would change what a command of the crew means or leave something behind.
_STEADY = {
    "core.quotePath": "false",
    "core.fsmonitor": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "rerere.enabled": "false",
    "merge.autoStash": "false",
    "submodule.recurse": "false",
    "status.renames": "false",
}

LOCK_PATIENCE_S = 15.0
_HELD = re.compile(
    r"(?:Unable to create '(?P<lock>[^']+\.lock)'|could not lock config file (?P<config>\S.*?))"
    r": File exists"
)


class GitPolicy(Record):
    """How a command treats the user's own settings.

    The default is the crew's: no signing (a passphrase prompt would hang a night) and none of the
    user's hooks. `as_the_user()` is for the one commit that a person asks for.
    """

    sign: bool = False
    hooks: bool = False
    timeout_s: float = 120.0

    @classmethod
    def as_the_user(cls, timeout_s: float = 300.0) -> GitPolicy:
        """The user's hooks and signing settings, as in their own `git commit`."""
        return cls(sign=True, hooks=True, timeout_s=timeout_s)

    def options(self) -> list[str]:
        settings = dict(_STEADY)
        if not self.hooks:
            settings["core.hooksPath"] = "/dev/null"
        if not self.sign:
            settings.update({"commit.gpgSign": "false", "tag.gpgSign": "false"})
        return [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]


CREW = GitPolicy()


@dataclass(frozen=True)
class Output:
    """What a git command left: exit code and both streams, raw and as text."""

    code: int
    raw: bytes
    err: str

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def out(self) -> str:
        # Paths may hold any byte; surrogateescape keeps them usable as paths.
        return self.raw.decode("utf-8", "surrogateescape")

    @property
    def line(self) -> str:
        return self.out.rstrip("\n")

    def fields(self) -> tuple[str, ...]:
        """The parts of a `-z` output."""
        return tuple(part for part in self.out.split("\0") if part)

    def messages(self) -> tuple[str, ...]:
        """Every non-empty line that git or a hook printed, for an error's details."""
        text = self.err + "\n" + self.raw.decode("utf-8", "replace")
        return tuple(line.rstrip() for line in text.splitlines() if line.strip())


def clean_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for any git command: nothing of a calling hook, nothing that could ask."""
    source = os.environ if base is None else base
    env = {key: value for key, value in source.items() if key not in LEAKING}
    if locale := env.pop("LC_ALL", ""):
        env["LC_CTYPE"] = locale
    return env | QUIET


def run_git(
    cwd: Path,
    args: Sequence[str],
    *,
    policy: GitPolicy = CREW,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    may_fail: bool = False,
    search_up: bool = False,
) -> Output:
    """Run `git args` in `cwd`, waiting for locks that others hold.

    `cwd` must be the top of a checkout (or a git folder) unless `search_up`: worktrees lie inside
    the main checkout, and in one that lost its .git the command would change the main checkout.

    A worktree of ours whose `.git` was made to lead elsewhere is refused.

    Raises OodatcaaError: `git.worktree_redirected`, `git.missing`, `git.timeout` (its whole process
    tree is ended), `git.locked` (after a bounded wait; names the lock and who may hold it) and,
    unless `may_fail`, `git.failed` with everything that git printed.
    """
    command = [_executable(), *policy.options(), "--literal-pathspecs", *args]
    environment = clean_environment() | dict(env or {})
    if not search_up:
        refuse_redirected(cwd)
        environment["GIT_CEILING_DIRECTORIES"] = str(cwd.parent)
    limit = policy.timeout_s if timeout_s is None else timeout_s
    deadline = time.monotonic() + LOCK_PATIENCE_S
    pause = 0.02
    while True:
        output = _once(command, cwd, environment, stdin, limit, attached=policy.hooks)
        held = None if output.ok else _HELD.search(output.err)
        if held is None:
            break
        if time.monotonic() > deadline:
            raise _locked(cwd, Path(held["lock"] or f"{held['config']}.lock"))
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(pause * 2, 1.0)
    if not output.ok and not may_fail:
        said = output.messages()
        raise OodatcaaError(
            "git.failed",
            f"git {args[0]} failed: {said[0] if said else f'exit code {output.code}'}",
            hint=f"look with: git -C '{cwd}' status",
            details=said,
        )
    return output


def _executable() -> str:
    found = shutil.which("git")
    if found is None:
        raise OodatcaaError(
            "git.missing", "git is not installed", hint="install git 2.36 or newer, then try again"
        )
    return found


def _once(
    command: list[str],
    cwd: Path,
    env: dict[str, str],
    stdin: str | None,
    timeout_s: float,
    *,
    attached: bool,
) -> Output:
    if not cwd.is_dir():
        raise OodatcaaError(
            "git.no_folder", f"the folder {cwd} does not exist", hint="check the path"
        )
    # A session of its own has no terminal that a hook could ask on. The user's own commit keeps
    # the terminal: signing with a key on a card may need it.
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=not attached,
    )
    payload = None if stdin is None else stdin.encode("utf-8", "surrogateescape")
    try:
        raw, err = process.communicate(payload, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _end_tree(process)
        verb = next(part for part in command[1:] if not part.startswith("-") and "=" not in part)
        raise OodatcaaError(
            "git.timeout",
            f"git {verb} did not end within {timeout_s:g} s and was stopped",
            hint="a hook or a signing program that waits for input is the usual cause",
        ) from None
    except BaseException:
        _end_tree(process)
        raise
    return Output(process.returncode, raw, err.decode("utf-8", "replace"))


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """End git and what its hooks started; the pipes are closed, so nobody can block on them."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [*parent.children(recursive=True), parent]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()


def _locked(cwd: Path, lock: Path) -> StateError:
    lock = lock if lock.is_absolute() else cwd / lock
    holders = git_processes(lock.parent, cwd)
    age = ""
    with contextlib.suppress(OSError):
        age = f", {time.time() - lock.stat().st_mtime:.0f} s old"
    return StateError(
        "git.locked",
        f"git's lock {lock} is held{age}",
        hint="wait for the process below"
        if holders
        else f"no git process runs here; if that is so: rm '{lock}'",
        details=holders,
    )


def git_processes(*folders: Path) -> tuple[str, ...]:
    """The git processes of this host whose current folder is in one of `folders`."""
    found = []
    for process in psutil.process_iter(["pid", "name", "cwd", "cmdline", "status"]):
        name, where = process.info["name"] or "", process.info["cwd"]
        # One that has ended and was not waited for yet has no folder, and holds nothing.
        if not name.startswith("git") or process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        # A git process that we may not look into counts as a holder: better wait than break.
        if where is None or any(Path(where).is_relative_to(folder) for folder in folders):
            command = " ".join(process.info["cmdline"] or [name])
            found.append(f"pid {process.info['pid']}: {command}")
    return tuple(found)
