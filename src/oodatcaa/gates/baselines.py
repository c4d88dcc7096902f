"""What a gate finds on the target branch, so that an old project is only asked not to get worse."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from oodatcaa.domain.evidence import Baseline, GateSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.gates.ports import Checkouts, GateRequest
from oodatcaa.gates.store import EvidenceStore
from oodatcaa.kit.config import GatesConfig
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.locks import FileLock

Count = Callable[[GateSpec, GateRequest], tuple[float | None, str]]
LOCK_PATIENCE_S = 3600.0


class Baselines:
    """Counts once for each gate, commit and setup; the answers are kept beside the evidence."""

    def __init__(self, checkouts: Checkouts, store: EvidenceStore, config: GatesConfig) -> None:
        self._checkouts = checkouts
        self._store = store
        self._config = config

    def of(
        self, gate: GateSpec, request: GateRequest, tools: dict[str, str], count: Count
    ) -> tuple[Baseline | None, str]:
        """(the baseline, why there is none). `tools` are the versions that it is compared with:
        another version of the same tool finds other things."""
        branch = request.target
        if not branch:
            return None, "no target branch is known"
        try:
            commit = self._checkouts.resolve(f"refs/heads/{branch}")
        except OodatcaaError as error:
            return None, error.message
        folder = self._store.folder("baselines")
        path = folder / f"{self._key(gate, commit, tools)}.json"
        lock = FileLock(
            path.with_suffix(".lock"), code="gates.baseline_busy", what=f"baseline of {gate.id}"
        )
        with closing(lock), lock.held(LOCK_PATIENCE_S):
            # Before a merge nothing is taken from a file that anybody could have written.
            kept = _kept(path) if request.task != request.story else None
            if kept is not None:
                return Baseline(branch=branch, commit=commit, findings=kept), ""
            found, problem = count(gate, request.evolve(commit=commit))
            if found is None:
                return None, problem
            write_atomic(path, json.dumps({"findings": found, "gate": gate.id, "commit": commit}))
        return Baseline(branch=branch, commit=commit, findings=found), ""

    def _key(self, gate: GateSpec, commit: str, tools: dict[str, str]) -> str:
        versions = json.dumps(tools, sort_keys=True)
        where = (self._config.python, *self._config.setup)
        parts = (gate.command, gate.preset, commit, versions, *where)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _kept(path: Path) -> float | None:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["findings"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
