"""The model gateway: an OpenAI-compatible proxy that knows whose call it is, where it goes, and records it."""

from coterie_server.gateway.app import AGENT, TRAINER, Gateway
from coterie_server.gateway.settings import GatewaySettings, gateway_settings, spool_beside

__all__ = ["AGENT", "TRAINER", "Gateway", "GatewaySettings", "gateway_settings", "spool_beside"]
