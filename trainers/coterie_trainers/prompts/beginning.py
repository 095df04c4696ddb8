"""What a run begins with: which prompts are tuned, and what they say now.

A prompt begins as the configuration's text or file, else as the version that is active in the store, else as what its role
really sends: then the team plays a few tasks as it is. Examples begin empty. What was found is written down, so that a resumed run begins alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coterie.assembly import message_text
from coterie.episodes import Episode
from coterie.errors import ConfigError, NotFoundError, PromptError
from coterie.prompts import EXAMPLES, SYSTEM, check_template, escape, placeholders
from coterie.prompts.files import read_prompt_file
from coterie.store.base import Store
from coterie.vocabulary import ResourceKind
from coterie_trainers.progress import Progress
from coterie_trainers.prompts.config import OptimizeConfig, PromptSetting
from coterie_trainers.prompts.journal import Journal
from coterie_trainers.prompts.playing import Played
from coterie_trainers.prompts.study import Candidate, TunedPrompt

FIRST_ROLLOUTS = 3
"""Tasks that the team plays as it is, to see what its roles send."""
JOURNAL_KEY = "beginning"


@dataclass(frozen=True, slots=True)
class Beginning:
    """The tuned prompts and their texts."""

    prompts: Mapping[str, TunedPrompt]
    seed: Candidate


class Found:
    """What was found so far: from the journal, the configuration and the store; rollouts may be needed for the rest."""

    def __init__(self, config: OptimizeConfig) -> None:
        self.config = config
        self.prompts: dict[str, TunedPrompt] = {}
        self.texts: dict[str, str] = {}
        self.unknown: dict[str, PromptSetting] = {}
        """Prompts that begin as what their role sends."""

    @property
    def needs_rollouts(self) -> bool:
        """True while only rollouts can tell."""
        return bool(self.unknown) or not self.config.prompts

    def add(self, name: str, setting: PromptSetting, text: str, *, of: str) -> None:
        """Take up a prompt.

        Raises:
            ConfigError: the text has other placeholders than the setting says.
        """
        names = tuple(setting.placeholders) if setting.placeholders is not None else placeholders(text)
        try:
            check_template(text, names, of=of)
        except PromptError as error:
            raise ConfigError(f"prompts.{name}: {error}") from None
        self.prompts[name] = TunedPrompt(name, setting.role_of(name), setting.part_of(name), names)
        self.texts[name] = text

    def beginning(self) -> Beginning:
        """All of it."""
        return Beginning(self.prompts, Candidate(self.texts))


def remembered(journal: Journal) -> Beginning | None:
    """What an earlier process of the run began with."""
    entry = journal.get(JOURNAL_KEY)
    if entry is None:
        return None
    prompts = {
        name: TunedPrompt(name, one["role"], one["part"], tuple(one["placeholders"]))
        for name, one in entry["prompts"].items()
    }
    return Beginning(prompts, Candidate(entry["texts"]))


def remember(journal: Journal, beginning: Beginning) -> Beginning:
    """Write down what the run begins with, and give it."""
    prompts = {
        name: {"role": one.role, "part": one.part, "placeholders": list(one.placeholders)}
        for name, one in beginning.prompts.items()
    }
    journal.write(JOURNAL_KEY, {"prompts": prompts, "texts": dict(beginning.seed.texts)})
    return beginning


async def found_without_rollouts(config: OptimizeConfig, store: Store, folder: Path, progress: Progress) -> Found:
    """What the configuration and the store say.

    Raises:
        ConfigError: a file cannot be read, or a text has other placeholders than its setting.
    """
    found = Found(config)
    for name, setting in config.prompts.items():
        active = await _active_text(store, name)
        if setting.text is not None or setting.file is not None:
            text = setting.text if setting.text is not None else _read(name, folder / str(setting.file))
            found.add(name, setting, text, of="its text")
            if active is not None and active != text:
                progress.warn(
                    f"prompts.{name}: the run begins with the configured text, not with the one active in the store."
                )
        elif active is not None:
            found.add(name, setting, active, of="the active version")
        elif setting.part_of(name) == EXAMPLES:
            found.add(name, setting, "", of="no examples")
        else:
            found.unknown[name] = setting
    return found


def complete(found: Found, played: Sequence[Played], progress: Progress) -> Beginning:
    """Take the missing texts from what the roles sent.

    Raises:
        ConfigError: no rollout succeeded, or a role made no call, sends no system text or a different one each time.
    """
    episodes = [each.episode for each in played if each.episode.turns]
    if not episodes:
        reasons = "; ".join(dict.fromkeys(each.rollout.reason or "it made no LLM call" for each in played))
        raise ConfigError(f"None of the first {len(played)} rollouts shows a call of the team: {reasons}")
    sent = _system_texts(episodes)
    for name, setting in found.unknown.items():
        role = setting.role_of(name)
        if setting.part_of(name) != SYSTEM:
            raise ConfigError(
                f"prompts.{name}: give its text or file; only a system prompt is taken from what the role sends."
            )
        found.add(name, setting, _the_one_text(name, role, sent), of="what the role sends")
    if not found.config.prompts:
        for role in sent:
            try:
                found.add(role, PromptSetting(role=role), _the_one_text(role, role, sent), of="what the role sends")
            except ConfigError as error:
                progress.warn(f"The role {role!r} is not tuned. {error}")
        if not found.prompts:
            raise ConfigError("There is no prompt to tune: name them under 'prompts', each with its text.")
        progress.note(f"tuning the system prompts of {', '.join(found.prompts)}, as they were sent")
    return found.beginning()


def check_roles(prompts: Mapping[str, TunedPrompt], episodes: Sequence[Episode], progress: Progress) -> None:
    """Refuse prompts of roles that never act, and say which roles have none.

    Raises:
        ConfigError: a prompt's role made no call, or none of the prompts reached a call.
    """
    acted = list(dict.fromkeys(role for episode in episodes for role in episode.roles))
    for name, prompt in prompts.items():
        if prompt.role not in acted:
            raise ConfigError(
                f"prompts.{name}: the role {prompt.role!r} made no call in {len(episodes)} rollouts; those that did: "
                f"{', '.join(map(repr, acted)) or 'none'}. Correct its 'role', or say under 'agents' which agent plays it."
            )
    used = Counter(used for episode in episodes for turn in episode.turns for used in _prompts_of(turn))
    unused = [name for name in prompts if not used[name]]
    if len(unused) == len(prompts):
        raise ConfigError(
            f"No call of the team used a tuned prompt ({', '.join(prompts)}) in {len(episodes)} rollouts, so changing them "
            "changes nothing. Does the team make its calls through a client that Coterie captures? `coterie doctor` says what it sees."
        )
    for name in unused:
        progress.warn(
            f"prompts.{name}: no call of the role {prompts[name].role!r} used it in {len(episodes)} rollouts: changing it "
            "changes nothing. Is its 'part' right?"
        )
    without = [role for role in acted if all(prompt.role != role for prompt in prompts.values())]
    if without:
        progress.note(f"not tuned: the prompts of {', '.join(without)}")


def _prompts_of(turn: object) -> list[str]:
    """The names of the prompts that a turn was made with."""
    parts = getattr(turn, "prompt_parts", None) or {}
    own = getattr(turn, "prompt_name", None)
    return [*([own] if own else []), *(name for name, _ in parts.values())]


def _system_texts(episodes: Sequence[Episode]) -> Mapping[str, Sequence[str]]:
    """Role → the different system texts that it sent, in order of their first; none where a role sends none."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for episode in episodes:
        for turn in episode.turns:
            system = [one for one in turn.messages if one.get("role") in ("system", "developer")]
            found[turn.role].update({message_text(one): None for one in system[:1]})
    return {role: [text for text in texts if text] for role, texts in found.items()}


def _the_one_text(name: str, role: str, sent: Mapping[str, Sequence[str]]) -> str:
    if role not in sent:
        raise ConfigError(
            f"prompts.{name}: the role {role!r} made no call in the first rollouts; those that did: "
            f"{', '.join(map(repr, sent))}. Correct its 'role', or say under 'agents' which agent plays it."
        )
    texts = sent[role]
    if not texts:
        raise ConfigError(
            f"prompts.{name}: the role {role!r} sends no system text, so there is none to begin with. Give it one: "
            f"prompts.{name}.text or .file."
        )
    if len(texts) > 1:
        raise ConfigError(
            f"prompts.{name}: the role {role!r} sent {len(texts)} different system texts, so none of them is its prompt; two "
            f"begin {texts[0][:60]!r} and {texts[1][:60]!r}. Give the text, with {{{{placeholders}}}} for what differs, and "
            f'ask for it with coterie.prompt("{name}", …).'
        )
    return escape(texts[0])


async def _active_text(store: Store, name: str) -> str | None:
    try:
        resource = await store.get_resource(name)
    except NotFoundError:
        return None
    text = resource.content.get("text")
    return text if resource.kind is ResourceKind.PROMPT and isinstance(text, str) else None


def _read(name: str, path: Path) -> str:
    """The text in a file: one that ``coterie prompts export`` wrote, or one with the text alone."""
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")
        if text.startswith("---\n"):
            text = read_prompt_file(path, name).text
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts.{name}.file: {path} cannot be read: {error}") from None
    except PromptError as error:
        raise ConfigError(f"prompts.{name}.file: {error}") from None
    if not text.strip():
        raise ConfigError(f"prompts.{name}.file: {path} is empty.")
    return text
