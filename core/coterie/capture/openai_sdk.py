"""The hook in the OpenAI SDK (2.x and 3.x)."""

from __future__ import annotations

from typing import Any

from openai import _base_client
from openai._types import Omit

from coterie.capture.api import Api
from coterie.capture.sdk_hook import SdkHook


def _provider(client: Any) -> str:
    return "azure.ai.openai" if "Azure" in type(client).__name__ else "openai"


hook = SdkHook(_base_client, Omit, (Api.CHAT, Api.RESPONSES, Api.COMPLETIONS), _provider)
