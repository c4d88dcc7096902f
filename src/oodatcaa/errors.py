"""Errors that teach: a stable code, one line of what is wrong, and the next command to type."""

from __future__ import annotations

from collections.abc import Iterable

EXIT_FAILURE = 1
"""The command could not do what it was asked to."""
EXIT_USAGE = 2
"""The command line itself was wrong (also what Typer and Click use)."""
EXIT_STATE = 3
"""State on disk is unreadable, inconsistent or was changed by another hand."""
EXIT_REFUSED = 4
"""A rule refused the request: WIP limit, lease, memory gate, lifecycle."""
EXIT_NEEDS_HUMAN = 5
"""The work stopped and waits for a person's decision."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C; everything is kept and the same command goes on."""


class OodatcaaError(Exception):
    """Every error a user may see.

    `code` is stable and searchable (`queue.unreadable`), the message is one line, `hint` names
    the next command, and `details` lists every single failure when there is more than one:
    validators collect first and raise once.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str = "",
        details: Iterable[str] = (),
        exit_code: int = EXIT_FAILURE,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = tuple(details)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class RefusedError(OodatcaaError):
    """A rule of the domain says no; nothing was changed."""

    def __init__(
        self, code: str, message: str, *, hint: str = "", details: Iterable[str] = ()
    ) -> None:
        super().__init__(code, message, hint=hint, details=details, exit_code=EXIT_REFUSED)


class StateError(OodatcaaError):
    """State on disk is not what it must be; it is never silently replaced."""

    def __init__(
        self, code: str, message: str, *, hint: str = "", details: Iterable[str] = ()
    ) -> None:
        super().__init__(code, message, hint=hint, details=details, exit_code=EXIT_STATE)
