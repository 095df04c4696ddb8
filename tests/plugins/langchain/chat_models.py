"""LangChain's chat model of a scripted server."""

from __future__ import annotations

from typing import Any

from langchain_openai import ChatOpenAI

from coterie.testing import ScriptedModel


def chat_model(server: ScriptedModel, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model="scripted", base_url=server.base_url, api_key="none", max_retries=0, timeout=30, **settings)
