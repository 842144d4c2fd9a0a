"""Text tables in Markdown, for files and terminals, and in HTML, for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of strings. A terminal shows Markdown, a notebook an HTML table.

    Attributes:
        header: the name of each column.
        rows: the cells, row by row.
        text_columns: the number of leading columns that hold text and are aligned left; the others
            are aligned right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1

    def markdown(self) -> str:
        """Returns the table in Markdown, with padded columns."""
        lines = [[cell.replace("|", r"\|") for cell in row] for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        numbers = [column >= self.text_columns for column in range(len(widths))]
        rule = ["-" * (width - number) + ":" * number for width, number in zip(widths, numbers)]

        def line(cells: Sequence[str]) -> str:
            aligned = [
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(cells, widths, numbers, strict=True)
            ]
            return f"| {' | '.join(aligned)} |"

        return "\n".join(map(line, [lines[0], rule, *lines[1:]]))

    def html(self) -> str:
        """Returns the table as an HTML ``<table>``."""

        def line(tag: str, cells: Sequence[str]) -> str:
            aligned = (
                f'<{tag} style="text-align: '
                f'{"left" if column < self.text_columns else "right"}">{html.escape(cell)}'
                f"</{tag}>"
                for column, cell in enumerate(cells)
            )
            return f"<tr>{''.join(aligned)}</tr>"

        body = "".join(line("td", row) for row in self.rows)
        return f"<table><thead>{line('th', self.header)}</thead><tbody>{body}</tbody></table>"

    __repr__ = markdown
    _repr_html_ = html


class Shown:
    """A result that a terminal shows as lines and tables in Markdown, and a notebook as HTML."""

    _gap = "\n"  # between two parts in a terminal

    def _parts(self) -> Sequence[str | Table]:
        """Returns what is shown, in order. A notebook shows each line of a string as a
        paragraph.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return self._gap.join(map(str, self._parts()))

    def _repr_html_(self) -> str:
        return "".join(
            each.html() if isinstance(each, Table) else paragraphs(*each.splitlines())
            for each in self._parts()
        )


def paragraphs(*lines: str) -> str:
    """Plain text as HTML, one ``<p>`` per line."""
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)
