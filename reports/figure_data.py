"""The numbers that a figure draws, as a table beside it. It owns its form, not the numbers."""

from __future__ import annotations

from collections.abc import Iterable

from reports.document import Column, Table, Value

Row = tuple[Value | str, ...]


def numeric(name: str, csv_name: str) -> Column:
    """A column of numbers, in the CSV under a name with its SI unit."""
    return Column(name=name, numeric=True, csv_name=csv_name)


def data_table(figure_name: str, columns: Iterable[Column], rows: Iterable[Row]) -> Table:
    """The table of a figure."""
    return Table(name=f"{figure_name}-data", columns=tuple(columns), rows=tuple(rows))
