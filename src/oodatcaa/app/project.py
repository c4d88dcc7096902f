"""One project on disk: the repository, its configuration, its queue, and where things are."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from oodatcaa.domain.board import Board, Sprint
from oodatcaa.domain.policy import Policy
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.kit.rehearsal import work_dir
from oodatcaa.state.store import QueueStore

if TYPE_CHECKING:
    from oodatcaa.app.drafts import DraftFiles
    from oodatcaa.app.plans import FactFiles, PlanFiles
    from oodatcaa.app.roster import Roster
    from oodatcaa.domain.objective import Objective
    from oodatcaa.gates.store import EvidenceStore
    from oodatcaa.kit.config import Config
    from oodatcaa.vcs.repository import Repository

OBJECTIVE_PATH = "OBJECTIVE.md"
STATE_DIR = Path(".oodatcaa")


@dataclass(frozen=True)
class Project:
    """Opened by `open_project`; every use case starts from one.

    `root` is the main checkout, whatever worktree the command was typed in.
    """

    root: Path

    @cached_property
    def config(self) -> Config:
        from oodatcaa.kit.config import load_config

        return load_config(self.root)

    @property
    def policy(self) -> Policy:
        return self.config.policy

    @property
    def work(self) -> Path:
        return work_dir(self.root, self.root / STATE_DIR / "work")

    @property
    def models(self) -> Path:
        return self.root / "models"

    @cached_property
    def roster(self) -> Roster:
        """Raises OodatcaaError listing every problem of agents/*.md and [runners]."""
        from oodatcaa.app.roster import load_roster

        return load_roster(self.root, self.config)

    @cached_property
    def store(self) -> QueueStore:
        """Its notices (an edit that was taken over or set aside) go to standard error."""
        return QueueStore(self.work, legal=self._legal, on_notice=_tell)

    def _legal(self, old: Board, new: Board) -> tuple[str, ...]:
        from oodatcaa.domain.editing import edit_problems

        return edit_problems(old, new, self.policy)

    @cached_property
    def repo(self) -> Repository:
        from oodatcaa.vcs import GitPolicy, Repository

        git = self.config.git
        return Repository.discover(self.root, GitPolicy(sign=git.sign, hooks=git.hooks))

    @cached_property
    def plans(self) -> PlanFiles:
        from oodatcaa.app.plans import PlanFiles

        return PlanFiles(self.work)

    @cached_property
    def drafts(self) -> DraftFiles:
        from oodatcaa.app.drafts import DraftFiles

        return DraftFiles(self.work)

    @cached_property
    def facts(self) -> FactFiles:
        from oodatcaa.app.plans import FactFiles

        return FactFiles(self.work)

    @cached_property
    def evidence(self) -> EvidenceStore:
        from oodatcaa.gates.store import EvidenceStore

        return EvidenceStore(self.work)

    def objective(self) -> Objective:
        """OBJECTIVE.md of the main checkout. Raises OodatcaaError listing every problem."""
        from oodatcaa.domain.objective import parse_objective
        from oodatcaa.kit.files import read_page

        path = self.root / OBJECTIVE_PATH
        try:
            text = read_page(path)
        except FileNotFoundError as error:
            raise OodatcaaError(
                "objective.missing", "there is no OBJECTIVE.md here", hint="oodatcaa init"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise OodatcaaError(
                "objective.unreadable", f"OBJECTIVE.md can not be read: {error}", hint="mend it"
            ) from error
        return parse_objective(text)

    def board(self) -> Board:
        return self.store.read()

    def sprint(self) -> Sprint:
        """The open sprint. Raises RefusedError when there is none."""
        sprint = self.board().sprint
        if sprint is None:
            raise RefusedError("sprint.none", "no sprint", hint="oodatcaa sprint new")
        return sprint


def _tell(notice: str) -> None:
    sys.stderr.write(f"note: {notice}\n")


def open_project(start: Path | None = None) -> Project:
    """The project around `start` (the current folder). Raises OodatcaaError outside of one."""
    here = (start or Path.cwd()).resolve()
    quick = _plain_root(here)
    if quick is not None:
        return Project(quick)
    from oodatcaa.vcs.repository import Repository

    return Project(Repository.discover(here).root)


def _plain_root(here: Path) -> Path | None:
    """The main checkout when it is the nearest one above: no git process is needed to see that."""
    for folder in (here, *here.parents):
        mark = folder / ".git"
        if mark.is_dir() and (mark / "HEAD").exists():
            bare_like = (mark / "commondir").exists()
            return None if bare_like else folder
        if mark.exists():
            return None
    return None
