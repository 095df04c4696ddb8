"""Assertions of the suite read well only if pytest rewrites them."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("coterie.testing.conformance")
