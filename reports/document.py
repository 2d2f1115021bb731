"""Something short to read: a title, lines and tables, for a terminal, a file or a pull request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from rich.console import Console

from . import tables


@dataclass(frozen=True)
class Document:
    """A title, what is to be said in lines, and tables by their titles; those without rows are not shown."""

    title: str
    lines: tuple[str, ...]
    tables: dict[str, pd.DataFrame]

    def markdown(self) -> str:
        """For a file or a pull request."""
        parts = [f"## {tables.escaped(self.title)}", "\n".join(f"- {tables.escaped(line)}" for line in self.lines)]
        parts += [f"### {title}\n\n{tables.markdown(table)}" for title, table in self._filled()]
        return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"

    def show(self, console: Console) -> None:
        """For a terminal."""
        for line in (self.title, *self.lines):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        for title, table in self._filled():
            console.print(tables.for_terminal(table, title, "in --format markdown"))

    def _filled(self) -> Iterator[tuple[str, pd.DataFrame]]:
        return ((title, table) for title, table in self.tables.items() if len(table))
