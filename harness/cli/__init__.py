"""The command line: parse, call, print, exit code. A table of contents of what the suite does."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

from ..exit_codes import Exit

from . import sweeps, gating, judging, baseline, machine, implementations, reading  # isort: skip - the order in which --help lists them
from .app import app

__all__ = ["app", "baseline", "gating", "implementations", "judging", "machine", "main", "reading", "sweeps"]


def main() -> None:
    """The console script's entry."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.PASS)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt
