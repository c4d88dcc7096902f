"""Everything that is wrong with data is found before a model is loaded, with file and line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oodatcaa.errors import OodatcaaError
from oodatcaa.training import secrets
from oodatcaa.training.data_checks import check_folder
from oodatcaa.training.data_report import examine, histogram
from oodatcaa.training.data_split import deal, split_file
from oodatcaa.training.datasets import DataStore
from oodatcaa.training.tokens import known_lengths, measured
from tiny_model import make_tiny_data, make_tiny_model
from wrong_mask import opens_a_thought, wrong_mask


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def pair(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def append(folder: Path, split: str, *rows: dict[str, Any]) -> None:
    with (folder / f"{split}.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_every_finding_at_once(tmp_path: Path, tiny: Path) -> None:
    folder = make_tiny_data(tmp_path / "data", 4)
    first = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    key = "AKIA" + "QYLPMN5HFIQR7XYA"
    append(
        folder,
        "train",
        first,
        pair("q", "word " * 200),
        pair("word " * 200, "a"),
        pair("my key", f"aws_access_key_id = '{key}'"),
        pair("q", " "),
    )
    append(folder, "valid", first)

    found = examine(folder, model_path=tiny, max_seq_length=96)

    assert not found.fit
    assert found.problems == (
        "train.jsonl:9: the last assistant turn is empty: nothing to learn",
        "valid.jsonl:5: the same example is in train.jsonl:1 (leakage between splits)",
    )
    words = "\n".join(found.warnings)
    assert "train.jsonl:5: the same example as in line 1" in words
    assert "train.jsonl:6: " in words
    assert "are cut off" in words
    assert "train.jsonl:7: the prompt fills all 96 tokens: it will not be trained on" in words
    train = found.splits["train"]
    assert train.examples == 8
    assert train.longest is not None
    assert train.longest > 200
    assert (train.truncated, train.without_target) == (2, 1)
    assert 0 < train.lost_targets < train.lost_tokens
    assert sum(one.examples for one in train.histogram) == train.examples
    assert key not in words
    if secrets.available():
        assert "train.jsonl:8: looks like a secret (AWS Access Key)" in words
    else:
        assert secrets.MISSING in found.not_checked


def test_masking_that_would_cut_at_the_wrong_place_is_a_problem(tmp_path: Path, tiny: Path) -> None:
    folder = make_tiny_data(tmp_path / "data", 2)
    assert examine(folder, model_path=tiny).fit
    model = wrong_mask(tiny, tmp_path / "model")

    found = examine(folder, model_path=model)

    assert len(found.problems) == 3
    assert "train.jsonl:1: the template writes the prompt differently" in found.problems[0]
    assert found.problems[0].endswith("(lines: 2)")
    assert examine(folder, model_path=model, mask_prompt=False).fit


def test_a_thought_that_only_a_prompt_opens_is_no_reason_to_refuse(
    tmp_path: Path, tiny: Path
) -> None:
    folder = make_tiny_data(tmp_path / "data", 2)
    found = examine(folder, model_path=opens_a_thought(tiny, tmp_path / "model"))
    assert found.fit
    assert found == examine(folder, model_path=tiny), "as many target tokens, too"


@pytest.mark.parametrize("kind", [None, "deepseek_v32"])
def test_a_template_that_can_not_be_read_here_is_no_problem_of_the_data(
    tmp_path: Path, tiny: Path, kind: str | None
) -> None:
    folder = make_tiny_data(tmp_path / "data", 4)
    model = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    if kind is None:
        del config["chat_template"]
    else:
        config["chat_template_type"] = kind
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    found = examine(folder, model_path=model)
    assert found.fit
    unread = [text for text in found.not_checked if "no chat template" in text]
    assert [text.partition(".")[0] for text in unread] == ["train", "valid", "test"]
    assert (found.splits["train"].examples, found.splits["train"].tokens) == (4, None)
    store = DataStore(tmp_path / "store")
    record = store.build(str(folder), model_path=str(model))
    assert record.splits["train"].tokens_max is None


def test_a_template_that_marks_the_answer_for_transformers_is_read(
    tmp_path: Path, tiny: Path
) -> None:
    folder = make_tiny_data(tmp_path / "data", 2)
    model = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    marked = template.replace("{{ '<|im_start|>'", "{%- generation -%}\n{{ '<|im_start|>'", 1)
    marked = marked.replace("{% endfor %}", "{%- endgeneration %}{% endfor %}")
    (model / "chat_template.jinja").write_text(marked)
    assert examine(folder, model_path=model) == examine(folder, model_path=tiny)
    (model / "chat_template.jinja").write_text("{% if %}")
    (note,) = [text for text in examine(folder, model_path=model).not_checked if "token" in text]
    assert "template can not be read" in note


def test_a_copy_of_measured_data_is_not_measured_again(tmp_path: Path, tiny: Path) -> None:
    folder = make_tiny_data(tmp_path / "data", 5)
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    examine(folder, model_path=model)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert measured(copy / "train.jsonl", model) is measured(folder / "train.jsonl", model)
    assert known_lengths(copy, model).train is measured(folder / "train.jsonl", model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = "longer than before" + config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    before, after = known_lengths(folder, tiny).longest, known_lengths(folder, model).longest
    assert before is not None
    assert after is not None
    assert after > before


@pytest.mark.skipif(not secrets.available(), reason="detect-secrets is not installed")
def test_a_search_for_secrets_that_ends_early_says_where(tmp_path: Path) -> None:
    folder = make_tiny_data(tmp_path / "data", 4)
    key = "AKIA" + "QYLPMN5HFIQR7XYA"
    append(folder, "train", pair("first key", f"'{key}'"), pair("x" * 500, "y"), pair("q", key))

    def found(scanned: int | None) -> tuple[list[str], list[str]]:
        report = examine(folder, scanned=scanned)
        return (
            [text.partition(": ")[0] for text in report.warnings if "secret" in text],
            [text for text in report.not_checked if "secret" in text],
        )

    assert found(None) == (["train.jsonl:5", "train.jsonl:7"], [])
    early, (note,) = found(500)
    assert early == ["train.jsonl:5"]
    assert "train.jsonl was scanned for secrets up to line 6 only" in note
    assert found(0) == ([], [])


def test_without_a_tokenizer_it_is_said_that_nothing_was_counted(tmp_path: Path) -> None:
    found = examine(make_tiny_data(tmp_path, 3))
    assert found.fit
    assert found.splits["train"].examples == 3
    assert found.splits["train"].tokens is None
    assert any("tokens were not counted" in text for text in found.not_checked)


@given(st.lists(st.integers(1, 5000)), st.integers(32, 2048))
def test_a_histogram_counts_everything_once(totals: list[int], longest: int) -> None:
    bins = histogram(totals, longest)
    assert sum(one.examples for one in bins) == len(totals)
    fitting = sum(one.examples for one in bins if one.up_to and one.up_to <= longest)
    assert fitting == sum(total <= longest for total in totals)


def test_short_examples_fill_packed_rows_better(tmp_path: Path, tiny: Path) -> None:
    folder = make_tiny_data(tmp_path / "data", 40)
    one = examine(folder, model_path=tiny, max_seq_length=512).splits["train"]
    assert one.tokens is not None
    assert one.padded is not None
    assert one.packed is not None
    assert 0.5 < one.padded < one.packed <= 1
    rows = round((one.tokens - one.examples) / (512 * one.packed), 1)
    assert rows == round(rows)
    assert examine(folder).splits["train"].packed is None


names = st.lists(st.sampled_from([f"g{i}" for i in range(12)]), min_size=20, max_size=80)


@given(names, st.integers(0, 99))
def test_a_group_is_in_one_split_and_no_split_is_empty(groups: list[str], seed: int) -> None:
    if len(set(groups)) < 3:
        return
    dealt = deal(groups, {"valid": 0.2, "test": 0.2}, seed)
    assert set(dealt) == set(groups)
    assert set(dealt.values()) == {"train", "valid", "test"}
    assert dealt == deal(list(reversed(groups)), {"valid": 0.2, "test": 0.2}, seed)


def test_a_file_is_split_by_its_key_which_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "all.jsonl"
    rows = [{**pair(f"q{i}", f"a{i}"), "meta": {"author": f"person {i % 10}"}} for i in range(100)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shares = {"valid": 0.1, "test": 0.2}

    dealt = split_file(source, tmp_path / "out", by="meta.author", shares=shares)

    assert dealt.examples == {"train": 70, "valid": 10, "test": 20}
    assert dealt.groups == {"train": 7, "valid": 1, "test": 2}
    assert check_folder(tmp_path / "out") == ()
    with pytest.raises(OodatcaaError, match="already has"):
        split_file(source, tmp_path / "out", by="meta.author", shares=shares)
    with pytest.raises(OodatcaaError, match="100 bad lines"):
        split_file(source, tmp_path / "other", by="meta.editor", shares=shares)
    with pytest.raises(OodatcaaError, match="leave room"):
        split_file(source, tmp_path / "other", by=None, shares={"valid": 0.5, "test": 0.5})
