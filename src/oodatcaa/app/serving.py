"""The model pool wired to this project: generate, compare, fuse and serve."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from oodatcaa.app.project import Project, open_project
from oodatcaa.app.served import Catalogue, Served
from oodatcaa.domain.base import GB, Record
from oodatcaa.domain.evidence import parse_bytes
from oodatcaa.errors import OodatcaaError
from oodatcaa.pool.dialects import MLX_WEIGHTS, read_layout
from oodatcaa.pool.manager import ModelPoolManager
from oodatcaa.pool.records import AdapterInfo, Answer, Ask, Piece, PoolStatus, Score
from oodatcaa.pool.tensors import sha256_of
from oodatcaa.training.mlx.infer import ENGINE
from oodatcaa.training.reservation import Reservation, Reservations, default_reservations
from oodatcaa.training.runs import LATEST, RUN_NAME

WHEN_FUSED, WHEN_DEQUANTIZED = 2, 8
"""Times the base's weights that fusing holds at most: old and new ones; 4 bits become 16."""


class Shared:
    """`pool.Memory` over the ledger that training runs reserve from; never waits."""

    def __init__(self, ledger: Reservations) -> None:
        self._ledger = ledger

    def reserve(self, size: int, limit: int, label: str) -> AbstractContextManager[Reservation]:
        return self._ledger.reserve(size, limit, label=label, wait=False)


class Adapted(Record):
    """A model id and what its adapter is; `problems` are all reasons why it can not be used."""

    served: Served
    info: AdapterInfo | None = None
    problems: tuple[str, ...] = ()


class Serving:
    """The catalogue's models through one pool; `pool.http.Door`. Use as a context manager."""

    def __init__(
        self,
        catalogue: Catalogue,
        limit: int,
        logs: Path | None = None,
        *,
        prompt_cache_bytes: int | None = None,
    ) -> None:
        self.catalogue = catalogue
        self.pool = ModelPoolManager(
            ENGINE,
            catalogue,
            memory_limit_bytes=limit,
            memory=Shared(default_reservations()),
            prompt_cache_bytes=prompt_cache_bytes,
            log_dir=logs,
        )

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def models(self) -> list[dict[str, Any]]:
        return [
            {"id": served.id, "created": served.created, "owned_by": "oodatcaa"}
            for served in self.catalogue.list()
            if not served.problem
        ]

    def stream(self, model: str, ask: Ask) -> Iterator[Piece | Answer]:
        served = self.checked(model)
        yield from self.pool.stream(served.base, served.adapter_path, ask)

    def generate(self, model: str, ask: Ask) -> Answer:
        served = self.checked(model)
        return self.pool.generate(served.base, served.adapter_path, ask)

    def score(self, model: str, texts: list[Any]) -> Score:
        served = self.checked(model)
        return self.pool.score(served.base, served.adapter_path, texts)

    def status(self) -> PoolStatus:
        return self.pool.get_status()

    def checked(self, model: str) -> Served:
        """The id, after its adapter and base were held against what run.json says."""
        served = self.catalogue.find(model)
        info = None
        base = self.catalogue.place(served.base)
        if served.adapter_path is not None and not served.problem:
            info = self.pool.validate_adapter_path(served.adapter_path, served.base)
        self.catalogue.check(served, base, info)
        return served

    def adapted(self, served: Served) -> Adapted:
        """For listings: never raises."""
        try:
            self.checked(served.id)
            if served.adapter_path is None:
                return Adapted(served=served)
            info = self.pool.validate_adapter_path(served.adapter_path, served.base)
            return Adapted(served=served, info=info)
        except OodatcaaError as error:
            message = error.message.removeprefix(f"{served.id}: ")
            return Adapted(served=served, problems=error.details or (message,))


def open_serving(
    *,
    models: Sequence[str] = (),
    adapters: Sequence[str] = (),
    limit: str | None = None,
    prompt_cache: str | None = "0",
) -> Serving:
    """Everything that this project (or, outside of one, `models`) can serve.

    `adapters` are written NAME=FOLDER. The memory limit is the objective's unless `limit` says
    otherwise. `prompt_cache` is for a server: of the limit, what the KV caches of read prompts may
    take; None is the pool's own default. Raises OodatcaaError for names and sizes that make no
    sense.
    """
    project = _project()
    catalogue = Catalogue(project, models=tuple(models), adapters=_named(adapters))
    logs = project.work / "pool" if project is not None and project.work.is_dir() else None
    allowed = _limit(project, limit)
    cache = None if prompt_cache is None else _size("--prompt-cache", prompt_cache)
    if cache and cache >= allowed:
        raise OodatcaaError(
            "serve.limit",
            f"--prompt-cache: {prompt_cache} leaves nothing of the limit, {allowed / 1e9:.2f} GB",
            hint="--prompt-cache 1GB, or leave it away",
        )
    return Serving(catalogue, allowed, logs, prompt_cache_bytes=cache)


def _project() -> Project | None:
    try:
        return open_project()
    except OodatcaaError:
        return None  # a model folder can be served from anywhere


def _limit(project: Project | None, given: str | None) -> int:
    if given is not None:
        return _size("--limit", given)
    with contextlib.suppress(OodatcaaError):
        if project is not None:
            return project.objective().memory_limit_bytes
    return 16 * GB


def _size(option: str, given: str) -> int:
    try:
        return parse_bytes(given)
    except ValueError as error:
        raise OodatcaaError("serve.limit", f"{option}: {error}", hint=f"{option} 16GB") from error


def _named(adapters: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in adapters:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder or "::" in name:
            why = f"{text!r} is not NAME=FOLDER"
        elif name == LATEST or RUN_NAME.match(name):
            why = f"{name} names a run; choose another name for {folder}"
        elif name in found:
            why = f"{name} is given twice"
        else:
            found[name] = Path(folder)
            continue
        raise OodatcaaError("serve.adapter", why, hint="--adapter mine=path/to/it")
    return found


def fuse(
    model: str,
    target: Path,
    *,
    dequantize: bool,
    models: Sequence[str] = (),
    adapters: Sequence[str] = (),
) -> Path:
    """A model folder with the adapter's updates in its weights, made by `mlx_lm.fuse`.

    Raises OodatcaaError `fuse.exists`, `fuse.no_adapter`, `fuse.failed`, and what makes an
    adapter unusable. A PEFT adapter is converted first.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OodatcaaError("fuse.exists", f"{target} exists already", hint="choose another folder")
    with (
        open_serving(models=models, adapters=adapters) as serving,
        tempfile.TemporaryDirectory() as scratch,
    ):
        served = serving.catalogue.find(model)
        if served.adapter_path is None:
            raise OodatcaaError(
                "fuse.no_adapter",
                f"{model} is a base model: there is nothing to fuse",
                hint="oodatcaa models list shows the adapters",
            )
        folder = _for_mlx_lm(serving, served, Path(scratch))
        made = Path(scratch) / "fused"
        words = ["mlx_lm", "fuse", "--model", served.base_path, "--adapter-path", str(folder)]
        words += ["--save-path", str(made), *(["--dequantize"] if dequantize else [])]
        weights = sum(f.stat().st_size for f in Path(served.base_path).glob("model*.safetensors"))
        needed = weights * (WHEN_DEQUANTIZED if dequantize else WHEN_FUSED)
        with Shared(default_reservations()).reserve(needed, serving.pool.limit, f"fusing {model}"):
            _run(words)
        _move(made, target)
    return target.resolve()


def _for_mlx_lm(serving: Serving, served: Served, scratch: Path) -> Path:
    """The adapter's folder, checked, in mlx-lm's own dialect."""
    folder = Path(str(served.adapter_path))
    layout, _ = read_layout(folder)
    if layout is not None and layout.full:
        # Weights of its own: the pool can not share a base with it, mlx_lm.fuse can merge it.
        serving.catalogue.check_weights(served, sha256_of(folder / MLX_WEIGHTS))
        return folder
    serving.checked(served.id)
    info = serving.pool.validate_adapter_path(folder, served.base)
    if info.dialect == "mlx":
        return folder
    target = scratch / "adapter"
    _run(["oodatcaa.pool.mlx.convert", info.model_dump_json(), str(target)])
    return target


def _run(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-8:]
        raise OodatcaaError(
            "fuse.failed",
            f"{words[0]} ended with exit code {done.returncode}",
            hint="the lines above say why; a larger scratch folder: TMPDIR",
            details=tail,
        )


def _move(made: Path, target: Path) -> None:
    """One rename at the end, so that a half-copied model is never at `target`."""
    import shutil

    target.parent.mkdir(parents=True, exist_ok=True)
    near = target.parent / f".{target.name}.new"
    shutil.rmtree(near, ignore_errors=True)
    shutil.copytree(made, near)
    if target.is_dir():
        target.rmdir()
    near.rename(target)
