"""The hook in the Anthropic SDK."""

from __future__ import annotations

from typing import Any

from anthropic import _base_client
from anthropic._types import Omit

from coterie.capture.api import Api
from coterie.capture.sdk_hook import SdkHook


def _provider(client: Any) -> str:
    name = type(client).__name__
    if "Bedrock" in name:
        return "aws.bedrock"
    return "gcp.vertex_ai" if "Vertex" in name else "anthropic"


hook = SdkHook(_base_client, Omit, (Api.MESSAGES,), _provider)
