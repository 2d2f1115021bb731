"""The edge of every command: its common options, and errors that are stated instead of traced."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ...impls import BrokenImplementationError, OptionError, UnknownImplementationError
from .. import environment
from ..baselines import MissingBaselineError
from ..config import ConfigError, ConfigFileError
from ..exit_codes import Exit
from ..plugin_template import PluginNameError
from ..store import StoreError

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]
PluginOption = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="MODULE", help="Import implementations: a module or a .py file.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the config: protocol.launches=5.")
]
OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="NAME,...", help="Measure only these implementations.")
]


@contextmanager
def stated_errors() -> Iterator[None]:
    """Errors of the user or the disk: what was asked, what is allowed, what to do; never a traceback."""
    try:
        yield
    except (ConfigFileError, StoreError) as error:
        fail(error, Exit.FILES)
    except (ConfigError, environment.DeviceError, UnknownImplementationError, OptionError, PluginNameError) as error:
        fail(error, Exit.USAGE)
    except MissingBaselineError as error:
        fail(error, Exit.NOT_COMPARABLE)
    except BrokenImplementationError as error:
        fail(error, Exit.CELLS_FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None


def fail(error: Exception, code: Exit) -> NoReturn:
    """Say an error on standard error and end with its code."""
    print(f"attnbench: {error}", file=sys.stderr)
    raise typer.Exit(code) from error


def split_names(only: str | None) -> tuple[str, ...]:
    """The names of `--only`."""
    return tuple(name.strip() for name in only.split(",") if name.strip()) if only else ()


def write_file(path: Path, content: bytes) -> None:
    """Errors: `StoreError`."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
