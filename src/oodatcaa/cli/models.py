"""models, fuse, serve: what is on this machine, its adapters, and using them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oodatcaa.cli.model_text import card, columns, line, printable, side_by_side
from oodatcaa.cli.show import as_json, following, say

if TYPE_CHECKING:
    from oodatcaa.pool.records import Ask

models_app = typer.Typer(help="Models on this machine, and their adapters.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="demo, a folder, or a hub name; the objective's by default"),
]
Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", help="NAME=FOLDER: one more adapter")
]
Limit = Annotated[str | None, typer.Option(help="for example 16GB; the objective's by default")]
Tokens = Annotated[int, typer.Option(min=1, help="of an answer, at most")]


def register(app: typer.Typer) -> None:
    app.add_typer(models_app, name="models")
    app.command("fuse")(fuse)
    app.command("serve")(serve)


@models_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="demo, a folder, or a hub name")] = "demo",
) -> None:
    """Fetch a model; its size is said first."""
    from oodatcaa.training.models import ModelStore

    found = ModelStore().resolve(name, say=say)
    say(f"{found.title}: {found.path_or_hub}")
    following("oodatcaa init")


@models_app.command("list")
def list_models(model: Models = None, adapter: Adapters = None, json: AsJson = False) -> None:
    """Base models and the adapters on them, by the ids that every other command takes."""
    from oodatcaa.app.serving import open_serving

    with open_serving(models=model or (), adapters=adapter or ()) as serving:
        found = [serving.adapted(served) for served in serving.catalogue.list()]
    if json:
        # Every module of every adapter would be pages: `models show --json` has them.
        as_json([item.model_dump(mode="json", exclude={"info": {"modules"}}) for item in found])
        return
    for item in found:
        say(line(item))
    usable = [item.served.id for item in found if not item.problems]
    if not usable:
        say("no models here; outside of a project name one: --model demo, or a model folder")
        following("oodatcaa models list --model demo")
        return
    following(f"oodatcaa models generate {usable[-1]}{_again(model, adapter)} --prompt '…'")


@models_app.command("show")
def show(
    model_id: Annotated[str, typer.Argument(help="see `oodatcaa models list`")],
    model: Models = None,
    adapter: Adapters = None,
    json: AsJson = False,
) -> None:
    """One model: where it lies, what its adapter is, and everything that is wrong with it."""
    from oodatcaa.app.serving import open_serving

    with open_serving(models=model or (), adapters=adapter or ()) as serving:
        found = serving.adapted(serving.catalogue.find(model_id))
    if json:
        as_json(found)
        return
    say(card(found))
    use = f"oodatcaa models generate {model_id}{_again(model, adapter)} --prompt '…'"
    following("oodatcaa models list" if found.problems else use)


@models_app.command("generate")
def generate(
    model_id: Annotated[str, typer.Argument(help="see `oodatcaa models list`")],
    prompt: Annotated[str, typer.Option(help="what to say to it; - reads standard input")],
    max_tokens: Tokens = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 = greedy")] = 0.0,
    model: Models = None,
    adapter: Adapters = None,
    limit: Limit = None,
    json: AsJson = False,
) -> None:
    """One answer of one model."""
    from oodatcaa.app.serving import open_serving

    ask = _ask(_given(prompt), max_tokens, temperature)
    with open_serving(models=model or (), adapters=adapter or (), limit=limit) as serving:
        answer = serving.generate(model_id, ask)
    if json:
        as_json(answer)
        return
    say(printable(answer.text))
    say(f"\n{answer.completion_tokens} tokens, {answer.tokens_per_second:.1f} tokens/s")
    following(f"oodatcaa models compare {model_id}{_again(model, adapter)} --prompt '…'")


@models_app.command("compare")
def compare(
    ids: Annotated[
        list[str] | None, typer.Argument(help="model ids; the base and all its adapters by default")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="may be given several times")] = None,
    prompts: Annotated[Path | None, typer.Option(help="a file with one prompt a line")] = None,
    perplexity: Annotated[
        Path | None, typer.Option(help="a text or JSONL file to measure the loss on")
    ] = None,
    max_tokens: Tokens = 128,
    model: Models = None,
    adapter: Adapters = None,
    limit: Limit = None,
    json: AsJson = False,
) -> None:
    """Base and adapters side by side: the same prompts, greedily, and perplexity on a file."""
    from oodatcaa.app.comparing import compare as compare_models
    from oodatcaa.app.comparing import read_lines, read_texts
    from oodatcaa.app.serving import open_serving

    asked = [*(prompt or ()), *(read_lines(prompts) if prompts else ())]
    texts = read_texts(perplexity) if perplexity else []
    asks = [_ask(text, max_tokens, 0.0) for text in asked]
    tell = (lambda _: None) if json else say
    with open_serving(models=model or (), adapters=adapter or (), limit=limit) as serving:
        found = compare_models(serving, ids or (), asks, texts, tell)
    if json:
        as_json({"prompts": asked, "models": found})
        return
    say(side_by_side(asked, found, columns()))
    following(f"oodatcaa serve{_again(model, adapter)}")


def fuse(
    model_id: Annotated[str, typer.Argument(help="base::adapter, see `oodatcaa models list`")],
    out: Annotated[Path, typer.Option("--out", help="the new model folder")],
    dequantize: Annotated[bool, typer.Option("--dequantize", help="16-bit weights")] = False,
    model: Models = None,
    adapter: Adapters = None,
) -> None:
    """A model folder with the adapter's updates in its weights (through mlx_lm.fuse)."""
    from oodatcaa.app.serving import fuse as fuse_adapter

    made = fuse_adapter(
        model_id, out, dequantize=dequantize, models=model or (), adapters=adapter or ()
    )
    say(f"fused: {made}")
    following(f"oodatcaa models generate {out.name} --model {out} --prompt '…'")


def serve(
    host: Annotated[str, typer.Option(help="another one needs OODATCAA_TOKEN")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = a free one")] = 8080,
    model: Models = None,
    adapter: Adapters = None,
    limit: Limit = None,
    prompt_cache: Annotated[
        str | None,
        typer.Option(help="of the limit, for read prompts; 0 = none; an eighth by default"),
    ] = None,
) -> None:
    """Serve bases and adapters over HTTP as OpenAI's API speaks, until Ctrl-C."""
    import os

    from oodatcaa.errors import OodatcaaError

    try:
        from oodatcaa.pool.http import serve as serve_http
    except ModuleNotFoundError as error:
        raise OodatcaaError(
            "serve.missing",
            f"serving needs starlette and uvicorn ({error.name} is missing)",
            hint="pip install 'oodatcaa[serve]'",
        ) from error
    from oodatcaa.app.serving import open_serving

    with open_serving(
        models=model or (), adapters=adapter or (), limit=limit, prompt_cache=prompt_cache
    ) as serving:
        _ = serving.catalogue.default  # raises where there is nothing to serve

        def ready(address: str) -> None:
            for served in serving.models():
                say(f"  {served['id']}")
            say(f"serving at {address}/v1 (Ctrl-C ends it)")

        token = os.environ.get("OODATCAA_TOKEN") or None
        serve_http(serving, host=host, port=port, token=token, on_ready=ready)


def _again(models: list[str] | None, adapters: list[str] | None) -> str:
    """The options that the next command needs to find the same models."""
    import shlex

    words = [word for name in models or () for word in ("--model", name)]
    words += [word for name in adapters or () for word in ("--adapter", name)]
    return "".join(f" {shlex.quote(word)}" for word in words)


def _ask(prompt: str, max_tokens: int, temperature: float) -> Ask:
    from oodatcaa.pool.records import Ask

    messages = ({"role": "user", "content": prompt},)
    return Ask(messages=messages, max_tokens=max_tokens, temperature=temperature, seed=0)


def _given(prompt: str) -> str:
    import sys

    return sys.stdin.read() if prompt == "-" else prompt
