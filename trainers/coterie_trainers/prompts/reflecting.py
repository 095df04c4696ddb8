"""The reflecting model: any OpenAI-compatible endpoint, through the OpenAI SDK, with what is said kept in the run's journal."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from opentelemetry.instrumentation.utils import suppress_instrumentation

from coterie.errors import BackendError, ConfigError
from coterie_trainers.prompts.budget import Ledger, Usage
from coterie_trainers.prompts.config import Reflection
from coterie_trainers.prompts.costs import CHARACTERS_A_TOKEN, money
from coterie_trainers.prompts.journal import Journal
from coterie_trainers.prompts.study import Messages, ReflectionError

if TYPE_CHECKING:
    import openai

FAILURES_IN_A_ROW = 8
"""After so many questions without a usable answer the run ends: the model is gone, or cannot do it."""
NO_MODEL = (
    "The optimiser asks a model, and the configuration has none. Add the section 'reflection' with base_url, model and, if it "
    "needs one, api_key: env:NAME."
)
NO_KEY = "coterie-no-key"
"""Sent where no key is set."""


class Reflector:
    """Asks the reflecting model. What it answered in an earlier process of the run is taken from the journal."""

    def __init__(self, config: Reflection | None, ledger: Ledger, journal: Journal) -> None:
        self.config = config
        self.ledger = ledger
        self.journal = journal
        self.by_purpose: Counter[str] = Counter()
        """Purpose → questions."""
        self._asked: Counter[str] = Counter()
        self._failures = 0
        self._client: openai.AsyncOpenAI | None = None
        self._slots = asyncio.Semaphore(config.concurrency if config is not None else 1)
        self._pace = asyncio.Lock()
        self._next_start = 0.0

    async def __aenter__(self) -> Self:
        """Make the client.

        Raises:
            ConfigError: the key's variable is not set, or the SDK is not installed.
        """
        config = self.config
        if config is None:
            return self
        try:
            import openai
        except ModuleNotFoundError:
            raise ConfigError(
                'reflection: the OpenAI SDK is not installed. Do: pip install "coterie[prompts]"'
            ) from None
        key = NO_KEY
        if config.api_key is not None:
            variable = config.api_key.removeprefix("env:")
            key = os.environ.get(variable, "")
            if not key:
                raise ConfigError(f"reflection.api_key: the environment variable {variable} is not set.")
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url, api_key=key, max_retries=config.retries, timeout=config.timeout_seconds
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()

    async def ask(self, messages: Messages, purpose: str) -> str:
        """The model's answer.

        Raises:
            BudgetSpentError: there is nothing left for it.
            ReflectionError: it refused, said nothing, or did not answer in time.
            BackendError: it cannot be asked at all.
            ConfigError: none is configured.
        """
        if self.config is None:
            raise ConfigError(NO_MODEL)
        asked = (
            [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(one) for one in messages]
        )
        key = self._key(asked, purpose)
        self.by_purpose[purpose] += 1
        if (known := self.journal.get(key)) is not None:
            self.ledger.reflected(Usage(**known["usage"]), was_asking=False)
            return str(known["answer"])
        self.ledger.take_reflection()
        usage = Usage()
        try:
            async with self._slots:
                await self._wait_for_turn()
                answer, usage = await self._ask(asked)
        except ReflectionError as error:
            self._failures += 1
            usage = Usage(calls=1)
            if self._failures >= FAILURES_IN_A_ROW:
                raise BackendError(
                    f"The reflecting model gave no usable answer {self._failures} times in a row; the last time: {error} "
                    "What was played and answered is kept: the same command goes on from here."
                ) from error
            raise
        finally:
            self.ledger.reflected(usage)
        self._failures = 0
        self.journal.write(
            key,
            {
                "purpose": purpose,
                "answer": answer,
                "usage": {
                    "calls": usage.calls,
                    "input_tokens": usage.input_tokens,
                    "output_tokens": usage.output_tokens,
                    "money": usage.money,
                },
            },
        )
        return answer

    def _key(self, asked: list[dict[str, str]], purpose: str) -> str:
        """Names a question and the how-many-eth time that it is asked."""
        content = json.dumps([asked, purpose], sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(content.encode()).hexdigest()[:32]
        self._asked[digest] += 1
        return f"reflection/{digest}/{self._asked[digest]}"

    async def _wait_for_turn(self) -> None:
        """Keep to ``requests_per_minute``."""
        rate = self.config.requests_per_minute if self.config is not None else None
        if rate is None:
            return
        async with self._pace:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + 60.0 / rate
        await asyncio.sleep(start - now)

    async def _ask(self, asked: list[dict[str, str]]) -> tuple[str, Usage]:
        config, client = self.config, self._client
        if config is None or client is None:
            raise ConfigError("The reflecting model is asked within its block only.")
        import openai

        who = f"The reflecting model {config.model!r} at {config.base_url}"
        try:
            # The team's traces are of the team alone.
            with suppress_instrumentation():
                reply = await client.chat.completions.create(**_request(config, asked))
        except openai.APITimeoutError as error:
            raise ReflectionError(
                f"{who} did not answer within {config.timeout_seconds:g} s, tried {config.retries + 1} times. Raise "
                "reflection.timeout_seconds, or lower reflection.concurrency."
            ) from error
        except openai.APIConnectionError as error:
            raise ReflectionError(f"{who} cannot be reached: {error.__cause__ or error}. Is it running?") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise BackendError(f"{who} refuses to be asked ({error.status_code}): {_said(error)}") from error
        except openai.APIStatusError as error:
            raise ReflectionError(f"{who} answered with status {error.status_code}: {_said(error)}") from error
        except openai.OpenAIError as error:
            raise ReflectionError(f"{who} gave no answer that can be read: {error}") from error
        except ValueError as error:
            raise ReflectionError(f"{who} gave no JSON: {error}") from error
        return _text(reply, who), _usage(reply, config, asked)


def _request(config: Reflection, asked: list[dict[str, str]]) -> dict[str, Any]:
    settings: dict[str, Any] = {"model": config.model, "messages": asked, config.length_parameter: config.max_tokens}
    if config.temperature is not None:
        settings["temperature"] = config.temperature
    return settings


def _text(reply: Any, who: str) -> str:
    choices = getattr(reply, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise ReflectionError(f"{who} answered with something that is no chat completion: {str(reply)[:200]!r}.")
    message, finished = choices[0].message, choices[0].finish_reason
    if getattr(message, "refusal", None):
        raise ReflectionError(f"{who} refused: {message.refusal}")
    if finished == "content_filter":
        raise ReflectionError(f"{who} refused: its content filter ended the answer.")
    text = message.content if isinstance(message.content, str) else ""
    if not text.strip():
        why = " Its tokens ran out; raise reflection.max_tokens." if finished == "length" else ""
        raise ReflectionError(f"{who} answered with no text (finish reason {finished!r}).{why}")
    return text


def _usage(reply: Any, config: Reflection, asked: list[dict[str, str]]) -> Usage:
    given = getattr(getattr(reply, "usage", None), "prompt_tokens", None)
    made = getattr(getattr(reply, "usage", None), "completion_tokens", None)
    if not given and not made:
        given = sum(len(str(message.get("content"))) for message in asked) // CHARACTERS_A_TOKEN
        made = len(str(reply.choices[0].message.content)) // CHARACTERS_A_TOKEN
    return Usage(1, given or 0, made or 0, money(config.price, given or 0, made or 0))


def _said(error: Any) -> str:
    body: Any = error.body
    message = body.get("message") if isinstance(body, Mapping) else None
    return str(message or error.message)[:300]
