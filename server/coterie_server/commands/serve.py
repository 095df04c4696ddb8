"""``coterie serve``: the store, OTLP and the gateway on one port."""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from coterie.connecting import connect
from coterie.errors import ConfigError
from coterie_server.serving import address_of, listen, run, tls_context
from coterie_server.settings import Settings, read_settings
from coterie_server.token_places import first_token_path, tokens_path
from coterie_server.tokens import Scope, TokenFile, Tokens, write_private
from coterie_server.workers import run_workers


def serve(
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="COTERIE_STORE", help="sqlite:///coterie.db (default) or postgresql://…"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen; 127.0.0.1 by default.")] = None,
    port: Annotated[int | None, typer.Option(help="4747 by default; 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Processes on the port; needs PostgreSQL.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate for TLS, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key, PEM.")] = None,
    grpc_port: Annotated[int | None, typer.Option(metavar="PORT", help="Take OTLP over gRPC here, too.")] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="COTERIE_TOKENS", help="The file of tokens; by default beside the store."),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without TLS.")] = False,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy in front does TLS; believe its X-Forwarded-* headers.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in YAML; options given here count more.")
    ] = None,
) -> None:
    """Serve a store to a team: its API, OTLP from any OpenTelemetry SDK, and the model gateway, behind tokens."""
    given: dict[str, Any] = {
        "store": store,
        "host": host,
        "port": port,
        "workers": workers,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "grpc_port": grpc_port,
        "tokens": tokens,
        "insecure": insecure or None,
        "behind_proxy": behind_proxy or None,
    }
    settings = read_settings(config, {name: value for name, value in given.items() if value is not None})
    check(settings)
    tokens_file = tokens_path(settings)
    listener = listen(settings.host, settings.port)
    shown = _first_token(tokens_file)
    Tokens(tokens_file)

    def ready(grpc_port: int | None) -> None:
        _tell(settings, listener, tokens_file, shown, grpc_port)

    if settings.workers > 1:
        run_workers(settings, listener, ready)
    else:
        run(settings, listener, ready)


def check(settings: Settings) -> None:
    """Refuse settings that would not work, or would let in anybody.

    Raises:
        ConfigError: says which, and what to do.
    """
    scheme = settings.store.partition("://")[0].lower() if "://" in settings.store else "sqlite"
    if scheme in ("http", "https"):
        raise ConfigError("--store: a server cannot serve another server's store. Give its database.")
    connect(settings.store)  # opens nothing yet, but refuses an address of no known kind
    if settings.workers > 1 and scheme == "sqlite":
        raise ConfigError(
            f"--workers {settings.workers}: several processes need PostgreSQL; a SQLite file takes one writer at a time. Give "
            "--store postgresql://…, or leave --workers out."
        )
    tls_context(settings)
    if not (settings.tls_cert or settings.insecure or settings.behind_proxy or _is_loopback(settings.host)):
        raise ConfigError(
            f"--host {settings.host}: beyond this machine tokens and data would go over the network unencrypted. Give "
            "--tls-cert and --tls-key; or --behind-proxy, if a proxy in front does TLS; or --insecure, if you trust "
            "everybody on this network."
        )


def _is_loopback(host: str) -> bool:
    try:
        found = {address[4][0] for address in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise ConfigError(f"--host {host}: there is no such host: {error}.") from error
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def _first_token(path: Path) -> str | None:
    """Make the first token, if there is none yet; gives it to be shown."""
    file = TokenFile(path)
    if file.read():
        return None
    shown, _ = file.create([Scope.ADMIN], "first")
    write_private(first_token_path(path), shown + "\n")
    return shown


def _tell(settings: Settings, listener: socket.socket, tokens: Path, shown: str | None, grpc_port: int | None) -> None:
    address = address_of(settings, listener)
    first = first_token_path(tokens)
    lines = [f"Coterie listens at {address}, with the store {_without_secret(settings.store)}."]
    if grpc_port is not None:
        lines.append(f"OTLP over gRPC: {settings.host}:{grpc_port}")
    # A log is kept and read by others: the token is shown to a person only.
    if shown is not None and sys.stdout.isatty():
        lines.append(f"Its first token, for everything, shown only now: {shown}")
    if first.exists():
        lines += [
            f"A token for everything lies in {first}. In another terminal:",
            f"  export COTERIE_TOKEN=$(cat {first.absolute()})",
        ]
    else:
        lines += [f"Its tokens are in {tokens}. In another terminal:", "  export COTERIE_TOKEN=…"]
    lines += [f"  coterie run app.py:team --store {address}", f"The API: {address}/docs   Stop with Ctrl-C."]
    typer.echo("\n".join(lines))
    sys.stdout.flush()


def _without_secret(store: str) -> str:
    scheme, found, rest = store.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}" if found and scheme != "sqlite" else store
