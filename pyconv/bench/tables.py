"""Tables that are printed row by row, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Table:
    """Columns.

    Args:
        columns: heading and width of each; what has a negative width is set at the left.
    """

    def __init__(self, *columns: tuple[str, int]) -> None:
        self.columns = columns

    def header(self) -> str:
        return self.line([heading for heading, _ in self.columns])

    def line(self, cells: Sequence[str]) -> str:
        """A row of the width that all have."""
        parts = (
            cell.ljust(-width) if width < 0 else cell.rjust(width)
            for cell, (_, width) in zip(cells, self.columns, strict=True)
        )
        return "".join(parts).rstrip()

    def markdown(self, rows: Iterable[Sequence[str]]) -> str:
        """The whole table."""
        rule = ["---" if width < 0 else "--:" for _, width in self.columns]
        lines = [[heading for heading, _ in self.columns], rule, *rows]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
