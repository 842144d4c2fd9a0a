"""Figures as PNG files and in notebooks, in colors that color-blind readers can tell apart."""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adaftr_fast.files.whole import make_folder, replace_file

BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000",
)  # fmt: skip
"""The colors of Okabe and Ito (2008) without yellow, which is faint on white."""
GRAY = "0.45"
COLORS = (BLUE, VERMILION, GREEN, PINK, SKY, ORANGE, BLACK)
STYLES = [(color, line) for line, color in product(("-", "--", ":"), COLORS)]
NAME_LENGTH = 80


class Picture(Figure):
    """A figure that a notebook shows although pyplot does not know it.

    Args:
        width, height: the size in inches.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self)

    def png(self, dpi: int) -> bytes:
        """Returns the content of a PNG file."""
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=dpi)
        return content.getvalue()

    def save(self, path: Path) -> None:
        """Writes or replaces a PNG file. Raises OSError if it cannot be written."""
        replace_file(path, self.png(dpi=120))

    def save_with(self, page: Path, sections: Iterable[str]) -> None:
        """Writes a page of Markdown, and the picture beside it under its name, with the suffix
        .png.

        Args:
            page: the path of the page, whose folder is created.
            sections: the parts of the page, which show the picture; empty ones are left out.

        Raises:
            OSError: a file cannot be written.
        """
        make_folder(page.parent)
        self.save(page.with_suffix(".png"))  # first, since the page shows it
        replace_file(page, ("\n\n".join(filter(None, sections)) + "\n").encode())

    def _repr_png_(self) -> bytes:
        return self.png(dpi=80)


def style(number: int) -> tuple[str, str]:
    """Returns the color and the line style of a curve, of which the first 21 differ."""
    return STYLES[number % len(STYLES)]


def plain(axes: Axes, grid: str = "both") -> None:
    """Removes the frame's upper and right line and adds a faint grid below the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color="0.9")  # type: ignore[arg-type]


def shortened(name: str) -> str:
    """Returns a name of at most ``NAME_LENGTH`` characters, without its middle if it is longer."""
    half = NAME_LENGTH // 2
    return name if len(name) <= NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}"
