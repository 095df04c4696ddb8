"""Named, versioned resources: their content is published once and never changed, their status and scores may."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from sqlalchemy import Connection, func, select, update

from coterie.errors import NotFoundError, StoreError
from coterie.store import records
from coterie.store.locks import lock_name
from coterie.store.statements import in_portions
from coterie.store.tables import RESOURCES
from coterie.store.writer import Transaction
from coterie.vocabulary import JSON, Resource, ResourceKind, ResourceStatus


def publish(transaction: Transaction, resource: Resource) -> Resource:
    """Add the next version. A version that the caller gives must be that one, or be published already, the same."""
    connection = transaction.connection
    lock_resources(connection, [resource.name])
    newest = _newest(connection, resource.name)
    if newest is not None and newest.kind is not resource.kind:
        raise StoreError(
            f"resource {resource.name!r} is a {newest.kind}; it cannot get a version of kind {resource.kind}. "
            "Publish under another name."
        )
    next_version = 1 if newest is None else newest.version + 1
    if resource.version not in (0, next_version):
        published = _version(connection, resource.name, resource.version)
        # Somebody may have marked it since.
        if published is not None and replace(published, status=resource.status, scores=resource.scores) == resource:
            return published
        raise StoreError(
            f"resource {resource.name!r}: version {resource.version} cannot be published, the next one is "
            f"{next_version}. Leave version at 0 to get the next one."
        )
    if resource.status is ResourceStatus.ACTIVE:
        _retire_active(connection, resource.name)
    row = records.resource_row(replace(resource, version=next_version))
    connection.execute(RESOURCES.insert(), row)
    return get_resource(connection, resource.name, next_version)


def mark(
    transaction: Transaction,
    name: str,
    version: int,
    status: ResourceStatus | None,
    scores: Mapping[str, JSON] | None,
) -> Resource:
    """Change the status of a version, and add to its scores."""
    connection = transaction.connection
    lock_resources(connection, [name])
    resource = get_resource(connection, name, version)
    if status is not None:
        resource = replace(resource, status=ResourceStatus(status))
    if scores is not None:
        resource = replace(resource, scores={**resource.scores, **scores})
    if status is ResourceStatus.ACTIVE:
        _retire_active(connection, name)
    row = records.resource_row(resource)
    connection.execute(
        update(RESOURCES)
        .where(RESOURCES.c.name == name, RESOURCES.c.version == version)
        .values(status=row["status"], scores=row["scores"])
    )
    return get_resource(connection, name, version)


def get_resource(connection: Connection, name: str, version: int | None) -> Resource:
    """A version, the active one by default."""
    resource = _active(connection, name) if version is None else _version(connection, name, version)
    if resource is not None:
        return resource
    raise NotFoundError(_what_there_is(connection, name, version))


def list_resources(
    connection: Connection, kind: ResourceKind | None, name: str | None, status: ResourceStatus | None
) -> tuple[Resource, ...]:
    """The active version of each, or the newest, by name; with ``name`` or ``status`` all versions that fit."""
    statement = select(RESOURCES)
    if kind is not None:
        statement = statement.where(RESOURCES.c.kind == ResourceKind(kind).value)
    if name is not None:
        statement = statement.where(RESOURCES.c.name == name)
    if status is not None:
        statement = statement.where(RESOURCES.c.status == ResourceStatus(status).value)
    if name is None and status is None:
        newest = select(RESOURCES.c.name, func.max(RESOURCES.c.version).label("version")).group_by(RESOURCES.c.name)
        active = select(RESOURCES.c.name, RESOURCES.c.version).where(_IS_ACTIVE).subquery()
        shown = newest.subquery()
        statement = (
            statement.join(shown, shown.c.name == RESOURCES.c.name)
            .outerjoin(active, active.c.name == RESOURCES.c.name)
            .where(RESOURCES.c.version == func.coalesce(active.c.version, shown.c.version))
        )
    rows = connection.execute(statement.order_by(RESOURCES.c.name, RESOURCES.c.version))
    return tuple(records.resource_of(row) for row in rows)


def lock_resources(connection: Connection, names: Collection[str]) -> None:
    """Wait until no other transaction publishes or marks resources of these names, and keep others from it."""
    for name in sorted(set(names)):
        lock_name(connection, f"resource {name}")


def retire_all_but_the_last_active(connection: Connection, names: Collection[str]) -> None:
    """Where several versions of a name are active, the highest stays so."""
    later = RESOURCES.alias("later")
    outdone = (
        select(later.c.version)
        .where(
            later.c.name == RESOURCES.c.name,
            later.c.status == ResourceStatus.ACTIVE.value,
            later.c.version > RESOURCES.c.version,
        )
        .exists()
    )
    for some in in_portions(names):
        connection.execute(
            update(RESOURCES)
            .where(RESOURCES.c.name.in_(some), _IS_ACTIVE, outdone)
            .values(status=ResourceStatus.RETIRED.value)
        )


_IS_ACTIVE = RESOURCES.c.status == ResourceStatus.ACTIVE.value


def _retire_active(connection: Connection, name: str) -> None:
    connection.execute(
        update(RESOURCES).where(RESOURCES.c.name == name, _IS_ACTIVE).values(status=ResourceStatus.RETIRED.value)
    )


def _active(connection: Connection, name: str) -> Resource | None:
    row = connection.execute(select(RESOURCES).where(RESOURCES.c.name == name, _IS_ACTIVE)).first()
    return None if row is None else records.resource_of(row)


def _version(connection: Connection, name: str, version: int) -> Resource | None:
    statement = select(RESOURCES).where(RESOURCES.c.name == name, RESOURCES.c.version == version)
    row = connection.execute(statement).first()
    return None if row is None else records.resource_of(row)


def _newest(connection: Connection, name: str) -> Resource | None:
    statement = select(RESOURCES).where(RESOURCES.c.name == name).order_by(RESOURCES.c.version.desc()).limit(1)
    row = connection.execute(statement).first()
    return None if row is None else records.resource_of(row)


def _what_there_is(connection: Connection, name: str, version: int | None) -> str:
    newest = _newest(connection, name)
    if newest is not None and version is None:
        return (
            f"resource {name!r} has no active version; there are 1 to {newest.version}, and the newest is "
            f"{newest.status}. Name a version, or make one active: Store.mark({name!r}, {newest.version}, "
            "ResourceStatus.ACTIVE)."
        )
    if newest is not None:
        return f"resource {name!r} has no version {version}; there are 1 to {newest.version}."
    names = connection.execute(select(RESOURCES.c.name).distinct().order_by(RESOURCES.c.name).limit(20)).scalars().all()
    there_are = "there are " + ", ".join(repr(known) for known in names) if names else "none has been published yet"
    return f"no resource {name!r} in this store; {there_are}."
