"""models: what is on this machine, and fetching the demo's."""

from __future__ import annotations

from typing import Annotated

import typer

from oodatcaa.cli.show import following, say

models_app = typer.Typer(help="Models on this machine.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(models_app, name="models")


@models_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="demo, a folder, or a hub name")] = "demo",
) -> None:
    """Fetch a model; its size is said first."""
    from oodatcaa.training.models import ModelStore

    found = ModelStore().resolve(name, say=say)
    say(f"{found.title}: {found.path_or_hub}")
    following("oodatcaa init")
