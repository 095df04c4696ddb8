"""The errors that Coterie raises on purpose. Each message says what was wrong, where, and what to do."""

from __future__ import annotations


class CoterieError(Exception):
    """Base of all errors that are meant for a person to read; the CLI prints them without a traceback."""


class ConfigError(CoterieError):
    """A configuration file, a setting or an argument is wrong."""


class PromptError(ConfigError):
    """A prompt is no template, lacks a placeholder, has one that nobody fills, or is asked for where there is none."""


class StoreError(CoterieError):
    """The store cannot do what was asked."""


class NotFoundError(StoreError):
    """Nothing in the store has this id, name or version."""


class SchemaVersionError(StoreError):
    """The database was written by another version of Coterie."""


class StoreUnavailableError(StoreError):
    """The database cannot be opened or written: locked, read-only, disk full. Nothing was changed."""


class LeaseLostError(StoreError):
    """The attempt is no longer this worker's: its lease ran out or its rollout was cancelled."""


class RewardError(CoterieError):
    """A reward is no finite number, or is bound to something that does not exist."""


class BackendError(CoterieError):
    """A model server or a trainer process failed or did not answer in time."""


class MismatchError(CoterieError):
    """The log-probabilities that a model server gave are not those that its trainer computes."""


class NothingToTrainError(CoterieError):
    """Step after step gave no usable group: every reward equal, or no trainable call."""


class StoppedByGuardError(CoterieError):
    """The guard ended a run and went back to its last good version."""


class AuditError(CoterieError):
    """An audit found nothing that it could judge: no rollout that repeats, or no replay that is evidence."""
