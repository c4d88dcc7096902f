"""The command runner against a real child process that misbehaves in every way we know of."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent_making import calls, order, script, spec
from oodatcaa.domain.agents import Ending, Turn, Usage
from oodatcaa.kit.memory_bound import MemoryBound
from oodatcaa.kit.process import Child
from oodatcaa.runners.command import ARGUMENT_BYTES, CommandRunner
from oodatcaa.runners.ports import Watch

DONE = {"done": "finished it"}


def run(tmp_path: Path, *turn: dict[str, Any], watch: Watch | None = None, **more: Any) -> Turn:
    path = script(tmp_path / "script.json", list(turn))
    changes: dict[str, Any] = {
        key: more.pop(key) for key in ("prompt_mode", "stream", "prices") if key in more
    }
    if "prompt_mode" in changes:
        changes["prompt"] = changes.pop("prompt_mode")
        changes["argv"] = [
            *spec(path).argv[:3],
            *(["{prompt_file}"] * (changes["prompt"] == "file")),
        ]
        changes["resume_argv"] = []
    runner = CommandRunner(spec(path, **changes))
    return runner.run(order(tmp_path, **more), watch or Watch())


def test_a_good_call_says_what_it_used(tmp_path: Path) -> None:
    turn = run(tmp_path, {"usage": [100, 20, 0.5]}, {"usage": [10, 5, 0.25]}, DONE)
    assert (turn.ending, turn.exit_code, turn.text) == (Ending.FINISHED, 0, "finished it")
    assert turn.session == "session-1"
    assert (turn.usage.input_tokens, turn.usage.output_tokens, turn.usage.cost_usd) == (
        110,
        25,
        0.75,
    )
    assert turn.usage.calls == 1
    assert (tmp_path / "call/prompt.md").read_text(encoding="utf-8") == "# Do it"
    (call,) = calls(tmp_path / "script.json")
    assert call["argv"] == ["# Do it"]
    assert call["stdin"] == ""
    assert call["config_dir"] == str(tmp_path / "config")
    assert Path(call["config_dir"]).is_dir()


def test_unknown_usage_is_unknown_and_not_nothing(tmp_path: Path) -> None:
    usage = run(tmp_path, DONE).usage
    assert (usage.tokens, usage.cost_usd) == (None, None)
    assert (usage.unknown_tokens, usage.unknown_cost) == (1, 1)
    assert "tokens unknown, cost unknown" in usage.describe()
    both = (usage + Usage(input_tokens=5).as_call(60)).describe()
    assert "2 calls, 1.0 min, 5 tokens (1 call unknown), cost unknown" in both


def test_prices_make_a_cost_of_tokens(tmp_path: Path) -> None:
    turn = run(
        tmp_path, {"usage": [1_000_000, 500_000]}, DONE, prices={"input": 2.0, "output": 10.0}
    )
    assert turn.usage.cost_usd == pytest.approx(7.0)


@pytest.mark.parametrize("mode", ["stdin", "file"])
def test_the_prompt_can_come_another_way(tmp_path: Path, mode: str) -> None:
    assert run(tmp_path, DONE, prompt_mode=mode).ok
    (call,) = calls(tmp_path / "script.json")
    if mode == "stdin":
        assert call["stdin"] == "# Do it"
    else:
        assert Path(call["argv"][0]).read_text(encoding="utf-8") == "# Do it"


def test_a_prompt_too_long_for_a_command_line_goes_through_a_file(tmp_path: Path) -> None:
    long = "x" * (ARGUMENT_BYTES + 1)
    assert run(tmp_path, DONE, prompt=long).ok
    (call,) = calls(tmp_path / "script.json")
    assert str(tmp_path / "call/prompt.md") in call["argv"][0]
    assert (tmp_path / "call/prompt.md").read_text(encoding="utf-8") == long


def test_a_session_is_gone_on_with(tmp_path: Path) -> None:
    assert run(tmp_path, DONE, session="s-7").ok
    assert calls(tmp_path / "script.json")[0]["argv"][:2] == ["--resume", "s-7"]


def test_an_error_event_counts_although_the_exit_code_is_zero(tmp_path: Path) -> None:
    turn = run(tmp_path, {"error": "overloaded"}, {"exit": 0})
    assert turn.ending is Ending.ERROR
    assert "overloaded" in turn.detail


def test_an_error_that_the_agent_itself_got_over_is_none(tmp_path: Path) -> None:
    assert run(tmp_path, {"error": "reconnecting 1/5"}, DONE).ok
    assert run(tmp_path, DONE, {"error": "and then it broke"}).ending is Ending.ERROR


def test_an_end_without_the_event_of_success_is_no_success(tmp_path: Path) -> None:
    turn = run(tmp_path, {"say": "all tests pass"})
    assert turn.ending is Ending.ERROR
    assert "without an event of success" in turn.detail


def test_success_with_another_exit_code_is_an_error(tmp_path: Path) -> None:
    assert "exit code 3" in run(tmp_path, DONE, {"exit": 3}).detail


def test_refused_permissions_are_no_success(tmp_path: Path) -> None:
    turn = run(tmp_path, {"denied": [{"tool": "Bash"}]})
    assert turn.ending is Ending.DENIED
    assert turn.denied == ('{"tool": "Bash"}',)


def test_a_dead_agent_is_an_error(tmp_path: Path) -> None:
    turn = run(tmp_path, {"usage": [7, 1]}, {"die": signal.SIGKILL})
    assert turn.ending is Ending.ERROR
    assert turn.usage.tokens == 8


def test_a_missing_program_is_told_apart(tmp_path: Path) -> None:
    path = script(tmp_path / "script.json", [DONE])
    runner = CommandRunner(spec(path, argv=["no-such-agent", "{prompt}"], resume_argv=[]))
    assert runner.run(order(tmp_path), Watch()).ending is Ending.MISSING


def test_silence_ends_an_agent_that_is_not_late_yet(tmp_path: Path) -> None:
    turn = run(tmp_path, {"silent": 60}, silence_seconds=0.6)
    assert turn.ending is Ending.SILENT


def test_a_talking_agent_is_ended_by_the_clock(tmp_path: Path) -> None:
    turn = run(tmp_path, {"sleep": 60}, seconds=1.0, silence_seconds=0.7)
    assert turn.ending is Ending.TIMEOUT


def test_nothing_of_its_group_survives_even_if_it_ignores_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oodatcaa.runners.command.GRACE_SECONDS", 0.5)
    pid_file = tmp_path / "grandchild"
    turn = run(
        tmp_path,
        {"ignore_term": True},
        {"grandchild": str(pid_file)},
        {"silent": 60},
        silence_seconds=1.0,
    )
    assert turn.ending is Ending.SILENT
    for pid in (int(pid_file.read_text()), calls(tmp_path / "script.json")[0]["pid"]):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


def test_a_grandchild_that_is_left_behind_does_not_hold_us_up(tmp_path: Path) -> None:
    pid_file = tmp_path / "grandchild"
    assert run(tmp_path, {"grandchild": str(pid_file)}, DONE).ok
    pid = int(pid_file.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


def test_done_and_then_hanging_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oodatcaa.runners.command.LINGER_SECONDS", 0.5)
    assert run(tmp_path, DONE, {"linger": 60}).ok


def test_a_flood_is_bounded_and_what_comes_after_it_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oodatcaa.runners.command.LOG_BYTES", 2_000_000)
    monkeypatch.setattr("oodatcaa.runners.stream.LINE_LIMIT", 1_000_000)
    turn = run(tmp_path, {"flood": 30_000_000}, {"usage": [1, 2]}, DONE)
    assert turn.ok
    assert turn.usage.tokens == 3
    assert (tmp_path / "call/events.log").stat().st_size < 3_000_000


def test_a_flood_of_errors_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oodatcaa.runners.command.LOG_BYTES", 2_000_000)
    write = f"{sys.executable} -c \"print('x' * 20_000_000)\" 1>&2"
    assert run(tmp_path, {"run": write}, DONE).ok
    kept = (tmp_path / "call/stderr.log").read_bytes()
    assert len(kept) < 3_000_000
    assert b"bytes left out" in kept


@pytest.mark.parametrize("odd", [-5, 1e300, float("nan"), float("inf"), "many", [1], True, 10**400])
def test_usage_that_nobody_can_have_used_is_unknown(tmp_path: Path, odd: object) -> None:
    turn = run(tmp_path, {"usage": [odd, odd, odd]}, DONE)
    assert turn.ok
    assert (turn.usage.tokens, turn.usage.cost_usd) == (None, None)
    assert turn.usage.unknown_tokens == 1


def test_a_budget_ends_the_call_while_it_runs(tmp_path: Path) -> None:
    def over(used: Usage) -> str:
        return "100 tokens" if (used.tokens or 0) >= 100 else ""

    turn = run(
        tmp_path,
        {"usage": [60, 0]},
        {"usage": [60, 0]},
        {"sleep": 60},
        DONE,
        watch=Watch(over_budget=over),
    )
    assert turn.ending is Ending.BUDGET
    assert turn.usage.tokens == 120


def test_a_stop_ends_the_call(tmp_path: Path) -> None:
    asked = iter([False, False, False])
    watch = Watch(should_stop=lambda: next(asked, True))
    assert run(tmp_path, {"sleep": 60}, watch=watch).ending is Ending.STOPPED


def test_text_agents_are_judged_by_their_exit_code(tmp_path: Path) -> None:
    text = {"format": "text"}
    assert run(tmp_path, {"say": "hello"}, stream=text).ok
    assert run(tmp_path, {"exit": 2}, stream=text).ending is Ending.ERROR


def test_the_agent_does_not_learn_of_what_is_unset(tmp_path: Path) -> None:
    os.environ["SCRIPTED_SECRET"] = "1"
    path = script(
        tmp_path / "script.json", [{"run": 'test -z "$SCRIPTED_SECRET" && touch gone'}, DONE]
    )
    CommandRunner(spec(path, unset=["SCRIPTED_SECRET"])).run(order(tmp_path), Watch())
    del os.environ["SCRIPTED_SECRET"]
    assert (tmp_path / "gone").exists()


def test_a_tree_that_wants_more_memory_than_it_may_is_ended_and_named(tmp_path: Path) -> None:
    turn = run(tmp_path, {"eat": 600_000_000}, DONE, memory_bytes=200_000_000)
    assert turn.ending is Ending.MEMORY, turn.detail
    assert "its 0.2 GB of memory" in turn.detail


def test_a_failure_within_its_memory_is_an_ordinary_one(tmp_path: Path) -> None:
    turn = run(tmp_path, {"error": "overloaded"}, {"exit": 1}, memory_bytes=4_000_000_000)
    assert turn.ending is Ending.ERROR


def test_where_the_kernel_sets_no_bound_a_look_at_the_tree_does() -> None:
    code = "import time; held = bytearray(400_000_000); print('full', flush=True); time.sleep(60)"
    with MemoryBound(200_000_000) as bound, Child.start([sys.executable, "-c", code]) as child:
        bound.watch(child)
        while not (why := bound.over()):
            assert child.wait(0.1) is None
    assert "more than its 0.2 GB" in why
    assert bound.ran_out() == why
