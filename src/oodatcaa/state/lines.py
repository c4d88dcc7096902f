"""The lines of queue.journal: JSON, each with a checksum that starts from the line before."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from oodatcaa.domain.base import Record, Utc
from oodatcaa.domain.board import Board

REPAIR = "run: oodatcaa doctor --repair (it keeps the original)"
PREFIX = 18  # {"crc":"xxxxxxxx",
RETRIES = 5
START = re.compile(
    rb'"seq":(\d+),"revision":(\d+),"at":"([^"]+)"(?:,"entries":(\d+))?(?:,"tasks":"([^"]*)")?'
)


class Marker(Record):
    """A snapshot that was (or was about to be) written: the seq it covers, the file's sha256.

    `file` (inode, time of the last change in ns, size) spares other processes the reading.
    """

    seq: int
    sha256: str
    exact: bool = False
    file: tuple[int, int, int] | None = None


class Head(Record):
    head: int = 1
    seq: int
    revision: int
    at: Utc | None
    since: int
    """The sprint's first transaction is later than this seq."""
    last_event: tuple[int, int] | None
    markers: tuple[Marker, ...]
    bytes: int
    crc: str = ""


class Base(Record):
    board: Board
    crc: str


@dataclass
class Position:
    handle: int
    offset: int
    crc: int
    base_end: int
    identity: tuple[int, int]
    durable: int
    """Up to here the disk has confirmed it, as far as this process knows."""
    size: int
    """The file's end; behind `offset` space may be reserved, filled with NUL."""
    last: bytes = b""
    """How the last line that was taken begins: its checksum, and so everything before."""
    poisoned: bool = False
    """Whether a sync of this file failed: a second one that succeeds would prove nothing."""
    clean: bool = False
    """Whether what lies behind `offset` was looked at: a power cut may leave parts of a line."""


class NotYet(Exception):
    """The file does not fit together: either a writer is at work, or it is damaged."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(why)
        self.offset = offset
        self.why = why


def framed(body: bytes, previous: int) -> tuple[bytes, int]:
    rest = body[1:]
    crc = zlib.crc32(rest, previous)
    return b'{"crc":"%08x",' % crc + rest + b"\n", crc


def crc_of(line: bytes, previous: int, offset: int) -> int:
    """The checksum of a line, given without its end. Raises NotYet when the bytes or the line
    before do not fit it."""
    crc = zlib.crc32(line[PREFIX:], previous)
    if line[:16] != b'{"crc":"%08x' % crc:
        raise NotYet(offset, "the checksum does not fit")
    return crc


def place_of(path: Path, offset: int) -> tuple[int, int]:
    """Line and column (from 1) of what is wrong in the line at `offset`."""
    data = path.read_bytes()
    number = data.count(b"\n", 0, offset) + 1
    line = data[offset:].split(b"\n", 1)[0]
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return number, error.colno
    except UnicodeDecodeError as error:
        return number, error.start + 1
    return number, 1
