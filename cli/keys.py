"""``skumatch keys``: who may ask the service. A running service sees each change with the next request."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skumatch.cli.common import note, workspace_or_none
from skumatch.cli.serve import StateOption, settings_of, state_of

if TYPE_CHECKING:
    from skumatch.serve.keys import Keys

app = typer.Typer(no_args_is_help=True, help="API keys of the service.")
Name = Annotated[str, typer.Argument(help="What the key is called in the logs, such as the program that has it.")]


@app.command()
def add(
    name: Name,
    scope: Annotated[list[str], typer.Option(help="read, match or write; repeatable.")],
    days: Annotated[float | None, typer.Option(help="Days that it is valid.", show_default="for ever")] = None,
    state: StateOption = None,
) -> None:
    """Make a key and print it, this once: the service keeps only its SHA-256."""
    keys = _keys(state)
    token = keys.add(name, scope, days)
    note(f"the key {name} is in {keys.path}; its text cannot be shown again")
    typer.echo(token)


@app.command("list")
def list_keys(
    state: StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """List the keys without their secrets: name, id, scopes, made, valid until; a line each, with tabs."""
    found = _keys(state).list()
    if as_json:
        typer.echo(json.dumps([vars(key) for key in found], indent=1))
        return
    typer.echo("name\tid\tscopes\tmade\tvalid until")
    for key in found:
        ended = " (expired)" if key.expires is not None and key.expires <= time.time() else ""
        until = "-" if key.expires is None else f"{_day(key.expires)}{ended}"
        typer.echo(f"{key.name}\t{key.id}\t{','.join(key.scopes)}\t{_day(key.created)}\t{until}")


@app.command()
def remove(name: Name, state: StateOption = None) -> None:
    """Take a key back; the service refuses it from its next request on."""
    keys = _keys(state)
    keys.remove(name)
    if len(keys) == 0:
        note(f"no key is left, so nobody gets in; to ask from this machine without one, remove {keys.path} and restart")


def _keys(state: Path | None) -> Keys:
    from skumatch.serve.keys import FILE, Keys

    workspace = workspace_or_none()
    return Keys(state_of(workspace, state, settings_of(workspace, {})) / FILE)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
