"""Make, list and revoke the tokens of a server."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from coterie.vocabulary import now_ns
from coterie_server.settings import Settings
from coterie_server.token_places import tokens_path
from coterie_server.tokens import Scope, TokenFile

DAY_NS = 86_400 * 10**9

token = typer.Typer(help=__doc__, no_args_is_help=True)

Store = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URL", envvar="COTERIE_STORE", help="The store of the server: its tokens lie beside it."
    ),
]
File = Annotated[
    Path | None, typer.Option("--tokens", metavar="FILE", envvar="COTERIE_TOKENS", help="The file of tokens.")
]


@token.command()
def create(
    scope: Annotated[list[Scope], typer.Option(help="What it is for. May be given several times.")],
    name: Annotated[str, typer.Option(help="What to call it in lists.")] = "",
    expires_days: Annotated[float | None, typer.Option(min=0, help="It ends after so many days.")] = None,
    store: Store = None,
    tokens: File = None,
) -> None:
    """Make a token and print it. It is kept nowhere: only its hash is."""
    expires_ns = None if expires_days is None else now_ns() + round(expires_days * DAY_NS)
    shown, _ = _file(store, tokens).create(scope, name, expires_ns=expires_ns)
    typer.echo(shown)


@token.command(name="list")
def list_(
    store: Store = None,
    tokens: File = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """List the tokens that there are: what they are for, not what they are."""
    now = now_ns()
    found: list[dict[str, Any]] = [
        {
            "id": each.id,
            "name": each.name,
            "scopes": list(each.scopes),
            "state": each.state(now),
            "created": _day(each.created_ns),
            "expires": None if each.expires_ns is None else _day(each.expires_ns),
        }
        for each in _file(store, tokens).read()
    ]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif not found:
        typer.echo("No tokens. `coterie serve` makes the first one, `coterie token create --scope …` others.")
    for each in [] if as_json else found:
        ends = f", ends {each['expires']}" if each["expires"] else ""
        typer.echo(
            f"{each['id']}  {each['state']:<8}  {each['created']}  {each['name']}  ({', '.join(each['scopes'])}{ends})"
        )


@token.command()
def revoke(
    which: Annotated[str, typer.Argument(metavar="ID", help="A token's id, or its name.")],
    store: Store = None,
    tokens: File = None,
) -> None:
    """Revoke a token. Servers refuse it within a second."""
    file = _file(store, tokens)
    for each in file.revoke(which) or ():
        typer.echo(f"Revoked {each.id} ({each.name}).")


def _file(store: str | None, tokens: Path | None) -> TokenFile:
    given = {} if store is None else {"store": store}
    return TokenFile(tokens_path(Settings(tokens=tokens, **given)))


def _day(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%MZ")
