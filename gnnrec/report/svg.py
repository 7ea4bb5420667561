"""Plots as SVG that takes its colours from the page: it is legible on light and dark."""

from __future__ import annotations

import html
import io
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gnnrec.errors import GnnrecError
from gnnrec.report.cells import STAMP
from gnnrec.report.records import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is drawn with, and what stands for it in the page, which defines both for light and dark. Hues of Okabe and Ito
# 2008, "Color Universal Design".
INK = "#101112"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_IN_PAGE = {INK: "var(--ink)"} | {colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)}
_DASHES = ("-", "--", ":", "-.")  # lines differ by these too
FEW = 1000  # times the smallest number of a logarithmic axis: up to there it has places between powers of ten
_WIDTH = 4.6  # inches, of 96 pixels on a screen: about that of a phone
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gnnrec",  # equal figures get equal bytes
    "text.parse_math": False,  # names may hold a dollar
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.2,
    "legend.frameon": False,
} | dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK)


@dataclass(frozen=True)
class Figure:
    """name: of what it shows, unlike others of the page; drawn: a file of its own."""

    name: str
    title: str
    drawn: str

    @property
    def svg(self) -> str:
        """To stand within HTML."""
        return _inline(self.drawn, self.name, self.title)


def figure(
    name: str, title: str, draw: Callable[[Axes], None], height: float = 2.7, *, transparent: bool = True
) -> Figure:
    """What `draw` draws; height in inches; transparent for pages, which bring a ground.

    Raises:
        GnnrecError: matplotlib is not installed.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells when it looks for fonts
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as error:
        remedy = "Install it: pip install gnnrec[report]"
        raise GnnrecError("matplotlib, which draws plots, is not installed", where="report", remedy=remedy) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user likes elsewhere
        matplotlib.rcParams.update(_STYLE)
        canvas = Canvas((_WIDTH, height), layout="constrained")
        draw(canvas.add_subplot())
        file = io.StringIO()
        canvas.savefig(file, format="svg", transparent=transparent, metadata={"Date": None})
    return Figure(name, title, file.getvalue())


def _inline(svg: str, name: str, title: str) -> str:
    """Without what belongs to a file of its own; ids that no other figure of the page has; the page's colours."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    prefix = re.sub(r"\W", "-", name)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _IN_PAGE.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def line(number: int, label: str) -> dict[str, Any]:
    """How the line of a run by its number looks."""
    colour, dashes = SERIES[number % len(SERIES)], _DASHES[number % len(_DASHES)]
    return {"color": colour, "linestyle": dashes, "label": label, "marker": "o", "markersize": 3.5}


def logarithmic(axes: Axes, *ways: Literal["x", "y"]) -> None:
    """Make axes of what is drawn logarithmic, with numbers at powers of ten; where these are few, at twice and five
    times them too; where there is none, at equal distances. matplotlib's own labels of such an axis are formulas, which
    are not set here."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullFormatter

    for way in ways:
        axes.set(**{f"{way}scale": "log"})
        axis = {"x": axes.xaxis, "y": axes.yaxis}[way]
        low, high = axis.get_data_interval()
        powers = LogLocator(subs=(1.0, 2.0, 5.0) if high < FEW * low else (1.0,))
        axis.set_major_locator(AutoLocator() if high < 10 * low else powers)
        axis.set_major_formatter(lambda value, _: number(value))
        axis.set_minor_formatter(NullFormatter())


def number(value: float) -> str:
    """For a place on an axis: 0.001, 4,096."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 and value == round(value) else f"{value:g}"


def legend(axes: Axes, columns: int = 2) -> None:
    """Above the plot, where nothing is covered."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)


def stamped(run: Run, label: str) -> str:
    """A label of what the speed of devices touches."""
    return f"{STAMP} {label}" if run.simulated else f" {label}"  # matplotlib hides labels that begin with an underscore
