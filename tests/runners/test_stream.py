"""What agents print, read by their presets: the shapes that their documentation shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oodatcaa.domain.agents import CommandSpec, Ending
from oodatcaa.runners.presets import command_spec, presets
from oodatcaa.runners.stream import Lines, Reader

CLAUDE_USAGE = {"input_tokens": 3, "cache_read_input_tokens": 100, "output_tokens": 7}
CLAUDE_BLOCK = {
    "type": "assistant",
    "message": {"id": "msg_1", "content": [{"type": "text"}], "usage": CLAUDE_USAGE},
    "session_id": "s-1",
}
CLAUDE_RESULT = {
    "type": "result",
    "subtype": "success",
    "is_error": False,
    "result": "Done.",
    "session_id": "s-1",
    "total_cost_usd": 0.25,
    "usage": {**CLAUDE_USAGE, "cache_creation_input_tokens": 50, "output_tokens": 9},
    "permission_denials": [],
}
CODEX = [
    {"type": "thread.started", "thread_id": "th-1"},
    {"type": "turn.started"},
    {"type": "item.completed", "item": {"id": "i", "type": "agent_message", "text": "Done."}},
    {
        "type": "turn.completed",
        "usage": {"input_tokens": 900, "cached_input_tokens": 800, "output_tokens": 12},
    },
]
OPENCODE_STEP = {"input": 21, "output": 4, "reasoning": 1, "cache": {"read": 10, "write": 0}}
OPENCODE = [
    {"type": "step_start", "sessionID": "ses_1", "part": {"type": "step-start"}},
    {
        "type": "step_finish",
        "sessionID": "ses_1",
        "part": {"reason": "tool-calls", "cost": 0.01, "tokens": OPENCODE_STEP},
    },
    {"type": "text", "sessionID": "ses_1", "part": {"type": "text", "text": "Done."}},
    {
        "type": "step_finish",
        "sessionID": "ses_1",
        "part": {"reason": "stop", "cost": 0.02, "tokens": OPENCODE_STEP},
    },
]
GEMINI = [
    {"type": "init", "session_id": "g-1", "model": "m"},
    {"type": "message", "role": "user", "content": "Do it"},
    {"type": "message", "role": "assistant", "content": "Do", "delta": True},
    {"type": "message", "role": "assistant", "content": "ne.", "delta": True},
    {
        "type": "result",
        "status": "success",
        "stats": {"total_tokens": 30, "input_tokens": 20, "output_tokens": 10},
    },
]


def read(preset: str, *events: Any, code: int = 0) -> tuple[Reader, Ending]:
    reader = Reader(presets()[preset])
    for event in events:
        reader.add(event if isinstance(event, str) else json.dumps(event))
    return reader, reader.ending(code)[0]


def test_there_are_five_presets() -> None:
    assert set(presets()) == {"claude", "codex", "opencode", "gemini", "aider"}


def test_claude() -> None:
    reader, ending = read("claude", CLAUDE_BLOCK, CLAUDE_BLOCK)
    assert ending is Ending.ERROR
    assert reader.usage.tokens == 110, "two blocks of one message are one message"
    reader.add(json.dumps(CLAUDE_RESULT))
    assert reader.ending(0)[0] is Ending.FINISHED
    assert (reader.session, reader.text) == ("s-1", "Done.")
    assert (reader.usage.tokens, reader.usage.cost_usd) == (162, 0.25)


def test_claude_an_api_error_that_says_success() -> None:
    event = {**CLAUDE_RESULT, "is_error": True, "result": "API Error: 529 overloaded"}
    reader, ending = read("claude", event)
    assert ending is Ending.ERROR
    assert "529" in reader.ending(0)[1]


def test_claude_denials_look_like_success() -> None:
    event = {**CLAUDE_RESULT, "permission_denials": [{"tool_name": "Bash"}]}
    assert read("claude", event)[1] is Ending.DENIED


@pytest.mark.parametrize("subtype", ["error_max_turns", "error_during_execution"])
def test_claude_other_ends(subtype: str) -> None:
    event = {**CLAUDE_RESULT, "subtype": subtype, "errors": ["No conversation found"]}
    assert read("claude", event)[1] is Ending.ERROR


def test_codex() -> None:
    reader, ending = read("codex", *CODEX)
    assert ending is Ending.FINISHED
    assert (reader.session, reader.text) == ("th-1", "Done.")
    assert (reader.usage.tokens, reader.usage.cost_usd) == (912, None)


def test_codex_a_failed_turn_that_exits_with_zero() -> None:
    failed = {"type": "turn.failed", "error": {"message": "stream ended unexpectedly"}}
    assert read("codex", *CODEX[:2], failed)[1] is Ending.ERROR
    assert (
        read("codex", *CODEX[:2], {"type": "error", "message": "Reconnecting... 1/5"}, *CODEX[2:])[
            1
        ]
        is Ending.FINISHED
    )


def test_opencode() -> None:
    reader, ending = read("opencode", *OPENCODE)
    assert ending is Ending.FINISHED
    assert (reader.session, reader.text) == ("ses_1", "Done.")
    assert reader.usage.tokens == 72
    assert reader.usage.cost_usd == pytest.approx(0.03)
    assert read("opencode", *OPENCODE[:3])[1] is Ending.ERROR
    broken = {"type": "error", "error": {"name": "APIError", "data": {"message": "429"}}}
    assert read("opencode", *OPENCODE[:3], broken)[1] is Ending.ERROR


def test_gemini() -> None:
    reader, ending = read("gemini", *GEMINI)
    assert ending is Ending.FINISHED
    assert (reader.session, reader.text, reader.usage.tokens) == ("g-1", "Done.", 30)
    failed = {"type": "result", "status": "error", "error": {"message": "quota"}}
    assert read("gemini", *GEMINI[:2], failed)[1] is Ending.ERROR


def test_aider_has_no_events_and_no_usage() -> None:
    reader, ending = read("aider", "Applied edit to a.py", "Tokens: 2.1k sent")
    assert ending is Ending.FINISHED
    assert reader.usage.tokens is None
    assert read("aider", "litellm.RateLimitError: slow down")[1] is Ending.ERROR


@pytest.mark.parametrize("name", ["--dangerously-skip-permissions", "-c", "a b", "x" * 400, ""])
def test_a_session_is_no_option_of_the_next_command(name: str) -> None:
    reader = Reader(presets()["claude"])
    for session in ("0192-abc", name):
        reader.add(json.dumps({"type": "system", "subtype": "init", "session_id": session}))
    assert reader.session == "0192-abc"


def test_noise_between_events_is_passed_over() -> None:
    noise = ["warning: something", "{not json", "[1, 2]", "", "{" * 5000]
    assert read("codex", *noise, *CODEX, *noise)[1] is Ending.FINISHED


@settings(max_examples=40)
@given(st.text(max_size=200), st.integers(1, 50))
def test_any_line_and_any_cut_is_survived(text: str, size: int) -> None:
    reader, lines = Reader(presets()["claude"]), Lines()
    data = text.encode() + b"\n" + json.dumps(CLAUDE_RESULT).encode() + b"\n"
    for start in range(0, len(data), size):
        for line in lines.add(data[start : start + size]):
            reader.add(line)
    assert reader.ending(0)[0] is Ending.FINISHED


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "type",
                        "item",
                        "usage",
                        "part",
                        "message",
                        "id",
                        "tokens",
                        "input_tokens",
                        "error",
                        "result",
                    ]
                ),
                x,
            )
        ),
        max_leaves=12,
    )
)
def test_events_of_any_shape_are_survived(value: Any) -> None:
    for name in presets():
        read(name, json.dumps({"type": "result", "usage": value, "message": value, "part": value}))


def test_a_line_beyond_the_limit_is_dropped_and_counted() -> None:
    lines = Lines(limit=10)
    assert lines.add(b"short\n" + b"x" * 50) == ["short"]
    assert lines.add(b"x" * 50 + b"\nnext\n") == ["next"]
    assert lines.skipped == 1


def test_a_preset_can_be_changed_key_by_key() -> None:
    spec, problems = command_spec("codex", {"prices": {"input": 1, "output": 2}})
    assert problems == []
    assert isinstance(spec, CommandSpec)
    assert spec.reports_cost
    assert spec.argv == presets()["codex"].argv


def test_every_problem_of_a_spec_is_told() -> None:
    _, problems = command_spec("", {"argv": [], "stream": {"format": "xml"}, "typo": 1})
    assert [line.split(":")[0] for line in problems] == ["argv", "stream.format", "typo"]
    assert command_spec("claud", {})[1] == [
        "preset: unknown 'claud'; known are aider, claude, codex, gemini, opencode"
    ]
    _, problems = command_spec("", {"argv": ["agent"]})
    assert "needs {prompt}" in problems[0]
