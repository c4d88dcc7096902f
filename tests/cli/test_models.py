"""models, fuse and serve as a person types them, in a project with a real finished run; the server
is asked by the official OpenAI client."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from oodatcaa.errors import EXIT_FAILURE, EXIT_STATE
from oodatcaa.training.reservation import Reservations
from tiny_adapters import make_adapter, make_peft_adapter
from typing_in import SCRIPT, complaint, environment, new_project, type_in

TOKEN = "a-long-random-word"
ASKED: list[Any] = [{"role": "user", "content": "Write add_3(x)."}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[Path, Path]) -> Path:
    root = tmp_path_factory.mktemp("models")
    project = new_project(root / "project", model=tiny[0], data=tiny[1])
    answer = type_in(project, "train")
    assert answer.code == 0, answer.text
    make_peft_adapter(root / "peft", seed=4)
    return project


def run_id(project: Path) -> str:
    return (project / "models" / "runs" / "mlx" / "latest").resolve().name


def test_list_and_show_name_what_there_is(trained: Path) -> None:
    run = run_id(trained)
    out = type_in(trained, "models", "list", "--adapter", "mine=../peft").out
    assert f"model::{run}  lora rank 4, 2 blocks, 0.03 MB\n" in out
    assert f"model::latest  lora rank 4, 2 blocks, 0.03 MB  = {run}\n" in out
    assert "model::mine  lora rank 4" in out
    again = "model::mine --adapter mine=../peft --prompt '…'"
    assert out.endswith(f"next: oodatcaa models generate {again}\n")
    listed = json.loads(type_in(trained, "models", "list", "--json").out)
    assert [item["served"]["id"] for item in listed] == ["model", f"model::{run}", "model::latest"]
    assert "modules" not in listed[-1]["info"]

    card = type_in(trained, "models", "show", "model::latest").out
    for part in (f"run        {run}, backend mlx", "rank       4, scale 2", "self_attn.q_proj"):
        assert part in card
    shown = json.loads(type_in(trained, "models", "show", "model::latest", "--json").out)
    assert shown["info"]["modules"]
    text = complaint(type_in(trained, "models", "show", "x"), "model.unknown_id", EXIT_FAILURE)
    assert "model::latest" in text


def test_generate_and_compare(trained: Path, tiny: tuple[Path, Path]) -> None:
    words = ("--prompt", "Write add_3(x).", "--max-tokens", "6")
    said = json.loads(type_in(trained, "models", "generate", "model::latest", *words, "--json").out)
    assert said["completion_tokens"] <= 6
    test = tiny[1] / "test.jsonl"
    answer = type_in(
        trained, "models", "compare", *words, "--perplexity", str(test),
        "--adapter", "mine=../peft", COLUMNS="120",
    )  # fmt: skip
    assert answer.code == 0, answer.text
    head = next(line for line in answer.out.splitlines() if line.startswith("model  "))
    assert head.split() == ["model", f"model::{run_id(trained)}", "model::mine"]
    rows = answer.out.partition("perplexity ")[2].splitlines()[1:4]
    losses = [float(row.split()[1]) for row in rows]
    assert float(rows[1].split()[2]) == pytest.approx(losses[1] - losses[0], abs=2e-4)
    assert losses[1] < losses[0], "what was trained knows its data better than the base"
    found = json.loads(type_in(trained, "models", "compare", "model::latest", *words, "--json").out)
    assert [model["id"] for model in found["models"]] == ["model", "model::latest"]
    assert found["models"][1]["answers"][0]["text"] == said["text"]
    complaint(type_in(trained, "models", "compare"), "compare.nothing", EXIT_FAILURE)


@pytest.mark.slow
def test_a_fused_model_answers_as_its_adapter_does(trained: Path, tmp_path: Path) -> None:
    words = ("--prompt", "Write add_3(x).", "--max-tokens", "6", "--json")
    mine = ("--adapter", "mine=../peft")
    out = tmp_path / "fused"
    answer = type_in(trained, "fuse", "model::mine", "--out", str(out), "--dequantize", *mine)
    assert answer.code == 0, answer.text
    assert f"--model {out}" in answer.out.splitlines()[-1]
    fused = type_in(trained, "models", "generate", "fused", "--model", str(out), *words)
    adapted = type_in(trained, "models", "generate", "model::mine", *mine, *words)
    assert json.loads(fused.out)["text"] == json.loads(adapted.out)["text"]

    run = type_in(trained, "fuse", "model::latest", "--out", str(tmp_path / "run"))
    assert run.code == 0, run.text
    assert json.loads((tmp_path / "run" / "config.json").read_text())["quantization"]["bits"] == 4
    again = type_in(trained, "fuse", "model::latest", "--out", str(out))
    complaint(again, "fuse.exists", EXIT_FAILURE)
    base = type_in(trained, "fuse", "model", "--out", str(tmp_path / "none"))
    complaint(base, "fuse.no_adapter", EXIT_FAILURE)


def test_a_changed_adapter_is_refused_everywhere(trained: Path, tmp_path: Path) -> None:
    folder = trained / "models" / "runs" / "mlx" / run_id(trained) / "adapters"
    weights = folder / "adapters.safetensors"
    whole = weights.read_bytes()
    weights.chmod(0o644)
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert "model::latest  NOT USABLE: the weights" in type_in(trained, "models", "list").out
        prompt = ("--prompt", "x")
        for words in (
            ("models", "generate", "model::latest", *prompt),
            ("models", "compare", "model::latest", *prompt),
            ("fuse", "model::latest", "--out", str(tmp_path / "out")),
        ):
            complaint(type_in(trained, *words), "adapter.checksum", EXIT_STATE)
    finally:
        weights.write_bytes(whole)


@pytest.mark.slow
def test_outside_of_a_project_models_are_named(trained: Path, tiny: tuple[Path, Path]) -> None:
    outside = trained.parent
    assert "name one: --model demo" in type_in(outside, "models", "list").out
    prompt = ("--prompt", "x", "--max-tokens", "2")
    for words, code in (
        (("serve", "--port", "0"), "model.none"),
        (("models", "compare", *prompt), "model.none"),
        (("models", "generate", "model", *prompt), "model.unknown_id"),
    ):
        assert "--model demo, or a model folder" in complaint(
            type_in(outside, *words), code, EXIT_FAILURE
        )
    named = ("--model", str(tiny[0]), "--adapter", "mine=peft")
    answer = type_in(outside, "models", "generate", "model::mine", *named, *prompt)
    assert answer.code == 0, answer.text
    assert answer.out.endswith(f"compare model::mine {' '.join(named)} --prompt '…'\n")
    answer = type_in(outside, "fuse", "model::mine", *named, "--out", "fused")
    assert answer.code == 0, answer.text


@contextlib.contextmanager
def serving(folder: Path, *words: str, **env: str) -> Iterator[str]:
    """The address of a running `oodatcaa serve`, ended with Ctrl-C."""
    server = subprocess.Popen(
        [str(SCRIPT), "serve", "--port", "0", *words],
        cwd=folder,
        env=environment(folder, PYTHONUNBUFFERED="1", **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    try:
        said = ""
        while "serving at " not in said:
            line = server.stdout.readline()
            assert line, said
            said += line
        yield said.partition("serving at ")[2].partition("/v1")[0]
    finally:
        os.kill(server.pid, signal.SIGINT)
        rest = server.communicate(timeout=60)[0]
        assert "Traceback" not in rest, rest


@pytest.fixture(scope="module")
def address(trained: Path) -> Iterator[str]:
    wide = trained.parent / "wide"
    make_adapter(wide, rank=9, blocks=(0, 1, 2))
    (wide / "adapter_config.json").write_text("{", encoding="utf-8")
    with serving(trained, "--adapter", "mine=../peft", "--adapter", "broken=../wide") as found:
        yield found


@pytest.fixture
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0)


def fetch(url: str, data: bytes | None = None, **headers: str) -> tuple[int, Any]:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_official_client_lists_and_asks(client: OpenAI, address: str, trained: Path) -> None:
    run = run_id(trained)
    names = [model.id for model in client.models.list()]
    assert names[:3] == ["model", f"model::{run}", "model::latest"]
    assert client.models.retrieve(f"model::{run}").created > 0

    options: dict[str, Any] = {"model": "model::latest", "temperature": 0, "max_tokens": 6}
    whole = client.chat.completions.create(messages=ASKED, **options)
    said = whole.choices[0].message.content
    assert said
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 6
    parts = list(
        client.chat.completions.create(
            messages=ASKED, stream=True, stream_options={"include_usage": True}, **options
        )
    )
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == said
    assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    usage = parts[-1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    assert whole.usage.prompt_tokens_details.cached_tokens == 0
    apart: dict[str, Any] = {"exclude": {"prompt_tokens_details"}}
    assert usage.model_dump(**apart) == whole.usage.model_dump(**apart)
    typed = type_in(trained, "models", "generate", "model::latest", "--prompt",
                    ASKED[0]["content"], "--max-tokens", "6", "--json")  # fmt: skip
    assert json.loads(typed.out)["text"] == said

    text = client.completions.create(prompt="def add_3", **options).choices[0].text
    pieces = client.completions.create(prompt="def add_3", stream=True, **options)
    assert "".join(piece.choices[0].text for piece in pieces) == text
    several = client.completions.create(prompt=["def add_3", "x"], **options)
    assert several.choices[0].text == text
    other = client.completions.create(prompt="def add_3", **{**options, "model": "model::mine"})
    assert other.choices[0].text != text

    status = fetch(f"{address}/status")[1]
    (model,) = status["models"]
    assert (model["model_id"], model["in_use"], status["loads"]) == ("model", 0, 1)
    assert model["hits"] == 7
    assert sum(adapter["hits"] for adapter in model["adapters"]) == model["hits"]
    newest, older = model["adapters"]
    assert newest["adapter_path"].endswith("peft")
    assert newest["idle_seconds"] <= older["idle_seconds"]
    assert 0 < newest["bytes"] < model["base_bytes"] < model["mlx_bytes"] <= model["bytes"]
    assert status["bytes"] <= status["memory_limit_bytes"] == 4_000_000_000
    assert 0 < model["prompt_bytes"] == status["prompt_bytes"] < status["prompt_limit_bytes"]
    assert status["prompt_limit_bytes"] == 500_000_000
    assert model["prompts"] == 4, "a message and two texts of one adapter, a text of the other"


def test_bad_input_is_told_in_openais_form(client: OpenAI, address: str) -> None:
    def refused(kind: type[openai.APIStatusError], **more: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"model": "model", "messages": ASKED, "max_tokens": 4}
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**{**options, **more})
        body = caught.value.body
        assert isinstance(body, dict)
        assert set(body) == {"message", "type", "param", "code"}
        return body

    unknown = refused(openai.NotFoundError, model="model::nope")
    assert (unknown["code"], unknown["param"]) == ("model_not_found", "model")
    bad = refused(openai.BadRequestError, temperature=9, max_tokens=0, n=2, logprobs=True)
    for name in ("temperature", "max_tokens", "n:", "logprobs"):
        assert name in bad["message"]
    assert bad["type"] == "invalid_request_error"
    refused(openai.BadRequestError, messages=[])
    refused(openai.BadRequestError, messages=[{"role": "tool", "content": "x"}])
    long = refused(openai.BadRequestError, max_tokens=100_000)
    assert long["code"] == "context_length_exceeded"
    long = refused(openai.BadRequestError, max_tokens=100_000, stream=True)
    assert long["code"] == "context_length_exceeded"
    broken = refused(openai.UnprocessableEntityError, model="model::broken")
    assert broken["code"] == "pool.adapter"
    assert "adapter_config.json can not be read" in broken["message"]
    assert fetch(f"{address}/nowhere")[1]["error"]["type"] == "invalid_request_error"
    assert fetch(f"{address}/v1/chat/completions")[0] == 405
    assert fetch(f"{address}/v1/models", Host="evil.example")[0] == 403
    assert fetch(f"{address}/health") == (200, {"status": "ok"})


def test_bodies_that_no_client_sends_are_told_in_the_same_form(address: str) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        for body, kind, status in (
            (b"{", "application/json", 400),
            (b"[" * 100_000, "application/json", 400),
            (b"\xff\xfe", "application/json", 400),
            (b"[]", "application/json", 400),
            (b'{"model": "model"}', "application/json", 400),
            (b"{}", "text/plain", 415),
            (b" " * 8_000_001, "application/json", 413),
        ):
            found, answer = fetch(address + path, body, Content_Type=kind)
            assert found == status, (body[:9], answer)
            assert answer["error"]["type"] == "invalid_request_error"
            assert answer["error"]["message"]


@pytest.mark.slow
def test_who_goes_away_in_the_middle_leaves_the_model_free(client: OpenAI, address: str) -> None:
    parts = client.chat.completions.create(
        model="model", messages=ASKED, stream=True, max_tokens=900, temperature=1, seed=1
    )
    next(iter(parts))
    parts.close()
    for _ in range(200):
        status = fetch(f"{address}/status")[1]
        if not status["requests"] and not status["models"][0]["in_use"]:
            break
        time.sleep(0.1)
    else:
        raise AssertionError(status)
    assert status["models"][0]["model_id"] == "model"


def test_beyond_the_memory_limit_is_503_with_the_reason(trained: Path, tmp_path: Path) -> None:
    ledger, limit = Reservations(tmp_path), 1_000_000_000
    with serving(trained, "--limit", "1GB", OODATCAA_RESERVATIONS=str(tmp_path)) as address:
        client = OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0)
        for stream in (False, True):
            with (
                ledger.reserve(limit, limit, label="training T003"),
                pytest.raises(openai.InternalServerError) as caught,
            ):
                client.chat.completions.create(model="model", messages=ASKED, stream=stream)
            assert caught.value.status_code == 503
            assert caught.value.code == "pool.memory"
            assert "training T003 (pid" in caught.value.message
            assert caught.value.response.headers["retry-after"]
        reply = client.chat.completions.create(model="model", messages=ASKED, max_tokens=2)
        assert reply.choices[0].finish_reason == "length"


@pytest.mark.slow
def test_prompts_are_kept_as_far_as_the_option_allows(trained: Path, tmp_path: Path) -> None:
    for size, why in (("much", "--prompt-cache: 'much' is not a size"), ("4GB", "leaves nothing")):
        answer = type_in(trained, "serve", "--prompt-cache", size)
        assert why in complaint(answer, "serve.limit", EXIT_FAILURE)
    words = ("--prompt-cache", "0")
    with serving(trained, *words, OODATCAA_RESERVATIONS=str(tmp_path)) as address:
        client = OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0)
        for _ in range(2):
            reply = client.chat.completions.create(model="model", messages=ASKED, max_tokens=2)
            assert reply.usage is not None
            assert reply.usage.prompt_tokens_details is not None
            assert reply.usage.prompt_tokens_details.cached_tokens == 0
        assert fetch(f"{address}/status")[1]["prompt_limit_bytes"] == 0


@pytest.mark.slow
def test_elsewhere_than_loopback_a_token_is_asked_for(trained: Path) -> None:
    answer = type_in(trained, "serve", "--host", "0.0.0.0", OODATCAA_TOKEN="")
    complaint(answer, "serve.token", EXIT_FAILURE)
    with serving(trained, "--host", "0.0.0.0", OODATCAA_TOKEN=TOKEN) as address:
        near = address.replace("0.0.0.0", "127.0.0.1")
        for key in ("-", TOKEN[:-1]):
            with pytest.raises(openai.AuthenticationError):
                OpenAI(base_url=f"{near}/v1", api_key=key, max_retries=0).models.list()
        for path in ("/status", "/v1/models", "/v1/models/model"):
            assert fetch(near + path)[0] == 401
            assert fetch(near + path, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert fetch(f"{near}/health") == (200, {"status": "ok"})
        client = OpenAI(base_url=f"{near}/v1", api_key=TOKEN, max_retries=0)
        assert client.models.list().data[0].id == "model"
