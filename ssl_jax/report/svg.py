"""Matplotlib's figures as SVG: inline in the page's own fonts and colors, light or dark, or as files of their own."""

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_jax.report.palette import LIGHT

# Matplotlib wants colors, the page wants names. In a figure, each name is a color that no chart has otherwise.
INKS = {name: f"#{number:06x}" for number, name in enumerate(LIGHT, start=1)}

STYLE: dict[Any, Any] = {  # matplotlib's rcParams
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ssl_jax",  # the same figure gives the same bytes
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": INKS["ink"],
    "text.parse_math": False,  # a $ in a name is a $
    "axes.edgecolor": INKS["rule"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.labelcolor": INKS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": INKS["rule"],
    "grid.linewidth": 0.7,
    "xtick.color": INKS["rule"],
    "ytick.color": INKS["rule"],
    "xtick.labelcolor": INKS["muted"],
    "ytick.labelcolor": INKS["muted"],
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}


class Drawing:
    """An empty chart. `inline`: its SVG, after the end of `draw`."""

    def __init__(self, size: tuple[float, float]):
        self.figure = Figure(figsize=size, layout="constrained")
        self.axes: Axes = self.figure.add_subplot()
        self.inline = ""


@contextmanager
def draw(size: tuple[float, float]) -> Iterator[Drawing]:
    """A chart of `size` inches of 72 units to draw on, in the page's style."""
    with rc_context(STYLE):
        drawing = Drawing(size)
        yield drawing
        drawing.inline = _inline(drawing.figure)


def standalone(svg: str) -> str:
    """Turns an inline SVG of this page into a file's content, with a size, in the colors of the light page."""
    svg = re.sub(r"var\(--(\w+)\)", lambda match: LIGHT[match[1]], svg)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # pyright: ignore[reportOptionalMemberAccess]
    attributes = f'width="{width}" height="{height}"'
    if "xmlns=" not in svg[: svg.index(">")]:
        attributes += ' xmlns="http://www.w3.org/2000/svg"'
    return svg.replace("<svg", f"<svg {attributes}", 1) + "\n"


def _inline(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The page sets the size.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    # An id must not repeat on a page with other figures. So ids that are referred to get a suffix of this figure.
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    referred = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{m[1]}-{own}"' if m[1] in referred else "", svg)
    svg = re.sub(r'(url\(|href=")#([^)"]+)', rf"\1#\2-{own}", svg)
    for name, color in INKS.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg.strip()
