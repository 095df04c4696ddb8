"""Secrets that must not be shown: in logs, in messages, in what is kept of spans."""

from __future__ import annotations

import logging
import re

HIDDEN = "…"
SECRET_ATTRIBUTES = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-api-key",
        "api-key",
        "api_key",
        "apikey",
        "openai_api_key",
        "anthropic_api_key",
        "password",
        "passwd",
        "secret",
        "client_secret",
        "access_token",
        "refresh_token",
        "auth_token",
        "x-amz-security-token",
    }
)
"""Last parts of names of attributes whose values are secrets, such as ``http.request.header.authorization``."""


def redacted(text: str) -> str:
    """A text without what looks like a secret: passwords in URLs, tokens of ours, bearer tokens."""
    if "@" in text and "://" in text:
        text = _IN_URL.sub(rf"\1{HIDDEN}@", text)
    if "ct_" in text:
        text = _TOKEN.sub(f"ct_{HIDDEN}", text)
    if "earer " in text or "EARER " in text:
        text = _BEARER.sub(rf"\1{HIDDEN}", text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    return text


def without_password(text: str) -> str:
    """A text of a span without the passwords of URLs in it; the rest is the user's own and stays."""
    if "://" in text and "@" in text:
        return _IN_URL.sub(rf"\1{HIDDEN}@", text)
    return text


def is_secret(name: str) -> bool:
    """True for the name of an attribute whose value is a secret."""
    return name.rpartition(".")[2].lower() in SECRET_ATTRIBUTES


class RedactingFormatter(logging.Formatter):
    """Formats a record of a log, tracebacks among it, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return redacted(super().format(record))


_IN_URL = re.compile(r"(\w://[^\s/@:]*:)[^\s/@]+@")
_TOKEN = re.compile(r"\bct_[A-Za-z0-9_-]{16,}")
_BEARER = re.compile(r"(?i)(\bbearer\s+)[^\s'\",]{8,}")
_PARAMETER = re.compile(
    r"(?i)(\b(?:password|passwd|pwd|secret|token|api_?key|access_key|key|sig|signature)=)[^\s&'\";]+"
)
