"""The hook in LiteLLM's ``completion`` and ``acompletion``, streamed or not.

LiteLLM reaches some providers through the OpenAI SDK, whose hook sees the call, and most others by itself. Here a call of
a role with an endpoint is turned to that as one that goes through the OpenAI SDK. Any other gets headers that say whose
it is, and the role's prompts and sampling; what nobody saw on the wire is recorded from what LiteLLM gives back.
"""

from __future__ import annotations

import contextvars
import inspect
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from functools import wraps
from importlib import import_module
from threading import Lock
from typing import Any

from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from wrapt import ObjectProxy

from coterie.announced import AnnouncedCall, announce, announced_call
from coterie.capture.answers import ChoicesAssembler, read_answer
from coterie.capture.api import Api
from coterie.capture.call import identity_headers
from coterie.capture.faults import guarded, note_fault
from coterie.capture.prompting import with_prompts
from coterie.capture.rewrite import endpoint_key, with_sampling
from coterie.prompts.versions import UsedPrompts
from coterie.roles import Acting, child_identity, current_acting
from coterie.scope import AttemptScope, current_scope
from coterie.uncaptured import ToldAnswer, ToldCall, record_told_answer, record_told_error
from coterie.vocabulary import new_id, now_ns


class LiteLLMHook:
    """The hook. All of LiteLLM's ways lead through one inner function, which its decorator holds in a closure: there it
    is replaced, so that names bound by ``from litellm import completion`` long before are hooked as well.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._replaced: tuple[Any, Any, Any] | None = None
        """The closure's cell, what was in it, what is."""

    def install(self) -> None:
        """Replace the inner function. A second call does nothing."""
        with self._lock:
            if self._replaced is None:
                cell = _cell_of_original(import_module("litellm.main").completion)
                original = cell.cell_contents
                cell.cell_contents = ours = _hooked(original)
                self._replaced = cell, original, ours

    def uninstall(self) -> None:
        """Put LiteLLM's own function back. A second call does nothing."""
        with self._lock:
            if self._replaced is not None:
                cell, original, ours = self._replaced
                ours.off = True
                # Somebody may have wrapped ours since: theirs stays, and finds ours switched off.
                if cell.cell_contents is ours:
                    cell.cell_contents = original
                self._replaced = None


hook = LiteLLMHook()


def _cell_of_original(function: Any) -> Any:
    while function is not None:
        names = function.__code__.co_freevars
        if "original_function" in names:
            return function.__closure__[names.index("original_function")]
        function = getattr(function, "__wrapped__", None)
    raise LookupError("litellm.completion is not built as in the versions that Coterie knows")


def _hooked(original: Callable[..., Any]) -> Any:
    parameters = list(inspect.signature(original).parameters)

    @wraps(original)
    def completion(*args: Any, **kwargs: Any) -> Any:
        call = None if completion.off else _begun(dict(zip(parameters, args, strict=False)) | kwargs)  # type: ignore[attr-defined]
        if call is None:
            return original(*args, **kwargs)
        with_announcement = call.announced_here()
        try:
            result = original(**call.arguments)
        except BaseException as error:
            call.failed(error)
            raise
        finally:
            with_announcement()
        return call.awaited(result) if inspect.iscoroutine(result) else call.gave(result)

    completion.off = False  # type: ignore[attr-defined]
    return completion


def _begun(arguments: dict[str, Any]) -> _Call | None:
    try:
        return _Call(arguments) if is_instrumentation_enabled() else None
    except Exception:  # noqa: BLE001 - the call goes on as the user wrote it
        note_fault("A call of LiteLLM could not be recorded and goes out as it is")
        return None


class _Call:
    """One call of ``litellm.completion``."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        framework = announced_call()
        acting = current_acting() or Acting(child_identity("agent"))
        identity = framework.identity if framework is not None else acting.identity
        self.arguments = arguments
        """What LiteLLM gets. Changed here, in a mapping of our own; the user's objects stay as they are."""
        self._scope: AttemptScope | None = current_scope()
        self._context = contextvars.copy_context()
        self._id = new_id("ca")
        self._ended = Lock()
        self._announced = framework or AnnouncedCall(identity, acting.span)
        self._records = framework is None
        """False where a framework's plugin announced the call: it records what capture does not see."""
        model = arguments.get("model")
        self._rewrite(identity.role)
        self._told = ToldCall(
            announced=self._announced,
            start_ns=now_ns(),
            messages=lambda: arguments.get("messages") or [],
            model=model if isinstance(model, str) else None,
            provider=model.partition("/")[0] if isinstance(model, str) and "/" in model else None,
            parameters=arguments,
            tools=arguments.get("tools") or (),
            call_id=self._id,
            prompts=self._used,
        )

    def announced_here(self) -> Callable[[], None]:
        """Announce the call in this context; gives what ends the announcement."""
        if not self._records:
            return lambda: None
        self._announced.ended = False
        announce(self._announced)

        def over() -> None:
            self._announced.ended = True

        return over

    async def awaited(self, result: Coroutine[Any, Any, Any]) -> Any:
        """What comes of an ``acompletion``, which is awaited in another context than it was made in."""
        over = self.announced_here()
        try:
            given = await result
        except BaseException as error:
            self.failed(error)
            raise
        finally:
            over()
        return self.gave(given)

    def gave(self, result: Any) -> Any:
        """Record an answer, or a stream while the user reads it."""
        if not self._records or self._announced.captured:
            return result
        if hasattr(result, "choices"):
            self.answered(result)
            return result
        if not hasattr(result, "__next__") and not hasattr(result, "__anext__"):
            return result
        try:
            heard = _HeardStream(result, _Ear(self))
            if self._scope is not None:
                self._scope.open_call(self._id, heard._self_ear.end)
        except Exception:  # noqa: BLE001 - the user gets LiteLLM's own stream
            note_fault("A stream of LiteLLM could not be recorded")
            return result
        return heard

    def answered(self, body: Any) -> None:
        """End the call with what came back, once."""
        if self._first_to_end():
            self._context.run(_record_answer, self._told, body)

    def failed(self, error: BaseException) -> None:
        """End the call with LiteLLM's error, once."""
        if self._records and self._first_to_end():
            self._context.run(_record_error, self._told, error)

    def _first_to_end(self) -> bool:
        if self._scope is not None:
            self._scope.close_call(self._id)
        return self._ended.acquire(blocking=False)

    def _rewrite(self, role: str) -> None:
        arguments, scope = self.arguments, self._scope
        endpoint = scope.endpoint_for(role) if scope else None
        self._used: UsedPrompts | None = None
        """What was put in here; None for what the program sends, or the hook in the OpenAI SDK."""
        if endpoint is not None:
            # The hook in the OpenAI SDK does the rest: model, prompts, sampling, headers.
            for name in ("base_url", "custom_llm_provider", "api_version", "client"):
                arguments.pop(name, None)
            arguments["model"] = f"openai/{endpoint.model}"
            arguments["api_base"], arguments["api_key"] = endpoint.base_url, endpoint_key(endpoint)
            return
        prompts = scope.prompts_of(role) if scope is not None else None
        if scope is not None and prompts is not None:
            self._used = with_prompts(Api.CHAT, arguments, prompts, handed_out=scope.handed_out)
        if scope is not None:
            with_sampling(Api.CHAT, arguments, scope.sampling)
        arguments["extra_headers"] = {
            **(arguments.get("extra_headers") or {}),
            **identity_headers(self._id, role, scope),
        }


class _Ear:
    """Puts the chunks of a stream together."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._assembler = ChoicesAssembler()

    @guarded
    def hear(self, chunk: Any) -> None:
        self._assembler.add(_plain(chunk))

    @guarded
    def end(self) -> None:
        self._call.answered(self._assembler.body())

    def failed(self, error: BaseException) -> None:
        self._call.failed(error)


class _HeardStream(ObjectProxy):  # type: ignore[misc, type-arg, unused-ignore]
    """LiteLLM's own stream, sync or async, heard while it is read. ``_self_`` marks what is the proxy's own."""

    def __init__(self, stream: Any, ear: _Ear) -> None:
        super().__init__(stream)
        self._self_ear = ear
        weakref.finalize(self, ear.end)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            chunk = next(self.__wrapped__)
        except StopIteration:
            self._self_ear.end()
            raise
        except BaseException as error:
            self._self_ear.failed(error)
            raise
        self._self_ear.hear(chunk)
        return chunk

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            chunk = await anext(self.__wrapped__)
        except StopAsyncIteration:
            self._self_ear.end()
            raise
        except BaseException as error:
            self._self_ear.failed(error)
            raise
        self._self_ear.hear(chunk)
        return chunk


@guarded
def _record_answer(told: ToldCall, body: Any) -> None:
    answer = read_answer(Api.CHAT, _plain(body))
    record_told_answer(
        told,
        ToldAnswer(
            messages=answer.messages,
            text=answer.text,
            id=answer.id,
            model=answer.model,
            finish_reasons=answer.finish_reasons,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            prompt_ids=answer.prompt_ids,
            response_ids=answer.response_ids,
            logprobs=answer.logprobs,
        ),
    )


@guarded
def _record_error(told: ToldCall, error: BaseException) -> None:
    record_told_error(told, error)


def _plain(value: Any) -> Mapping[str, Any]:
    # LiteLLM's own objects do not always keep to their types, about which pydantic would warn the user.
    plain: Mapping[str, Any] = value.model_dump(warnings=False) if hasattr(value, "model_dump") else value
    return plain
