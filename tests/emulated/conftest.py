"""These tests need packages that only `make test-emulated` installs; anywhere else there is nothing to collect."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest

_INSTALLED = {each.name.lower().replace("_", "-") for each in importlib.metadata.distributions()}
collect_ignore_glob = [] if {"flash-attn", "xformers", "triton"} <= _INSTALLED else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The packages warn of their own deprecations when they are imported."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default"))
