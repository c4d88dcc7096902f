"""`oodatcaa estimate` as a person types it: whose figures, from what, and what it does not read."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer

from ledger_holders import end, holder
from oodatcaa.cli.training import register
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.errors import EXIT_FAILURE
from oodatcaa.training.datasets import build_stdlib
from oodatcaa.training.forecast import family
from oodatcaa.training.stdlib_pairs import stdlib_root
from tiny_model import make_tiny_data, write_tokenizer
from typing_in import SCRIPT, complaint, environment, git, new_project, type_in, write_objective

Tiny = tuple[Path, Path]
GB = 10**9
TELLS_WHAT_IT_READ = """
import json, sys
from oodatcaa.cli.main import main
try:
    main()
except SystemExit as end:
    code = end.code
lines = open("/proc/self/io").read().splitlines()
read = dict(line.split(": ") for line in lines)["rchar"]
loaded = sorted({"mlx", "mlx_lm", "torch", "transformers"} & set(sys.modules))
json.dump({"code": code, "read": int(read), "loaded": loaded}, sys.stderr)
"""


def estimated(folder: Path, *words: str, **env: str) -> dict[str, Any]:
    answer = type_in(folder, "estimate", *words, "--json", **env)
    assert answer.code == 0, answer.text
    found: dict[str, Any] = json.loads(answer.out)
    return found


def named(tiny: Tiny) -> tuple[str, ...]:
    return ("--model", str(tiny[0]), "--data", str(tiny[1]))


def test_a_model_its_data_a_limit_and_parameters_are_typed(tmp_path: Path, tiny: Tiny) -> None:
    words = ["--limit", "2GB", "--batch-size", "3", "--max-seq-length", "256", "--rank", "8"]
    words += ["--dropout", "0.1", "--cache-frozen", "--no-dense-weights", "--num-layers", "2"]
    words += ["--keys", "self_attn.q_proj,mlp.up_proj", "--grad-checkpoint", "--optimizer", "sgd"]
    found = estimated(tmp_path, *named(tiny), *words)

    params = QLoRA(
        batch_size=3, max_seq_length=256, rank=8, dropout=0.1, cache_frozen=True, num_layers=2,
        keys=("self_attn.q_proj", "mlp.up_proj"), grad_checkpoint=True, optimizer="sgd",
    )  # fmt: skip
    assert QLoRA.model_validate(found["params"]) == params
    assert (found["backend"], found["limit_bytes"], found["fits"]) == ("mlx", 2 * GB, True)
    estimate = found["estimate"]
    assert (estimate["source"], estimate["unknown"]) == ("analytic", [])
    assert sum(part["bytes"] for part in estimate["parts"]) == estimate["total_bytes"]
    assert {part["name"] for part in estimate["parts"]} > {"weights", "activations", "runtime"}

    assert found["data"] == str(tiny[1])
    assert found["length"] < 256, "no example is so long"
    assert found["targets"] < 3 * found["length"], "prompts have no loss"
    batches = [fit["batch"] for fit in found["largest"]]
    assert batches == sorted(batches, reverse=True)
    assert batches[-1] > 3

    page = type_in(tmp_path, "estimate", *named(tiny), *words).out
    assert f"\ndata: {tiny[1]}\n" in page
    assert "\nbackend: mlx on " in page
    assert "fits the limit of 2.00 GB" in page
    assert f"{batches[0]:5d} x {found['largest'][0]['length']} tokens" in page
    assert page.endswith("next: oodatcaa estimate --probe\n")


def test_the_largest_batch_is_the_last_that_fits(tmp_path: Path, tiny: Tiny) -> None:
    words = (*named(tiny), "--limit", "250MB", "--no-mask-prompt")
    found = estimated(tmp_path, *words)
    fit = found["largest"][0]
    assert fit["length"] == found["length"]
    assert 1 <= fit["batch"] < 4096
    most = estimated(tmp_path, *words, "--batch-size", str(fit["batch"]))
    more = estimated(tmp_path, *words, "--batch-size", str(fit["batch"] + 1))
    assert (most["fits"], more["fits"]) == (True, False)

    page = type_in(tmp_path, "estimate", *named(tiny), "--limit", "1MB").out
    assert "does NOT fit the limit of 0.00 GB" in page
    assert f"    0 x {found['length']} tokens" in page


def test_every_parameter_that_parts_probes_is_an_option() -> None:
    """What two specs must share for one probe to answer for both changes the memory."""
    app = typer.Typer()
    register(app)
    command = next(item for item in app.registered_commands if item.name == "estimate")
    assert command.callback is not None
    options = set(command.callback.__annotations__)
    deciding = set(family("", {}, "cpu", QLoRA())) & set(QLoRA.model_fields)
    deciding |= {"batch_size", "max_seq_length", "grad_accumulation_steps", "mask_prompt"}
    assert len(deciding) > 12
    assert deciding <= options


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--limit", "plenty"), "estimate.bad_options"),
        (("--dropout", "2"), "estimate.bad_options"),
        (("--grad-checkpoint-layers", "2"), "estimate.bad_options"),
        (("--data", "nowhere"), "data.missing"),
        (("--backend", "abacus"), "backend.unknown"),
        (("--backend", "axolotl", "--probe"), "estimate.no_probe"),
    ],
    ids=str,
)
def test_what_makes_no_spec_is_one_line(
    tmp_path: Path, tiny: Tiny, words: tuple[str, ...], code: str
) -> None:
    complaint(type_in(tmp_path, "estimate", "--model", str(tiny[0]), *words), code, EXIT_FAILURE)


def test_a_probe_waits_for_its_memory_and_answers_from_then_on(tmp_path: Path, tiny: Tiny) -> None:
    place = tmp_path / "place"
    place.mkdir()
    ledger = tmp_path / "reservations"  # `environment` names this one
    env = environment(place, OODATCAA_PROBES=str(tmp_path / "probes"))
    words = [*named(tiny), "--limit", "2GB", "--batch-size", "2", "--num-layers", "1"]
    with holder(ledger, 2 * GB - 10**6, 2 * GB) as first:
        command = [str(SCRIPT), "estimate", *words, "--probe", "--json"]
        with subprocess.Popen(
            command, cwd=place, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as asking:
            assert asking.stderr is not None
            said = asking.stderr.readline()
            assert said.startswith(f"waiting for memory: somebody (pid {first.pid}, 2.00 GB")
            assert psutil.Process(asking.pid).children() == [], "nothing is measured yet"
            end(first)
            out, err = asking.communicate(timeout=120)
    assert asking.returncode == 0, err
    probed = json.loads(out)
    assert probed["estimate"]["source"] == "probe"
    assert probed["fits"]

    probes = {"OODATCAA_PROBES": str(tmp_path / "probes")}
    again = estimated(place, *words, **probes)
    assert again["estimate"] == probed["estimate"]
    assert estimated(place, *words, "--dropout", "0.1", **probes)["estimate"]["source"] != "probe"


def test_the_figures_are_those_of_the_objectives_first_backend(tmp_path: Path, tiny: Tiny) -> None:
    project = new_project(tmp_path / "project", model=tiny[0], data=tiny[1])
    path = project / "OBJECTIVE.md"
    path.write_text(path.read_text().replace("backends: [mlx]", "backends: [hf, mlx]"))
    found = estimated(project)
    assert found["backend"] == "hf"
    assert found["estimate"]["device"].startswith("torch-")
    assert found == estimated(project, "--backend", "hf")

    other = estimated(project, "--backend", "mlx")
    assert (other["backend"], other["data"]) == ("mlx", found["data"])
    assert other["estimate"]["parts"] != found["estimate"]["parts"]

    third = estimated(tmp_path, *named(tiny), "--backend", "axolotl")
    assert third["backend"] == "axolotl"
    assert third["estimate"]["unknown"] == ["what axolotl holds on the card beside the model"]


def test_the_objectives_data_bound_the_lengths(project: Path, tiny: Tiny) -> None:
    found = estimated(project)
    assert found["data"] == str(tiny[1])
    assert found["length"] < 128, "the objective's max_seq_length"
    assert found["targets"] < found["batch"] * found["length"]


def test_the_standard_librarys_pairs_bound_them_once_they_are_built(
    tmp_path: Path, tiny: Tiny
) -> None:
    project = new_project(tmp_path / "project", model=tiny[0], data="demo")
    before = estimated(project, "--max-seq-length", "512")
    assert (before["data"], before["length"]) == (None, 512)
    page = type_in(project, "estimate").out
    assert "data: none here; every row counts as max_seq_length\n" in page

    def build(seed: int) -> str:
        root, few = project / "models" / "data", stdlib_root() / "email"
        return build_stdlib(root, seed=seed, model_path=tiny[0], source_root=few).path

    other = build(seed=5)
    assert estimated(project)["data"] is None, "of another seed"
    built = build(seed=0)
    assert built != other
    after = estimated(project, "--max-seq-length", "512")
    assert (after["data"], after["length"]) == (built, 384)


def test_a_folder_in_the_project_is_found_from_anywhere_in_it(tmp_path: Path, tiny: Tiny) -> None:
    project = new_project(tmp_path / "project", model=tiny[0], data="mine")
    make_tiny_data(project / "mine")
    (project / "sub").mkdir()
    assert estimated(project / "sub")["data"] == str(project / "mine")


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="only Linux counts what is read")
@pytest.mark.parametrize("inside", [False, True], ids=["by name", "the objective's"])
def test_no_tensor_is_read_and_no_framework_loaded(
    tmp_path: Path, tiny: Tiny, inside: bool
) -> None:
    model = make_large_model(tmp_path / "large")
    place = tmp_path / "place"
    place.mkdir()
    words = ["--data", str(tiny[1]), "--json"]
    if inside:
        git(place, "init", "-q", "-b", "main")
        write_objective(place, model=model, data=tiny[1])
    else:
        words += ["--model", str(model)]
    done = subprocess.run(
        [sys.executable, "-c", TELLS_WHAT_IT_READ, "estimate", *words],
        cwd=place,
        env=environment(place, OODATCAA_CACHE=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    seen = json.loads(done.stderr.splitlines()[-1])
    assert seen["code"] == 0, done.stderr
    assert json.loads(done.stdout)["estimate"]["total_bytes"] > 2 * GB
    assert 10**5 < seen["read"] < 200 * 10**6
    assert seen["loaded"] == []


def make_large_model(folder: Path) -> Path:
    """A model of 2 GB as far as its headers say: a file with a hole where the tensors are."""
    hidden, inner, keys, layers, vocabulary = 2048, 8192, 256, 12, 150_000
    config = {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }
    shapes: dict[str, list[int]] = {
        "model.embed_tokens.weight": [vocabulary, hidden],
        "model.norm.weight": [hidden],
    }
    for layer in range(layers):
        block = f"model.layers.{layer}"
        for name, rows in (("q_proj", hidden), ("k_proj", keys), ("v_proj", keys)):
            shapes[f"{block}.self_attn.{name}.weight"] = [rows, hidden]
            shapes[f"{block}.self_attn.{name}.bias"] = [rows]
        shapes[f"{block}.self_attn.o_proj.weight"] = [hidden, hidden]
        for name in ("gate_proj", "up_proj"):
            shapes[f"{block}.mlp.{name}.weight"] = [inner, hidden]
        shapes[f"{block}.mlp.down_proj.weight"] = [hidden, inner]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}.{name}.weight"] = [hidden]
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    assert at > 2 * GB
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(folder)
    return folder
