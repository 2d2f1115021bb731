"""These tests need the extra `cpu`, which `make test-packages` installs; anywhere else there is nothing to collect."""

from __future__ import annotations

import importlib.util

_NEEDED = ("onnxruntime", "onnx", "openvino", "jax")
collect_ignore_glob = [] if all(importlib.util.find_spec(name) for name in _NEEDED) else ["test_*.py"]
