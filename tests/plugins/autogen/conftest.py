"""A scripted model behind a real socket, and capture switched on."""

from __future__ import annotations

from docs_pages import play_page
from scripted_servers import recording, serve

__all__ = ["play_page", "recording", "serve"]
