"""Content hashes of model folders, remembered so that gigabytes are read once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import platformdirs

from oodatcaa.kit.files import write_atomic

PARTS = ("config.json", "model*.safetensors", "tokenizer.json", "tokenizer_config.json")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_sha256(folder: Path, *, cache: Path | None = None) -> str:
    """sha256 over names and contents of what defines a model: config, weights, tokenizer.

    Contents are read again only when a file's size, time or inode changed; the memory of that is
    a file in the user's cache folder, which may be deleted at any time.
    """
    files = _files(folder)
    note = _note(folder, files, cache)
    known = _noted(note)
    if known is not None:
        return known
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {file_sha256(path)}\n".encode())
    write_atomic(note, total.hexdigest() + "\n")
    return total.hexdigest()


def known_sha256(folder: Path, *, cache: Path | None = None) -> str | None:
    """`model_sha256` where it is remembered; None where contents would have to be read."""
    return _noted(_note(folder, _files(folder), cache))


def _files(folder: Path) -> list[Path]:
    return sorted({path for part in PARTS for path in folder.glob(part)})


def _note(folder: Path, files: list[Path], cache: Path | None) -> Path:
    """Where the hash of these files, as they are now, is remembered."""
    stats = [(path.name, path.stat()) for path in files]
    key = json.dumps([str(folder), *((n, s.st_size, s.st_mtime_ns, s.st_ino) for n, s in stats)])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return (cache or platformdirs.user_cache_path("oodatcaa") / "hashes") / name


def _noted(note: Path) -> str | None:
    if not note.is_file():
        return None
    text = note.read_text(encoding="ascii").strip()
    return text if len(text) == 64 else None
