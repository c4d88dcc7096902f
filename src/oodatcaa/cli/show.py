"""What every command prints with: text, JSON, errors that teach, and the next command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from oodatcaa.errors import EXIT_FAILURE, OodatcaaError

MOST_DETAILS = 40


def say(text: str = "") -> None:
    print(text, flush=True)


def as_json(value: object) -> None:
    """Print records, or anything json knows, as indented JSON."""
    say(json.dumps(_plain(value), indent=2, ensure_ascii=False, default=str))


def _plain(value: object) -> Any:
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def following(command: str) -> None:
    """Every command ends by naming the sensible next one."""
    say(f"\nnext: {command}")


def complain(error: OodatcaaError) -> None:
    print(f"error: {error.message} [{error.code}]", file=sys.stderr)
    for line in error.details[:MOST_DETAILS]:
        print(f"  - {line}", file=sys.stderr)
    if len(error.details) > MOST_DETAILS:
        print(f"  … and {len(error.details) - MOST_DETAILS} more", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def guarded(run: Callable[[], object], *, debug: bool) -> NoReturn:
    """Run a command line; no traceback reaches a person unless asked for with --debug."""
    try:
        run()
    except OodatcaaError as error:
        if debug:
            raise
        complain(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; everything is kept", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if debug:
            raise
        complain(
            OodatcaaError(
                "os.error",
                f"{error.strerror or error}: {error.filename or ''}".rstrip(": "),
                hint="free space or mend permissions; --debug shows where it happened",
            )
        )
        sys.exit(EXIT_FAILURE)
    except Exception as error:
        if debug:
            raise
        complain(
            OodatcaaError(
                "internal.error",
                f"{type(error).__name__}: {error}; this is a mistake in oodatcaa itself",
                hint="the same command with --debug shows where; nothing that was kept is lost",
            )
        )
        sys.exit(EXIT_FAILURE)
    sys.exit(0)
