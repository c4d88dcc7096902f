"""Where a control group is made and where not, on systems made of plain files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from oodatcaa.kit.cgroup import make_group

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has them")
SCOPE = "sys/fs/cgroup/user.slice/app.slice/run-1.scope"


def system(root: Path, *, memory: str = "max", delegated: bool = True) -> Path:
    """A version 2 system whose process lives in a scope of a user's session."""
    scope = root / SCOPE
    scope.mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/user.slice/app.slice/run-1.scope\n")
    (scope / "memory.max").write_text(f"{memory}\n")
    controllers = "cpu memory pids" if delegated else "cpu pids"
    (scope.parent / "cgroup.subtree_control").write_text(f"{controllers}\n")
    return root


def test_beside_our_own_group_where_that_hands_memory_on(tmp_path: Path) -> None:
    group = make_group(5_000_000, system(tmp_path))
    assert group is not None
    assert group.folder.parent == (tmp_path / SCOPE).parent
    assert (group.folder / "memory.max").read_text() == "5000000"
    assert (group.folder / "memory.swap.max").read_text() == "0"
    assert group.entrance == group.folder / "cgroup.procs"
    (group.folder / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    assert group.kills == 2


def test_never_out_of_a_limit_that_we_are_under(tmp_path: Path) -> None:
    assert make_group(16 * 10**9, system(tmp_path / "max", memory="4000000000")) is None
    for name in ("memory.high", "memory.swap.max"):
        root = system(tmp_path / name)
        (root / SCOPE / name).write_text("1000000\n")
        assert make_group(16 * 10**9, root) is None


def test_not_where_memory_is_not_handed_on(tmp_path: Path) -> None:
    assert make_group(5_000_000, system(tmp_path, delegated=False)) is None


def test_version_1_below_our_own_group(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:cpu:/\n4:memory:/docker/x\n0::/\n")
    own = tmp_path / "sys/fs/cgroup/memory/docker/x"
    own.mkdir(parents=True)
    group = make_group(5_000_000, tmp_path)
    assert group is not None
    assert group.folder.parent == own
    assert (group.folder / "memory.limit_in_bytes").read_text() == "5000000"
