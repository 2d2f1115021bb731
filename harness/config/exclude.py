"""What a configuration leaves out of its sweeps."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from .where import Where


class Exclude(Where):
    """Leaves out the cells for which all keys of this entry hold; a list holds if one of its values does."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.tests:
            raise ValueError("an entry without keys would leave out every cell; name at least one key")
        return self
