"""A team of agents records itself: the LangChain and LangGraph plugin.

``coterie.instrument()`` finds ``LangChainInstrumentor`` by its entry point. By hand:
``LangChainInstrumentor().instrument()`` for every run of the process, or
``config={"callbacks": [CoterieCallbackHandler()]}`` for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coterie_langchain.handler import CoterieCallbackHandler as CoterieCallbackHandler
    from coterie_langchain.instrumentor import LangChainInstrumentor as LangChainInstrumentor

__all__ = ["CoterieCallbackHandler", "LangChainInstrumentor"]


def __getattr__(name: str) -> Any:
    # The handler imports langchain-core, which takes a while: only who asks for it pays.
    if name == "LangChainInstrumentor":
        from coterie_langchain.instrumentor import LangChainInstrumentor

        return LangChainInstrumentor
    if name == "CoterieCallbackHandler":
        from coterie_langchain.handler import CoterieCallbackHandler

        return CoterieCallbackHandler
    raise AttributeError(f"module 'coterie_langchain' has no attribute {name!r}")
