"""From what a rollout says that it replays, to the recording that its attempt plays again."""

from __future__ import annotations

from coterie.assembly import build_episode
from coterie.errors import ConfigError, NotFoundError
from coterie.replays import Recorded, recorded, replay_of
from coterie.store.base import Store
from coterie.vocabulary import Rollout


async def load_recorded(store: Store, rollout: Rollout) -> Recorded | None:
    """The recording that a rollout plays again; None if it is no replay.

    Raises:
        ConfigError: its metadata are wrong, or the store does not have what it replays.
        StoreUnavailableError: the store cannot be read now.
    """
    replay = replay_of(rollout)
    if replay is None:
        return None
    try:
        (original,) = await store.get_rollouts([replay.rollout_id])
    except NotFoundError as error:
        raise ConfigError(f"Rollout {rollout.id} replays one that the store does not have: {error}") from error
    spans = (await store.get_spans([replay.attempt_id])).get(replay.attempt_id, ())
    if not spans:
        raise ConfigError(f"Rollout {rollout.id} replays attempt {replay.attempt_id}, of which the store has no span.")
    episode = build_episode(original.task_id, replay.attempt_id, original.id, spans, ())
    return recorded(episode, replay, original.mode)
