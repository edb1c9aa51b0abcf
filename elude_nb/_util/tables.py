"""Tables that print all their columns."""

from __future__ import annotations

from typing import Any

import pandas as pd


class Table(pd.DataFrame):
    """A data frame that prints all its columns; by itself pandas leaves some out where a line has 80 letters.

    What is made of it is one too, so `print(split.units.head())` shows all columns as well.
    """

    @property
    def _constructor(self) -> Any:
        return Table

    def __repr__(self) -> str:
        with pd.option_context("display.max_columns", None):
            return super().__repr__()
