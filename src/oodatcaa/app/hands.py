"""Whose hands are on the keyboard: what only a person may decide is refused to agents."""

from __future__ import annotations

from oodatcaa.app.claims import hostname
from oodatcaa.app.project import Project
from oodatcaa.domain.states import tasks_of
from oodatcaa.domain.task import ProcessLease
from oodatcaa.errors import RefusedError
from oodatcaa.kit.ancestry import descends_from, marked_call
from oodatcaa.kit.rehearsal import is_copy


def refuse_agents_hands(project: Project, verb: str, code: str) -> None:
    """Raises RefusedError `code` in a process that an agent of this project started, under
    whatever name it acts.

    What a check runs on its copy of the queue decides nothing and is let through.
    """
    call = marked_call(project.root)
    if not call and is_copy(project.root):
        return
    owners = {
        (lease.pid, lease.process_started_at): f"{lease.owner}, which works on {task.id}"
        for task in tasks_of(project.board())
        if isinstance(lease := task.lease, ProcessLease) and lease.host == hostname()
    }
    above = descends_from(owners)
    if not call and above is None:
        return
    who = f"the agent's call {call}"
    if not call:
        who = next(name for (pid, _), name in owners.items() if pid == above)
    raise RefusedError(
        code,
        f"this command was started by {who}; only a person can {verb}",
        hint=f"a person types it in a terminal of their own: oodatcaa {verb} …",
    )
