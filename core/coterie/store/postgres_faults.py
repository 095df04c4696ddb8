"""What PostgreSQL says when it cannot go on, told as a person needs it."""

from __future__ import annotations

import psycopg

from coterie.errors import StoreError, StoreUnavailableError

_CONFLICTS = ("40001", "40P01")
"""Serialization failure and deadlock: the transaction was rolled back, and may be tried again."""

_WHAT_TO_DO = {
    "28": "the server refused this user or password. Give the password in PGPASSWORD or ~/.pgpass, and check the user.",
    "3D000": "the server has no such database. Create it first: `createdb NAME`.",
    "42501": "this user lacks a right. Let it own the database, or grant it: "
    "`GRANT USAGE, CREATE ON SCHEMA public TO …`.",
    "53100": "the server's disk is full. Free some space there, then try again.",
    "53200": "the server has no memory left. Try again, or give it more.",
    "53300": "the server takes no more connections. Raise its max_connections, or let each store use fewer: "
    "?connections=4 in its address.",
    "53": "the server lacks something that it needs. Look into its log.",
    "25006": "it is read-only: a standby, or set so. Use the primary; with several hosts in the address "
    "?target_session_attrs=read-write finds it.",
    "55P03": "another transaction has held a lock for too long. `SELECT * FROM pg_stat_activity` on the server names "
    "it; wait for it or end it, then try again.",
    "57014": "the server cancelled the statement, because somebody asked for it or because of its statement_timeout.",
    "57P03": "the server is starting or stopping. Try again in a moment.",
    "57P01": "the server was stopped or ended this connection. Try again when it is up.",
    "57P02": "the server crashed and is starting again. Try again in a moment.",
    "57": "somebody intervened on the server. Look into its log, then try again.",
    "25P03": "the server ended the connection because this program stood still in the middle of a transaction.",
    "58": "the server's disk gave an error. Look into its log.",
    "XX": "the server found its data damaged, or has a fault. Look into its log, and restore a backup if need be.",
    "42P01": "a table is missing. Was it dropped, or is the search path another one than before?",
    "08": "the connection was lost. Try again when the server is up.",
}
"""SQLSTATE, or its class, to what was wrong and what to do."""

_WHAT_LIBPQ_SAYS = {
    "too many c": _WHAT_TO_DO["53300"],
    "connection slots": _WHAT_TO_DO["53300"],
    "password": _WHAT_TO_DO["28"],
    'role "': _WHAT_TO_DO["28"],
    "does not exist": _WHAT_TO_DO["3D000"],
    "pg_hba.conf": "the server does not let this user in from here. Add a line to its pg_hba.conf.",
    "authentication failed": _WHAT_TO_DO["28"],
    "is not permitted to log in": _WHAT_TO_DO["28"],
    "starting up": _WHAT_TO_DO["57P03"],
    "shutting down": _WHAT_TO_DO["57P03"],
    "recovery mode": _WHAT_TO_DO["57P03"],
    "not yet accepting": _WHAT_TO_DO["57P03"],
    "session is read-only": _WHAT_TO_DO["25006"],
    "SSL": "no secure connection could be made. Check sslmode and the certificates.",
    "certificate": "no secure connection could be made. Check sslmode and the certificates.",
    "Connection refused": "nothing listens there. Start the server, or check host and port.",
    "No such file": "nothing listens there. Start the server, or check host and port.",
    "resolve host": "its host is not known. Check the name.",
    "translate host name": "its host is not known. Check the name.",
    "timeout": "it did not answer in time. Check host, port and firewall.",
    "timed out": "it did not answer in time. Check host, port and firewall.",
}
"""Parts of what is said when no connection can be made, for which there is no SQLSTATE."""


def is_conflict(error: psycopg.Error) -> bool:
    """True when the transaction stood in another's way and may simply be tried again."""
    return error.sqlstate in _CONFLICTS


def is_lost_connection(error: psycopg.Error) -> bool:
    """True when the connection broke in the middle."""
    state = error.sqlstate
    if state is not None:
        return state.startswith("08") or state in ("57P01", "57P02", "57P03", "57P05", "25P03")
    return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))


def is_wrong_value(error: psycopg.Error) -> bool:
    """True when only what was to be written was wrong, and the database as a whole is well."""
    if error.sqlstate is None:
        # What the driver itself refuses to send, such as an object of some class.
        return isinstance(error, (psycopg.DataError, psycopg.ProgrammingError, psycopg.NotSupportedError))
    # 54: beyond a limit, such as an id too long for an index.
    return error.sqlstate[:2] in ("22", "23", "54")


def unavailable(error: psycopg.Error, where: str, *, outcome_unknown: bool = False) -> StoreUnavailableError:
    """The error to raise for a fault of the database at ``where``."""
    said = _first_line(error)
    state = error.sqlstate or ""
    if state:
        advice = _WHAT_TO_DO.get(state) or _WHAT_TO_DO.get(state[:2]) or "it refused. Look into its log."
    else:
        advice = _advice_for(said)
    if outcome_unknown:
        kept = "It is not known whether the change was made: look before it is made again."
    else:
        kept = "Nothing was changed."
    return StoreUnavailableError(f"store {where}: {advice} {kept} (PostgreSQL: {said}{', ' + state if state else ''})")


def refused(error: Exception, where: str) -> StoreError:
    """The error to raise when the database took no offence but a value was wrong, such as a number beyond 64 bits."""
    cause = getattr(error, "orig", None) or error
    return StoreError(
        f"store {where}: a value cannot be stored: {type(cause).__name__}: {_first_line(cause)}. Check the types of "
        "the record's fields against coterie.vocabulary. Nothing was written."
    )


def _advice_for(said: str) -> str:
    return next(
        (advice for part, advice in _WHAT_LIBPQ_SAYS.items() if part in said),
        "the connection was lost or could not be made. Check that the server is up.",
    )


def _first_line(error: BaseException) -> str:
    # The further lines quote rows: what users write does not belong into a log.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
