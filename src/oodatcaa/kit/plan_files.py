"""Files of plans as text, or one clear error for what is none. It loads nothing heavy: the command
line asks here first, so that a wrong file is told at once."""

from __future__ import annotations

from pathlib import Path

from oodatcaa.errors import OodatcaaError

MAX_BYTES = 20_000_000
"""Ten thousand tasks are about half of this."""
HEAD_BYTES = 65_536
_ENDINGS = (".md", ".markdown", ".json", ".jsonl")
_MOST_NAMED = 10
_PLACES = (
    *("SPRINT_QUEUE.json", "work/SPRINT_QUEUE.json", ".oodatcaa/work/SPRINT_QUEUE.json"),
    *("issues.jsonl", ".beads/issues.jsonl"),
    *("tasks.json", "tasks/tasks.json", ".taskmaster/tasks/tasks.json"),
)


def plan_file(path: Path) -> Path:
    """`path`, or for a folder the task list in it that everybody means.

    Raises OodatcaaError import.no_queue, import.unreadable.
    """
    if not path.is_dir():
        return path
    try:
        for place in _PLACES:
            if (path / place).is_file():
                return path / place
        plans = sorted(item.name for item in path.iterdir() if item.suffix.lower() in _ENDINGS)
    except OSError as error:
        raise _unreadable(path, error) from error
    raise OodatcaaError(
        "import.no_queue",
        f"there is no SPRINT_QUEUE.json, issues.jsonl or tasks.json in the folder {path}",
        hint="name the files: oodatcaa import "
        + (f"{path}/*{Path(plans[0]).suffix}" if plans else "FILE"),
        details=(f"it holds {name}" for name in plans[:_MOST_NAMED]),
    )


def _unreadable(path: Path, error: OSError) -> OodatcaaError:
    return OodatcaaError(
        "import.unreadable",
        f"{path} can not be read: {error.strerror or error}",
        hint="check the path and its permissions",
    )


def read_text(path: Path) -> str:
    """The file's text. Raises OodatcaaError for everything that is no readable text."""
    try:
        if not path.exists():
            raise OodatcaaError(
                "import.not_found", f"there is no file {path}", hint="check the path"
            )
        if not path.is_file():
            raise OodatcaaError(
                "import.no_file",
                f"{path} is no regular file",
                hint="save what it gives as a file, then oodatcaa import FILE",
            )
        with path.open("rb") as file:
            data = file.read(HEAD_BYTES)
            if b"\0" not in data or data.startswith((b"\xff\xfe", b"\xfe\xff")):
                data += file.read(MAX_BYTES + 1 - len(data))
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(data) > MAX_BYTES:
        raise OodatcaaError(
            "import.too_large",
            f"{path} is larger than {MAX_BYTES // 1_000_000} MB; no queue or plan is",
            hint="cut out the part that holds the tasks and import that",
        )
    text = _decode(data, path)
    if not text.strip("\N{ZERO WIDTH NO-BREAK SPACE} \t\r\n"):
        raise OodatcaaError(
            "import.empty_file",
            f"{path} is empty: there is nothing to import",
            hint="check that it is the file you mean",
        )
    return text


def _decode(data: bytes, path: Path) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise _not_text(path, "broken UTF-16", error.start) from error
    if b"\0" in data:
        raise OodatcaaError(
            "import.binary",
            f"{path} is a binary file (a zero byte at {data.index(0)})",
            hint="oodatcaa import reads text: a SPRINT_QUEUE.json or a plan",
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_text(path, f"byte {data[error.start]:#04x}", error.start) from error


def _not_text(path: Path, what: str, at: int) -> OodatcaaError:
    return OodatcaaError(
        "import.not_utf8",
        f"{path} is not UTF-8 text: {what} at offset {at:,}",
        hint="convert it first, for example: iconv -f latin1 -t utf-8 FILE > NEW",
    )
