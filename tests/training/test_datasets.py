"""Data: pairs from the standard library, a user's own files, and the store that holds both."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.errors import OodatcaaError, StateError
from oodatcaa.training.data_checks import check_folder
from oodatcaa.training.datasets import (
    DataStore,
    build_stdlib,
    find_problems,
    load_user_data,
    read_card,
    token_lengths,
    write_probe_data,
)
from oodatcaa.training.examples import Example
from oodatcaa.training.packing import packed_order, positions_of
from oodatcaa.training.tokens import SPLITS, Lengths, known_lengths, known_of, read_examples
from tiny_model import make_tiny_data, make_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-model")


def library(root: Path, files: int = 12, functions: int = 6) -> Path:
    """A small library: every function documented, every body different."""
    for number in range(files):
        lines = []
        for i in range(functions):
            lines.append(
                f'def f{number}_{i}(value, other):\n    """Combine value and other, way {i}."""\n'
                f"    total = value * {number} + other * {i}\n    return total + {number * i}\n"
            )
        path = root / ("package" if number % 2 else ".") / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    return root


def contents(path: str | Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(path).iterdir())}


def pairs(path: str | Path, split: str) -> list[tuple[str, str]]:
    return [
        (e["messages"][0]["content"], e["messages"][1]["content"])
        for e in read_examples(Path(path) / f"{split}.jsonl")
    ]


@pytest.mark.slow
def test_the_real_library_gives_enough_and_every_answer_parses(tmp_path: Path, tiny: Path) -> None:
    record = build_stdlib(
        tmp_path, seed=1, max_train=200, max_valid=30, max_test=30, model_path=tiny,
        max_tokens=10_000,
    )  # fmt: skip
    assert {name: s.examples for name, s in record.splits.items()} == {
        "train": 200, "valid": 30, "test": 30,
    }  # fmt: skip
    assert record.licence == "PSF-2.0"
    assert "Python" in record.source
    for split in SPLITS:
        for prompt, answer in pairs(record.path, split):
            (function,) = ast.parse(answer).body
            assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            assert f" {function.name}(" in prompt
            assert ast.get_docstring(function) is None
            assert len(answer) <= 800
    assert find_problems(Path(record.path)) == ()
    assert (record.longest or 0) > 50
    shorter = build_stdlib(
        tmp_path, seed=1, max_train=200, max_valid=30, max_test=30, model_path=tiny, max_tokens=200
    )
    assert (shorter.longest or 999) <= 200
    assert shorter.dropped["more than 200 tokens"] > 0


def test_no_file_in_two_splits_and_no_body_twice(tmp_path: Path, tiny: Path) -> None:
    root = library(tmp_path / "lib")
    copied = root / "again.py"
    copied.write_text((root / "module2.py").read_text().replace("def f2", "def g2"))
    record = build_stdlib(
        tmp_path / "out", source_root=root, max_train=30, max_valid=12, max_test=12,
        model_path=tiny,
    )  # fmt: skip
    files: dict[str, set[str]] = {}
    answers: list[str] = []
    for split in SPLITS:
        found = pairs(record.path, split)
        names = [prompt.split("def ")[1].split("(")[0] for prompt, _ in found]
        files[split] = {name.partition("_")[0][1:] for name in names}
        answers += [answer.split(":", 1)[1] for _, answer in found]
        assert record.splits[split].files == len(files[split])
    assert not files["train"] & files["test"]
    assert not files["train"] & files["valid"]
    assert not files["valid"] & files["test"]
    assert len(set(answers)) == len(answers)
    assert record.dropped["the same body again"] == 6


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path, tiny: Path) -> None:
    root = library(tmp_path / "lib")
    code = (
        "import sys; from pathlib import Path; from oodatcaa.training.datasets import build_stdlib;"
        "print(build_stdlib(Path(sys.argv[1]), source_root=Path(sys.argv[2]), "
        "model_path=Path(sys.argv[3]), seed=3).sha256)"
    )
    hashes = set()
    for run, hash_seed in (("a", "1"), ("b", "2")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / run), str(root), str(tiny)],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        hashes.add(done.stdout.strip())
    assert len(hashes) == 1
    other = build_stdlib(tmp_path / "c", source_root=root, seed=4, model_path=tiny)
    assert other.sha256 not in hashes


def test_a_data_set_is_named_by_its_content_read_only_and_described(
    tmp_path: Path, tiny: Path
) -> None:
    record = DataStore(tmp_path / "out").build(
        str(make_tiny_data(tmp_path / "in")), model_path=str(tiny)
    )
    folder = Path(record.path)
    assert folder.name == record.sha256[:16]
    assert read_card(folder) == record
    card = (folder / "DATA_CARD.md").read_text()
    assert record.sha256 in card
    assert all(path.stat().st_mode & 0o222 == 0 for path in folder.iterdir())
    before = contents(folder)
    assert DataStore(tmp_path / "out").build(str(tmp_path / "in"), model_path=str(tiny)) == record
    assert contents(folder) == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == [folder.name]


def test_changed_bytes_in_the_store_are_found(tmp_path: Path, tiny: Path) -> None:
    source = make_tiny_data(tmp_path / "in")
    record = load_user_data(source, tmp_path / "out", model_path=tiny)
    changed = Path(record.path) / "test.jsonl"
    changed.chmod(0o644)
    changed.write_text(changed.read_text().replace("x", "y"))
    assert find_problems(Path(record.path)) == (
        "test.jsonl: changed since the data card was written",
    )
    with pytest.raises(StateError, match="not what its folder's name says"):
        load_user_data(source, tmp_path / "out", model_path=tiny)


GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b%d"}]}'


def chat(*messages: Any, **more: Any) -> str:
    return json.dumps({"messages": list(messages), **more})


def said(role: str, content: Any = "x") -> dict[str, Any]:
    return {"role": role, "content": content}


def write(folder: Path, train: list[str | bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    raw = [line.encode() if isinstance(line, str) else line for line in train]
    (folder / "train.jsonl").write_bytes(b"\n".join(raw) + b"\n")
    (folder / "valid.jsonl").write_text(GOOD % 1001 + "\n")
    (folder / "test.jsonl").write_text(GOOD % 1002 + "\n")
    return folder


BAD: list[tuple[str | bytes, str]] = [
    ('{"messages": [', "not JSON"),
    ("[1, 2]", "a JSON array, not an object"),
    ("", "empty line"),
    (b'{"text": "\xff"}', "not UTF-8 (byte 11)"),
    ('{"question": "a"}', "needs messages, prompt and completion, or text"),
    (chat(said("user"), said("assistant"), note=1), "unknown key 'note'"),
    (chat(said("user")), "no assistant turn"),
    (chat(said("assistant"), said("user")), "the last turn is user's"),
    (chat(said("user"), said("assistant", "  ")), "nothing to learn"),
    (chat(said("user"), said("assistant", 5)), "messages[1]: content is a JSON number"),
    (chat(said("robot"), said("assistant")), "messages[0]: role is 'robot'"),
    (chat("hello"), "messages[0]: a JSON string, not an object"),
    (chat(), "messages is an empty list"),
    ('{"messages": "x"}', "messages is a JSON string"),
    ('{"prompt": "a", "completion": ""}', "completion is empty"),
    ('{"prompt": 1, "completion": "b"}', "prompt is a JSON number"),
    ('{"text": " "}', "text is empty"),
    ("[" * 100_000, "nested too deeply"),
]


def test_every_bad_line_is_named_with_its_place_all_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", [GOOD % 1, *(line for line, _ in BAD), GOOD % 2])
    with pytest.raises(OodatcaaError) as caught:
        load_user_data(folder, tmp_path / "out")
    for number, (_, reason) in enumerate(BAD, start=2):
        mine = [d for d in caught.value.details if d.startswith(f"train.jsonl:{number}: ")]
        assert any(reason in detail for detail in mine), (number, reason, mine)
    lines = {detail.split(":")[1] for detail in caught.value.details}
    assert not {"1", str(len(BAD) + 2)} & lines
    assert not (tmp_path / "out").exists()


def test_bom_missing_and_empty_files_are_named_together(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + (GOOD % 1).encode() + b"\n")
    (folder / "valid.jsonl").write_text("")
    problems = check_folder(folder)
    assert len(problems) == 3
    assert "byte order mark" in problems[0]
    assert problems[1:] == ("valid.jsonl: empty", "test.jsonl: missing")
    assert check_folder(tmp_path / "absent") == (f"{tmp_path / 'absent'}: no such folder",)


def test_an_example_in_two_splits_is_leakage_also_when_spaced_differently(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", [GOOD % 1, GOOD % 1002, GOOD % 1001])
    (folder / "test.jsonl").write_text((GOOD % 1002).replace(": ", ":   ") + "\n")
    assert check_folder(folder) == (
        "valid.jsonl:1: the same example is in train.jsonl:3 (leakage between splits)",
        "test.jsonl:1: the same example is in train.jsonl:2 (leakage between splits)",
    )


def test_one_file_has_one_format(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", [GOOD % 1, '{"text": "abc"}'])
    (problem,) = check_folder(folder)
    assert problem.startswith("train.jsonl:2: text line in a chat file")


def test_all_three_formats_tools_and_utf8_are_accepted_and_counted(
    tmp_path: Path, tiny: Path
) -> None:
    formats: list[Callable[[int], str]] = [
        lambda i: chat(said("system"), said("user", f"ü{i}"), said("assistant"), tools=[]),
        lambda i: json.dumps({"prompt": f"a{i}", "completion": "b"}),
        lambda i: json.dumps({"text": f"plain {i}"}),
    ]
    for number, make in enumerate(formats):
        folder = tmp_path / str(number)
        folder.mkdir()
        for i, split in enumerate(SPLITS):
            (folder / f"{split}.jsonl").write_text(make(i) + "\n" + make(i + 10) + "\n")
        record = load_user_data(folder, tmp_path / "out", model_path=tiny)
        assert record.splits["train"].examples == 2
        assert (record.longest or 0) > 0


@given(lines=st.lists(st.binary(max_size=40), max_size=6))
def test_no_bytes_make_the_checks_crash(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = write(tmp_path_factory.mktemp("fuzz") / "in", list(lines))
    assert check_folder(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "role", "content", "prompt", "completion", "text", "tools"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(value=JSON)
def test_no_json_makes_the_checks_crash(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    check_folder(write(tmp_path_factory.mktemp("fuzz") / "in", [json.dumps(value)]))


COUNT = """
import json, sys
from mlx_lm.utils import load_tokenizer
from pathlib import Path
tokenizer = load_tokenizer(Path(sys.argv[1]))
out = []
for line in open(sys.argv[2], encoding="utf-8"):
    messages = json.loads(line)["messages"]
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    prompt = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=False)
    out.append([len(whole), len(whole) - len(prompt)])
print(json.dumps(out))
"""


def test_lengths_are_those_the_trainer_will_see(tmp_path: Path, tiny: Path) -> None:
    data = make_tiny_data(tmp_path / "in")
    # transformers overrules the tiny tokenizer's splitting rules when the model type is qwen2.
    tiny = Path(shutil.copytree(tiny, tmp_path / "as-llama"))
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(tiny), str(data / "train.jsonl")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = json.loads(done.stdout.splitlines()[-1])
    stats = token_lengths(data, tiny)["train"]
    totals = [total for total, _ in expected]
    assert (stats.tokens_min, stats.tokens_max) == (min(totals), max(totals))
    assert stats.tokens_mean == round(sum(totals) / len(totals), 1)
    targets = sorted((target for _, target in expected), reverse=True)
    known = known_lengths(data, tiny)
    assert known.batch_targets(1) == max(targets[0], *(known.targets[:1]))
    assert known.batch_targets(3) == sum(known.targets[:3])
    assert set(targets) <= set(known.targets)


@given(
    st.lists(st.tuples(st.integers(2, 150), st.integers(1, 149)), min_size=1, max_size=30),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_no_packed_batch_has_more_targets_than_the_bound(
    shapes: list[tuple[int, int]], rows: int, seed: int
) -> None:
    lengths = [Lengths(total, min(target, total - 1)) for total, target in shapes]
    whole = [Example((0,) * one.total, one.total - one.target) for one in lengths]
    data = [Example(e.tokens[:96], e.offset) for e in whole if e.offset < 96]
    assume(data)
    known = known_of(lengths)
    params = QLoRA(packing=True, max_seq_length=96, batch_size=rows)
    bound = known.most_targets(params)
    assert bound is not None
    epoch = packed_order([positions_of(e) for e in data], 96, rows, seed, 0)
    most = max(sum(data[i].targets for row in batch for i in row) for batch in epoch)
    assert most <= bound <= rows * 96
    assert known.most_targets(params.evolve(mask_prompt=False)) is None


def test_probe_data_is_at_least_as_long_as_asked(tmp_path: Path, tiny: Path) -> None:
    folder = write_probe_data(tmp_path / "probe", examples=3, tokens=50)
    assert check_folder(folder) == ()
    stats = token_lengths(folder, tiny)
    assert all((s.tokens_min or 0) >= 50 and s.examples == 3 for s in stats.values())
    assert known_lengths(tmp_path / "absent", tiny).longest is None
