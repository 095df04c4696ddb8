"""``LangChainInstrumentor``: the callback handler for every LangChain and LangGraph run of the process."""

from __future__ import annotations

from collections.abc import Collection
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from coterie.roles import remove_acting_source

if TYPE_CHECKING:
    from coterie_langchain.handler import CoterieCallbackHandler


class LangChainInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Installs and removes the handler. The user's code and its own callbacks stay as they are."""

    _variable: ContextVar[CoterieCallbackHandler | None] | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """What must be installed for this plugin to be of use."""
        return ("langchain-core >= 1.0",)

    def _instrument(self, **_: Any) -> None:
        from langchain_core.tracers.context import register_configure_hook

        from coterie_langchain.handler import CoterieCallbackHandler

        # The handler is the variable's default, since a value that is set does not reach threads started later.
        handler = CoterieCallbackHandler()
        variable: ContextVar[CoterieCallbackHandler | None] = ContextVar("coterie_langchain_handler", default=handler)
        # With the class given, LangChain leaves a run alone that has such a handler from the user already.
        register_configure_hook(variable, inheritable=True, handle_class=CoterieCallbackHandler)
        self._variable = variable

    def _uninstrument(self, **_: Any) -> None:
        from langchain_core.tracers import context

        from coterie_langchain.identity import acting_in_running_code
        from coterie_langchain.supersteps import unwatch_supersteps

        variable, self._variable = self._variable, None
        if variable is None:
            return
        context._configure_hooks[:] = [hook for hook in context._configure_hooks if hook[0] is not variable]
        remove_acting_source(acting_in_running_code)
        unwatch_supersteps()
        handler = variable.get()
        if handler is not None:
            handler.retire()
