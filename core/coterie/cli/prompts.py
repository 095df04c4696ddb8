"""Prompts in a store: list, show and compare versions, keep them as files in git, put one to use or out of it."""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from coterie.cli.given_store import StoreUrl, raise_if_absent
from coterie.connecting import connect
from coterie.errors import ConfigError, NotFoundError
from coterie.prompts.exchange import Exchanged, Outcome, export_prompts, import_prompts
from coterie.prompts.files import content_of, file_text
from coterie.store.base import Store
from coterie.vocabulary import JSON, Decision, Resource, ResourceKind, ResourceStatus

prompts = typer.Typer(no_args_is_help=True, help=__doc__)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Named = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The active version by default.")]
OfRun = Annotated[
    str | None,
    typer.Option(
        "--run", metavar="RUN", help="Write it down as a decision of this run; by default of the one that measured it."
    ),
]


@prompts.command("list")
def list_(
    store: StoreUrl,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="List all versions of this prompt.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the prompts of a store, or the versions of one: status, author, scores, and why it was changed."""
    raise_if_absent(store)
    typer.echo(asyncio.run(_listed(store, name, as_json)))


@prompts.command()
def show(store: StoreUrl, prompt: Named, as_json: AsJson = False) -> None:
    """Show a version: where it comes from, what was measured of it, and its text."""
    raise_if_absent(store)
    typer.echo(asyncio.run(_shown(store, prompt, as_json)))


@prompts.command()
def diff(
    store: StoreUrl,
    first: Annotated[str, typer.Argument(metavar="NAME@A", help="The active version by default.")],
    second: Annotated[
        str | None, typer.Argument(metavar="[NAME@B]", help="Left out: what NAME@A changed, against its parent.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs between two versions, or what one changed."""
    raise_if_absent(store)
    asyncio.run(_compared(store, first, second, as_json))


@prompts.command("export")
def export_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made if need be.")],
    store: StoreUrl,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files also where they say what the store does not know.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the active version of each prompt to a file, such as DIR/coder.md, to be kept in git."""
    raise_if_absent(store)

    async def work() -> Sequence[Exchanged]:
        async with connect(store) as opened:
            return await export_prompts(opened, folder, force=force)

    _say(asyncio.run(work()), as_json)


@prompts.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `coterie prompts export` wrote, or you.")],
    store: StoreUrl,
    note: Annotated[str, typer.Option(metavar="TEXT", help="Why they were changed.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be published, and publish nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Publish the prompts in files that say something else than the store. What is wrong is told with file and line."""

    async def work() -> Sequence[Exchanged]:
        async with connect(store) as opened:
            return await import_prompts(opened, folder, note=note, dry_run=dry_run)

    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder. Name what was given to `coterie prompts export`.")
    if dry_run:
        raise_if_absent(store)
    _say(asyncio.run(work()), as_json, would=dry_run)


@prompts.command()
def activate(store: StoreUrl, prompt: Named, run_id: OfRun = None, as_json: AsJson = False) -> None:
    """Put a version to use, also an older one; the one that was active is retired."""
    if _split(prompt)[1] is None:
        raise ConfigError(f"activate: say which version, as in {prompt}@3; `coterie prompts list {prompt}` lists them.")
    raise_if_absent(store)
    typer.echo(asyncio.run(_marked(store, prompt, ResourceStatus.ACTIVE, run_id, as_json)))


@prompts.command()
def retire(store: StoreUrl, prompt: Named, run_id: OfRun = None, as_json: AsJson = False) -> None:
    """Put a version out of use; without a version the active one, and then agents keep the text of their code."""
    raise_if_absent(store)
    typer.echo(asyncio.run(_marked(store, prompt, ResourceStatus.RETIRED, run_id, as_json)))


# Reading


async def _listed(url: str, name: str | None, as_json: bool) -> str:
    async with connect(url) as store:
        if name is not None:
            versions = await _versions(store, name)
            return _json(list(map(asdict, versions))) if as_json else "\n".join(map(_version_line, reversed(versions)))
        latest = await store.list_resources(kind=ResourceKind.PROMPT)
        histories = [await store.list_resources(name=resource.name) for resource in latest]
    if as_json:
        return _json(
            [
                asdict(resource) | {"versions": len(versions), "candidates": len(_candidates(versions))}
                for resource, versions in zip(latest, histories, strict=True)
            ]
        )
    if not latest:
        return "No prompts in this store. `coterie prompts import DIR` publishes those of a folder."
    width = max(len(resource.name) for resource in latest)
    rows = zip(latest, histories, strict=True)
    return "\n".join(_prompt_line(resource, versions, width) for resource, versions in rows)


async def _versions(store: Store, name: str) -> Sequence[Resource]:
    versions = await store.list_resources(name=name, kind=ResourceKind.PROMPT)
    if versions:
        return versions
    known = [repr(one.name) for one in await store.list_resources(kind=ResourceKind.PROMPT)]
    raise NotFoundError(f"no prompt {name!r} in this store; there are {', '.join(known) or 'none'}.")


async def _read(store: Store, given: str) -> Resource:
    """The version that somebody named.

    Raises:
        NotFoundError: there is none; says which there are.
    """
    name, version = _split(given)
    versions = await _versions(store, name)
    if version is not None:
        found = [one for one in versions if one.version == version]
        there_is = f"no version {version}"
    else:
        found = [one for one in versions if one.status is ResourceStatus.ACTIVE]
        there_is = "no active version"
    if found:
        return found[0]
    there_are = ", ".join(f"{one.version} ({one.status})" for one in versions)
    raise NotFoundError(
        f"prompt {name!r} has {there_is}; there are {there_are}. Name one as {name}@{versions[-1].version}."
    )


def _split(given: str) -> tuple[str, int | None]:
    name, _, version = given.rpartition("@")
    return (name, int(version)) if name and version.isdecimal() else (given, None)


async def _shown(url: str, given: str, as_json: bool) -> str:
    async with connect(url) as store:
        resource = await _read(store, given)
    if as_json:
        return _json(asdict(resource))
    content = content_of(resource)
    facts = {
        "prompt": f"{resource.name}@{resource.version}, {resource.status}",
        "role": f"{content['role']} ({content['part']})",
        "placeholders": ", ".join(content["placeholders"]),
        "author": f"{resource.author}, {_time(resource)}",
        "parent": "" if resource.parent is None else f"{resource.name}@{resource.parent}",
        "why": resource.note,
        "scores": _scores(resource.scores),
    }
    width = max(map(len, facts))
    return "\n".join([*(f"{name:<{width}}  {fact}" for name, fact in facts.items() if fact), "", content["text"]])


async def _compared(url: str, first: str, second: str | None, as_json: bool) -> None:
    async with connect(url) as store:
        one = await _read(store, first)
        if second is not None:
            before, after = one, await _read(store, second)
        elif one.parent is not None:
            before, after = await _read(store, f"{one.name}@{one.parent}"), one
        else:
            raise ConfigError(
                f"diff: {one.name}@{one.version} was made from no other version. Name two: "
                f"`coterie prompts diff {one.name}@1 {one.name}@2`."
            )
    names = [f"{each.name}@{each.version}" for each in (before, after)]
    old, new = [file_text(each, version=False).splitlines() for each in (before, after)]
    lines = list(difflib.unified_diff(old, new, names[0], names[1], lineterm=""))
    if as_json:
        typer.echo(_json({"before": asdict(before), "after": asdict(after), "diff": lines}))
    elif not lines:
        typer.echo(f"{names[0]} and {names[1]} say the same.")
    for line in () if as_json else lines:
        typer.secho(line, fg=_COLOURS.get(line[:1]), bold=line.startswith(("---", "+++")))


_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


# Changing


async def _marked(url: str, given: str, status: ResourceStatus, run_id: str | None, as_json: bool) -> str:
    async with connect(url) as store:
        resource = await _read(store, given)
        before = [one for one in await _versions(store, resource.name) if one.status is ResourceStatus.ACTIVE]
        run = await _run_of(store, resource, run_id)
        marked = await store.mark(resource.name, resource.version, status)
        if run is not None and resource.status is not status:
            await store.add_decision(_decision(run, resource, before, status))
    if as_json:
        return _json(asdict(marked))
    named = f"{marked.name}@{marked.version}"
    written = f"; written down as a decision of run {run}" if run is not None and resource.status is not status else ""
    if resource.status is status:
        return f"{named} is {status} already"
    if status is ResourceStatus.ACTIVE:
        instead = f", in place of {before[0].name}@{before[0].version}" if before else ""
        return f"{named} is active now{instead}{written}"
    left = "; no version is active now" if resource.status is ResourceStatus.ACTIVE else ""
    return f"{named} is retired{left}{written}"


async def _run_of(store: Store, resource: Resource, given: str | None) -> str | None:
    """The run whose decision it is: the one that was named, which must exist, or the one that measured the version."""
    if given is not None:
        return (await store.get_run(given)).id
    for name in resource.scores:
        try:
            return (await store.get_run(name)).id
        except NotFoundError:
            continue  # A score of another kind, or of a run that was left behind in another store.
    return None


def _decision(run: str, resource: Resource, before: Sequence[Resource], status: ResourceStatus) -> Decision:
    if status is ResourceStatus.RETIRED:
        kind = "retired"
    else:
        kind = "rolled_back" if before and before[0].version > resource.version else "promoted"
    return Decision(
        run,
        kind,
        f"prompt {resource.name}@{resource.version}",
        {
            "by": "coterie prompts",
            "was": resource.status.value,
            "in_place_of": before[0].version if before and status is ResourceStatus.ACTIVE else None,
            "scores": dict(resource.scores),
        },
    )


# Wording


def _prompt_line(latest: Resource, versions: Sequence[Resource], width: int) -> str:
    content = content_of(latest)
    active = f"@{latest.version}" if latest.status is ResourceStatus.ACTIVE else "none active"
    count = f"{len(versions)} version{'s' if len(versions) > 1 else ''}"
    candidates = _candidates(versions)
    tried = f", {len(candidates)} candidate{'s' if len(candidates) > 1 else ''}" if candidates else ""
    return (
        f"{latest.name:<{width}}  {active:<11}  {content['role']} ({content['part']})  "
        f"{latest.author}, {_time(latest)}  {count}{tried}"
    )


def _version_line(resource: Resource) -> str:
    parent = "" if resource.parent is None else f"from @{resource.parent}"
    line = f"@{resource.version:<4} {resource.status:<9}  {parent:<10}  {resource.author}, {_time(resource)}  {_scores(resource.scores)}"
    return line.rstrip() + (f"\n      {resource.note}" if resource.note else "")


def _candidates(versions: Sequence[Resource]) -> Sequence[Resource]:
    return [one for one in versions if one.status is ResourceStatus.CANDIDATE]


def _scores(scores: Mapping[str, JSON]) -> str:
    """What was measured, in one line: ``val 0.75``, and by run ``run-1 (val 0.75, test 0.7)``."""
    return ", ".join(
        f"{name} ({_scores(value)})" if isinstance(value, Mapping) else f"{name} {_score(value)}"
        for name, value in scores.items()
    )


def _score(value: JSON) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _time(resource: Resource) -> str:
    return datetime.fromtimestamp(resource.created_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _say(exchanged: Sequence[Exchanged], as_json: bool, *, would: bool = False) -> None:
    if as_json:
        typer.echo(_json([asdict(one) | {"path": str(one.path)} for one in exchanged]))
        return
    for one in exchanged:
        if one.outcome is Outcome.BEHIND:
            typer.echo(f"{one.path}: behind; {one.name}@{one.version} in the store is newer and stays. Export it.")
        elif one.outcome is not Outcome.UNCHANGED:
            typer.echo(f"{one.path}: {'would be ' if would else ''}{one.outcome}, {one.name}@{one.version}")
    unchanged = sum(one.outcome is Outcome.UNCHANGED for one in exchanged)
    if unchanged or not exchanged:
        typer.echo(f"{unchanged} unchanged" if exchanged else "no prompts")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)
