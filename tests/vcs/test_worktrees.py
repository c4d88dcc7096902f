"""Story worktrees keep work; check worktrees always go away; many processes at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import oodatcaa
from oodatcaa.errors import OodatcaaError
from oodatcaa.vcs import CheckOwner, Repository
from oodatcaa.vcs.reading import git_folder

Git = Callable[..., str]
BRANCH = "feat/T001-memory"
SOURCE = str(Path(oodatcaa.__file__).parents[1])


def python(code: str, *args: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": SOURCE}
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def checks(repo: Repository) -> list[Path]:
    return [item.path for item in repo.worktrees() if item.path.name.startswith("check-")]


def test_the_next_attempt_finds_the_work_so_far(repo: Repository, root: Path, git: Git) -> None:
    path = repo.story_worktree("T001", BRANCH, "main")
    assert path == root / ".oodatcaa" / "worktrees" / "T001"
    (path / "committed.txt").write_text("c")
    sha = repo.commit_files(path, None, "feat: c")
    (path / "half.txt").write_text("half done")
    git(root, "commit", "-q", "--allow-empty", "-m", "main moved")
    assert repo.story_worktree("T001", BRANCH, "main") == path
    assert repo.resolve(BRANCH) == sha
    assert (path / "half.txt").read_text() == "half done"
    assert repo.head(path).branch == BRANCH


@pytest.mark.parametrize("where", ["main", "other story", "own repository", "link"])
def test_a_worktree_that_was_made_to_lead_elsewhere_is_refused(
    repo: Repository, root: Path, git: Git, where: str
) -> None:
    path = repo.story_worktree("T001", BRANCH, "main")
    other = repo.story_worktree("T002", "feat/T002-x", "main")
    heads = repo.refs()
    mark = path / ".git"
    if where == "main":
        mark.write_text(f"gitdir: {root / '.git'}\n")
    elif where == "other story":
        mark.write_text((other / ".git").read_text())
    elif where == "own repository":
        mark.unlink()
        git(path, "init", "-q")
    else:
        mark.unlink()
        mark.symlink_to(other / ".git")
    (path / "evil.txt").write_text("x")
    with pytest.raises(OodatcaaError) as refused:
        repo.commit_files(path, None, "feat: on a branch of somebody else")
    assert refused.value.code == "git.worktree_redirected"
    assert repo.refs() == heads
    assert repo.story_worktree("T001", BRANCH, "main") == path
    assert repo.head(path).branch == BRANCH
    assert not (path / "evil.txt").exists()
    (kept,) = path.parent.glob("lost-T001-*")
    assert (kept / "evil.txt").read_text() == "x"


def test_a_deleted_folder_is_made_again_from_its_branch(
    repo: Repository, root: Path, git: Git
) -> None:
    path = repo.story_worktree("T001", BRANCH, "main")
    (path / "a").write_text("a")
    sha = repo.commit_files(path, None, "feat: a")
    git(root, "worktree", "lock", str(path))
    subprocess.run(["rm", "-r", str(path)], check=True)
    assert repo.story_worktree("T001", BRANCH, "main") == path
    assert (path / "a").exists()
    assert repo.resolve(BRANCH) == sha


def test_a_worktree_that_was_half_made_by_a_killed_git_is_made_again(
    repo: Repository, root: Path
) -> None:
    path = repo.story_worktree("T001", BRANCH, "main")
    (root / ".git" / "worktrees" / "T001" / "locked").write_text("initializing")
    (path / "README.md").unlink()
    assert repo.story_worktree("T001", BRANCH, "main") == path
    assert (path / "README.md").exists()


def test_a_folder_unknown_to_git_is_put_aside_not_deleted(repo: Repository) -> None:
    path = repo.worktrees_dir / "T001"
    path.mkdir(parents=True)
    (path / "notes.txt").write_text("mine")
    repo.story_worktree("T001", BRANCH, "main")
    lost = list(repo.worktrees_dir.glob("lost-T001-*"))
    assert [(folder / "notes.txt").read_text() for folder in lost] == ["mine"]
    assert not (path / "notes.txt").exists()


def test_a_wandered_off_worktree_is_brought_back_only_when_clean(
    repo: Repository, git: Git
) -> None:
    path = repo.story_worktree("T001", BRANCH, "main")
    git(path, "checkout", "-q", "--detach")
    (path / "a").write_text("a")
    with pytest.raises(OodatcaaError, match=r"git\.worktree_dirty"):
        repo.story_worktree("T001", BRANCH, "main")
    (path / "a").unlink()
    assert repo.head(repo.story_worktree("T001", BRANCH, "main")).branch == BRANCH


def test_a_branch_checked_out_elsewhere_is_refused_with_the_place(
    repo: Repository, root: Path, git: Git
) -> None:
    git(root, "switch", "-q", "-c", BRANCH)
    with pytest.raises(OodatcaaError) as caught:
        repo.story_worktree("T001", BRANCH, "main")
    assert caught.value.code == "git.branch_in_use"
    assert str(root) in caught.value.message


def test_the_index_lock_of_a_killed_git_does_not_stop_the_next_attempt(
    repo: Repository, root: Path
) -> None:
    path = repo.story_worktree("T001", BRANCH, "main")
    (root / ".git" / "worktrees" / "T001" / "index.lock").write_text("")
    (repo.story_worktree("T001", BRANCH, "main") / "a").write_text("a")
    assert repo.commit_files(path, None, "feat: a") is not None


def test_names_can_not_leave_the_folder(repo: Repository) -> None:
    for name in ("../T001", "", "a/b", ".git"):
        with pytest.raises(OodatcaaError, match=r"git\.bad_name"):
            repo.story_worktree(name, BRANCH, "main")


def test_a_story_worktree_is_removed_only_when_everything_is_committed(repo: Repository) -> None:
    path = repo.story_worktree("T001", BRANCH, "main")
    (path / "a").write_text("a")
    with pytest.raises(OodatcaaError, match=r"git\.worktree_dirty"):
        repo.remove_story_worktree("T001")
    assert repo.remove_story_worktree("T001", force=True)
    assert not repo.remove_story_worktree("T001")
    assert repo.try_resolve(BRANCH) is not None


def test_a_check_worktree_holds_the_commit_and_goes_away(repo: Repository) -> None:
    path = repo.story_worktree("T001", BRANCH, "main")
    (path / "a").write_text("committed")
    sha = repo.commit_files(path, None, "feat: a")
    assert sha is not None
    (path / "a").write_text("changed since")
    with repo.check_worktree(sha, "T001-B01 / ü") as check:
        assert (check / "a").read_text() == "committed"
        assert repo.head(check).kind == "detached"
        (check / "junk").write_text("left behind")
        (check / "locked").mkdir()
        (check / "locked" / "x").write_text("x")
        (check / "locked").chmod(0o500)
    assert not check.exists()
    with pytest.raises(ZeroDivisionError), repo.check_worktree(sha, "x") as check:
        _ = 1 / 0
    assert not check.exists()
    assert checks(repo) == []
    assert list((repo.work_dir / "checks").iterdir()) == []
    with pytest.raises(OodatcaaError, match=r"git\.unknown_commit"), repo.check_worktree("no", "x"):
        pass


KILLED = """
import sys, time
from pathlib import Path
from oodatcaa.vcs import Repository
with Repository.discover(Path(sys.argv[1])).check_worktree("main", "killed"):
    print("ready", flush=True)
    time.sleep(300)
"""


def test_leftovers_of_a_killed_process_are_removed_and_only_those(
    repo: Repository, root: Path
) -> None:
    victim = python(KILLED, str(root))
    assert victim.stdout is not None
    assert victim.stdout.readline() == "ready\n"
    with repo.check_worktree("main", "mine") as mine:
        assert repo.prune_checks() == ()
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        removed = repo.prune_checks()
        assert [path.name.startswith("check-killed") for path in removed] == [True]
        assert checks(repo) == [mine]
        assert mine.exists()
    assert repo.prune_checks() == ()


def test_checks_of_another_host_stay(repo: Repository) -> None:
    with repo.check_worktree("main", "far") as path:
        record = repo.work_dir / "checks" / f"{path.name}.json"
        record.write_text(CheckOwner(host="far-away", pid=1, started=0.0).model_dump_json())
        assert repo.prune_checks() == ()
        assert repo.prune_checks(lambda owner: owner.host != "far-away") == (path,)


AGENT = """
import sys
from pathlib import Path
from oodatcaa.vcs import Repository
repo = Repository.discover(Path(sys.argv[1]))
number = int(sys.argv[2])
path = repo.story_worktree(f"T{number:03}", f"feat/T{number:03}-x", "main")
(path / f"{number}.txt").write_text("x")
assert repo.commit_files(path, None, f"feat: {number}")
with repo.check_worktree(f"feat/T{number:03}-x", str(number)) as check:
    assert (check / f"{number}.txt").exists()
"""


def test_eight_processes_at_once(repo: Repository, root: Path) -> None:
    crew = [python(AGENT, str(root), str(number)) for number in range(1, 9)]
    for agent in crew:
        _, errors = agent.communicate(timeout=120)
        assert agent.returncode == 0, errors
    names = {item.path.name for item in repo.worktrees()}
    assert names == {root.name, *(f"T{number:03}" for number in range(1, 9))}
    for number in range(1, 9):
        assert f"{number}.txt" in repo.paths_at(f"feat/T{number:03}-x")


def test_threads_that_are_the_first_to_read_in_a_process(repo: Repository) -> None:
    code = """
import sys, time
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
from oodatcaa.vcs import Repository
repo = Repository.discover(Path(sys.argv[1]))
sha = repo.resolve("main")
def look(number):
    # Some of them come while another one is importing GitPython.
    time.sleep(number / 200)
    return repo.file_at(sha, "README.md")
with ThreadPoolExecutor(40) as pool:
    assert all(pool.map(look, range(40)))
"""
    reading = python(code, str(repo.root))
    assert reading.communicate(timeout=60)[1] == ""
    assert reading.returncode == 0


def test_threads_share_one_repository(repo: Repository) -> None:
    def look(number: int) -> bool:
        with repo.check_worktree("main", f"t{number}") as path:
            return repo.file_at("main", "README.md") == (path / "README.md").read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(look, range(4)))
    assert checks(repo) == []


def test_worktrees_are_made_one_at_a_time(
    repo: Repository, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = python(HOLDING, str(repo.work_dir / "locks" / "worktrees.lock"))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    monkeypatch.setattr("oodatcaa.vcs.worktrees.LOCK_PATIENCE_S", 0.3)
    with pytest.raises(OodatcaaError) as caught:
        repo.story_worktree("T001", BRANCH, "main")
    assert caught.value.code == "git.worktrees_busy"
    assert str(holder.pid) in caught.value.message
    assert str(root) in caught.value.message
    holder.kill()
    holder.wait()
    monkeypatch.setattr("oodatcaa.vcs.worktrees.LOCK_PATIENCE_S", 60)
    assert repo.story_worktree("T001", BRANCH, "main").exists()


HOLDING = """
import sys, time
from pathlib import Path
from oodatcaa.kit.locks import FileLock
path = Path(sys.argv[1])
path.parent.mkdir(parents=True)
with FileLock(path).held():
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_check_worktree_is_brought_back_to_its_commit(repo: Repository, git: Git) -> None:
    sha = repo.resolve("main")
    with repo.check_worktree(sha, "x") as check:
        assert repo.restore(check, sha) == ()
        (check / "kept.txt").write_text("made by the setup")
        (check / "junk ü.txt").write_text("x")
        (check / "cache.log").write_text("ignored")
        (check / "README.md").unlink()
        git(check, "switch", "-q", "-c", "sneaky")
        (check / "more.txt").write_text("committed by a gate")
        git(check, "add", "more.txt")
        git(check, "commit", "-qm", "sneaky")
        git(check, "init", "-q", "nested")
        (check / "nested" / "x").write_text("x")
        changed = repo.restore(check, sha, keep=["kept.txt"])
        assert changed == ("README.md", "junk ü.txt", "more.txt", "nested/")
        assert repo.head(check).sha == sha
        assert repo.head(check).kind == "detached"
        assert sorted(path.name for path in check.iterdir()) == [
            ".git", ".gitignore", "README.md", "cache.log", "kept.txt"
        ]  # fmt: skip


def test_a_change_in_the_second_of_the_checkout_is_undone(repo: Repository, git: Git) -> None:
    """Git tells files apart by size and second; it looks closer when the index is no younger."""
    sha = repo.resolve("main")
    with repo.check_worktree(sha, "x") as check:
        readme = check / "README.md"
        before = readme.read_bytes()
        for _ in range(5):
            time.sleep(1.01 - time.time() % 1)  # the beginning of a second
            readme.unlink()
            git(check, "checkout", "--force", "README.md")
            index = repo.index_of(check)
            with readme.open("r+b") as file:
                file.write(b"x" * len(before))
            if int(readme.stat().st_ctime) == int((git_folder(check) / "index").stat().st_mtime):
                break
        else:
            pytest.skip("this machine is too busy to do that within a second")
        time.sleep(1.01 - time.time() % 1)
        assert repo.restore(check, sha, index=index) == ("README.md",)
        assert readme.read_bytes() == before


def test_a_worktree_that_lost_its_git_file_never_reaches_the_main_checkout(
    repo: Repository, root: Path
) -> None:
    (root / "README.md").write_text("unfinished\n")
    story = repo.story_worktree("T001", BRANCH, "main")
    with repo.check_worktree("main", "x") as check:
        for place in (story, check):
            (place / ".git").unlink()
            with pytest.raises(OodatcaaError, match=r"git\.failed"):
                repo.restore(place, "main")
            (place / "README.md").write_text("changed")
            with pytest.raises(OodatcaaError):
                repo.commit_files(place, ["README.md"], "lost")
    assert not check.exists()
    assert (root / "README.md").read_text() == "unfinished\n"
    assert repo.head().kind == "branch"
    assert repo.resolve("main") == repo.resolve(BRANCH)
    with pytest.raises(OodatcaaError, match=r"git\.not_ours"):
        repo.restore(root, "main")
