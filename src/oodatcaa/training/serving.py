"""The frame of every training child: request in, result out, an exit code that can be trusted."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from oodatcaa.domain.base import Record
from oodatcaa.domain.training import RunStatus
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.training.protocol import (
    EXIT_DESCRIBED,
    EXIT_OK,
    REQUEST_FILE,
    RESULT_FILE,
    ChildError,
    WorkerResult,
)

R = TypeVar("R", bound=Record)


def serve(answer: Callable[[Path], Record], argv: list[str] | None = None) -> int:
    """Run `answer` on the folder named on the command line and write what it returns.

    An OodatcaaError becomes `{"error": ...}` and exit code 3. Anything else keeps its traceback
    (stderr is the child's log) and exits 1: a crash is for the parent to describe.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print(f"usage: python -m oodatcaa.training.<backend>.<child> FOLDER (got {arguments})")
        return 2
    folder = Path(arguments[0])
    try:
        result = answer(folder)
    except OodatcaaError as error:
        traceback.print_exc()
        write_error(folder, error)
        return EXIT_DESCRIBED
    write_atomic(folder / RESULT_FILE, result.model_dump_json(indent=1) + "\n")
    return EXIT_OK


def serve_run(answer: Callable[[Path], WorkerResult]) -> int:
    """`serve` for a training worker: 0 only when the run finished, 3 when the result says why it
    did not."""
    ended: list[RunStatus] = []

    def run(folder: Path) -> Record:
        result = answer(folder)
        ended.append(result.status)
        return result

    code = serve(run)
    return EXIT_DESCRIBED if code == EXIT_OK and ended[0] is not RunStatus.FINISHED else code


def write_error(folder: Path, error: OodatcaaError) -> None:
    described = ChildError(
        code=error.code, message=error.message, hint=error.hint, details=error.details
    )
    payload = {"error": described.model_dump(mode="json")}
    write_atomic(folder / RESULT_FILE, json.dumps(payload, indent=1) + "\n")


def read_request(folder: Path, kind: type[R], name: str = REQUEST_FILE) -> R:
    """The folder's request; OodatcaaError `child.request` when it is missing or malformed."""
    path = folder / name
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise OodatcaaError(
            "child.request",
            f"{path} is not a readable {kind.__name__}",
            hint="children are started by oodatcaa itself; use `oodatcaa train` instead",
            details=[str(error)],
        ) from error
