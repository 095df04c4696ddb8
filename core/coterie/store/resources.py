"""Named, versioned resources: published once, never changed."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, func, select

from coterie.errors import NotFoundError, StoreError
from coterie.store import records
from coterie.store.locks import lock_name
from coterie.store.tables import RESOURCES
from coterie.store.writer import Transaction
from coterie.vocabulary import Resource, ResourceKind


def publish(transaction: Transaction, resource: Resource) -> Resource:
    """Add the next version. A version that the caller gives must be that one, or be published already, the same."""
    connection = transaction.connection
    lock_name(connection, f"resource {resource.name}")
    latest = _find(connection, resource.name, None)
    if latest is not None and latest.kind is not resource.kind:
        raise StoreError(
            f"resource {resource.name!r} is a {latest.kind}; it cannot get a version of kind {resource.kind}. "
            "Publish under another name."
        )
    next_version = 1 if latest is None else latest.version + 1
    if resource.version not in (0, next_version):
        published = _find(connection, resource.name, resource.version)
        if published is not None and published == resource:
            return published
        raise StoreError(
            f"resource {resource.name!r}: version {resource.version} cannot be published, the next one is "
            f"{next_version}. Leave version at 0 to get the next one."
        )
    row = records.resource_row(replace(resource, version=next_version))
    connection.execute(RESOURCES.insert(), row)
    return get_resource(connection, resource.name, next_version)


def get_resource(connection: Connection, name: str, version: int | None) -> Resource:
    """A version, the latest by default."""
    resource = _find(connection, name, version)
    if resource is not None:
        return resource
    raise NotFoundError(_what_there_is(connection, name, version))


def list_resources(connection: Connection, kind: ResourceKind | None, name: str | None) -> tuple[Resource, ...]:
    """The latest version of each, by name; with ``name`` all versions of that one, oldest first."""
    statement = select(RESOURCES)
    if kind is not None:
        statement = statement.where(RESOURCES.c.kind == kind.value)
    if name is not None:
        statement = statement.where(RESOURCES.c.name == name).order_by(RESOURCES.c.version)
    else:
        latest = (
            select(RESOURCES.c.name, func.max(RESOURCES.c.version).label("version"))
            .group_by(RESOURCES.c.name)
            .subquery()
        )
        statement = statement.join(
            latest, (latest.c.name == RESOURCES.c.name) & (latest.c.version == RESOURCES.c.version)
        ).order_by(RESOURCES.c.name)
    return tuple(records.resource_of(row) for row in connection.execute(statement))


def _find(connection: Connection, name: str, version: int | None) -> Resource | None:
    statement = select(RESOURCES).where(RESOURCES.c.name == name)
    if version is not None:
        statement = statement.where(RESOURCES.c.version == version)
    row = connection.execute(statement.order_by(RESOURCES.c.version.desc()).limit(1)).first()
    return None if row is None else records.resource_of(row)


def _what_there_is(connection: Connection, name: str, version: int | None) -> str:
    latest = _find(connection, name, None)
    if latest is not None:
        return f"resource {name!r} has no version {version}; there are 1 to {latest.version}."
    names = connection.execute(select(RESOURCES.c.name).distinct().order_by(RESOURCES.c.name).limit(20)).scalars().all()
    there_are = "there are " + ", ".join(repr(known) for known in names) if names else "none has been published yet"
    return f"no resource {name!r} in this store; {there_are}."
