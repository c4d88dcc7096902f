"""The ACP runner against a real agent process that speaks the protocol through the library."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from agent_making import ACP_AGENT, calls, order, script
from oodatcaa.domain.agents import AcpSpec, Ending, Turn, Usage
from oodatcaa.runners.acp import AcpRunner
from oodatcaa.runners.ports import Watch

DONE = {"done": "finished it"}


def run(tmp_path: Path, *turn: dict[str, Any], notes: list[str] | None = None, **more: Any) -> Turn:
    path = script(tmp_path / "script.json", list(turn))
    kept: list[str] = [] if notes is None else notes
    watch = more.pop("watch", Watch(note=kept.append))
    argv = more.pop("argv", [sys.executable, str(ACP_AGENT), str(path)])
    spec = AcpSpec.model_validate({"kind": "acp", "argv": argv})
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    values = {"cwd": str(work), "allowed_paths": [str(work)], **more}
    return AcpRunner(spec).run(order(tmp_path, **values), watch)


def test_a_turn_with_its_answer_session_and_usage(tmp_path: Path) -> None:
    turn = run(tmp_path, {"say": "I "}, {"usage": [100, 20, 0.5]}, DONE)
    assert (turn.ending, turn.text, turn.session) == (Ending.FINISHED, "I finished it", "acp-1")
    assert (turn.usage.tokens, turn.usage.cost_usd) == (120, 0.5)
    made, told = calls(tmp_path / "script.json")
    assert made == {"new": str(tmp_path / "work")}
    assert (told["prompt"], told["cwd"]) == ("# Do it", str(tmp_path / "work"))


def test_a_session_is_loaded_and_its_history_is_not_the_answer(tmp_path: Path) -> None:
    turn = run(tmp_path, DONE, session="acp-0")
    assert (turn.text, turn.session) == ("finished it", "acp-0")
    assert calls(tmp_path / "script.json")[0] == {"loaded": "acp-0"}
    assert turn.usage.tokens is None


def test_permissions_are_answered_by_policy_and_every_one_is_noted(tmp_path: Path) -> None:
    inside, outside = str(tmp_path / "work/a.py"), str(tmp_path / "b.py")
    notes: list[str] = []
    turn = run(
        tmp_path,
        {"ask": "edit", "path": inside, "then": [{"write": inside, "text": "a"}]},
        {"ask": "edit", "path": outside, "then": [{"write": outside, "text": "b"}]},
        {
            "ask": "execute",
            "command": "python -m pytest -q",
            "then": [{"write": "ran", "text": ""}],
        },
        {"ask": "execute", "command": "python -m pytest; rm -rf /", "then": [{"die": 9}]},
        {"ask": "execute", "command": "git push", "then": [{"die": 9}]},
        DONE,
        notes=notes,
        allowed_commands=["python -m pytest*"],
    )
    assert turn.ok
    assert (tmp_path / "work/a.py").exists()
    assert (tmp_path / "work/ran").exists()
    assert not (tmp_path / "b.py").exists()
    assert [line.split(":")[0] for line in notes] == [
        "allowed",
        "refused",
        "allowed",
        "refused",
        "refused",
    ]
    assert len(turn.denied) == 3


def test_files_go_through_us_only_inside_the_worktree(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/link").symlink_to(tmp_path)
    assert run(tmp_path, {"client_write": str(tmp_path / "work/n/a.py"), "text": "x"}, DONE).ok
    assert (tmp_path / "work/n/a.py").read_text(encoding="utf-8") == "x"
    for path in (tmp_path / "secret", tmp_path / "work/link/secret"):
        turn = run(tmp_path, {"client_write": str(path), "text": "x"}, DONE)
        assert turn.ending is Ending.ERROR
        assert turn.denied
    assert not (tmp_path / "secret").exists()
    assert run(tmp_path, {"client_read": "/etc/hostname"}, DONE).ending is Ending.ERROR


def test_a_refusal_a_death_and_a_missing_program(tmp_path: Path) -> None:
    assert "refusal" in run(tmp_path, {"error": "no"}).detail
    assert run(tmp_path, {"die": signal.SIGKILL}).ending is Ending.ERROR
    assert run(tmp_path, DONE, argv=["no-such-agent"]).ending is Ending.MISSING


def test_stray_lines_are_passed_over_and_a_flood_ends_it(tmp_path: Path) -> None:
    stray = {"run": "echo a stray line >&2"}
    assert run(tmp_path, {"print": "a stray line\n"}, stray, DONE).ok
    turn = run(tmp_path, {"flood": 9_000_000}, DONE)
    assert (turn.ending, "lost in what else it prints" in turn.detail) == (Ending.ERROR, True)


def test_who_asks_without_end_is_ended_and_fills_no_log(tmp_path: Path) -> None:
    notes: list[str] = []
    asks = [{"ask": "execute", "command": "x" * 5000, "then": []}] * 1200
    turn = run(tmp_path, *asks, {"silent": 30}, notes=notes)
    assert (turn.ending, "more than 1000" in turn.detail) == (Ending.ERROR, True)
    assert len(notes) == 1000
    assert max(map(len, notes)) < 700
    assert len(turn.denied) == 20


def test_memory_beyond_its_bound_ends_it(tmp_path: Path) -> None:
    turn = run(tmp_path, {"eat": 600_000_000}, DONE, memory_bytes=200_000_000)
    assert turn.ending is Ending.MEMORY, turn.detail


def test_silence_and_budget_end_it(tmp_path: Path) -> None:
    assert run(tmp_path, {"silent": 60}, silence_seconds=1.5).ending is Ending.SILENT

    def over(used: Usage) -> str:
        return "too dear" if (used.cost_usd or 0) > 1 else ""

    turn = run(
        tmp_path, {"usage": [1, 1, 2.0]}, {"silent": 60}, DONE, watch=Watch(over_budget=over)
    )
    assert turn.ending is Ending.BUDGET
    assert turn.usage.cost_usd == 2.0
