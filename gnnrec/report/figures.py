"""The plots of a report, as SVG that takes its colours from the page: it is legible on light and dark.

`svg`, `line` and `legend` draw others in the same way.
"""

from __future__ import annotations

import html
import io
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gnnrec.errors import GnnrecError
from gnnrec.report.cells import STAMP
from gnnrec.report.records import Run
from gnnrec.report.tables import epoch_seconds, spent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is drawn with, and what stands for it in the page, which defines both for light and dark. Hues of Okabe and Ito
# 2008, "Color Universal Design".
INK = "#101112"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_IN_PAGE = {INK: "var(--ink)"} | {colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)}
_DASHES = ("-", "--", ":", "-.")  # lines differ by these too
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
    """name: of what it shows, unlike others of the page; svg: to stand within HTML."""

    name: str
    title: str
    svg: str


def loss(runs: Sequence[Run]) -> Figure:
    """Of the training part, by epoch."""

    def draw(axes: Axes) -> None:
        for number, run in enumerate(runs):
            axes.plot([e.epoch for e in run.epochs], [e.loss for e in run.epochs], **line(number, f" {run.label}"))
        _by_epoch(axes, runs)

    return _figure("loss", "Loss by epoch", draw)


def metric(runs: Sequence[Run], name: str) -> Figure:
    """Of the validation part, by epoch; the best epoch is marked."""

    def draw(axes: Axes) -> None:
        for number, run in enumerate(runs):
            known = [(e.epoch, value) for e in run.epochs if (value := e.valid.get(name)) is not None]
            if not known:
                continue
            axes.plot(*zip(*known, strict=True), **line(number, f" {run.label}"))
            kept = [(epoch, value) for epoch, value in known if epoch == run.best_epoch]
            axes.plot(*zip(*kept, strict=True), "*", color=SERIES[number % len(SERIES)], markersize=13)
            for epoch, value in kept:
                axes.annotate(f"{value:.4f}", (epoch, value), (0, 9), textcoords="offset points", ha="right")
        axes.margins(y=0.2)
        _by_epoch(axes, runs)

    return _figure(f"valid-{name}", f"Validation {name} by epoch, ★ best epoch", draw)


def seconds(runs: Sequence[Run]) -> Figure:
    """Of training, by epoch."""

    def draw(axes: Axes) -> None:
        for number, run in enumerate(runs):
            axes.plot([e.epoch for e in run.epochs], epoch_seconds(run), **line(number, _stamped(run, run.label)))
        axes.set_ylim(0, 1.1 * max(second for run in runs for second in epoch_seconds(run)))
        axes.set_ylabel(_stamped(runs[0], "seconds") if len(runs) == 1 else "seconds")
        _by_epoch(axes, runs)

    return _figure("epoch-seconds", "Seconds of training by epoch", draw)


def times(runs: Sequence[Run]) -> Figure:
    """Of the whole runs, by what they went into."""
    kinds = list(dict.fromkeys(kind for run in runs for kind in spent(run)))

    def draw(axes: Axes) -> None:
        left = [0.0] * len(runs)
        for number, kind in enumerate(kinds):
            widths = [spent(run).get(kind, 0.0) for run in runs]
            axes.barh([_stamped(run, run.label) for run in runs], widths, left=left, label=kind, color=SERIES[number])
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        legend(axes)

    return _figure("times", "Time of the run" if len(runs) == 1 else "Time of the runs", draw, 1.3 + 0.35 * len(runs))


def tier_map(run: Run) -> Figure:
    """Bytes of tensors, coloured by the tier they lie on."""
    assert run.plan is not None
    tensors, tiers = run.plan.tensors, list(run.plan.tier_bytes)

    def draw(axes: Axes) -> None:
        for number, tier in enumerate(tiers):
            own = [tensor for tensor in tensors if tensor.tier == tier]
            names, sizes = [tensor.name for tensor in own], [tensor.bytes / 2**20 for tensor in own]
            axes.barh(names, sizes, color=SERIES[number % len(SERIES)], label=tier)
        axes.invert_yaxis()
        axes.set_xlabel("MiB")
        legend(axes)

    return _figure("tier-map", "Where tensors lie", draw, 1.4 + 0.22 * len(tensors))


def predictions(run: Run) -> Figure:
    """Seconds of a step and of its tensors, predicted beside actual."""
    assert run.plan is not None
    pairs = {"step": (run.plan.step_seconds, run.account and run.account.step_seconds)}
    pairs |= {tensor.name: (tensor.predicted_seconds, tensor.actual_seconds) for tensor in run.plan.tensors}
    shown = {name: pair for name, pair in pairs.items() if pair[0] or pair[1]}

    def draw(axes: Axes) -> None:
        for offset, kind, colour in ((-0.2, "predicted", SERIES[0]), (0.2, "actual", SERIES[1])):
            lengths = [1e3 * (pair[kind == "actual"] or 0.0) for pair in shown.values()]
            axes.barh([row + offset for row in range(len(shown))], lengths, 0.38, color=colour, label=kind)
        axes.set_yticks(range(len(shown)), list(shown))
        axes.invert_yaxis()
        axes.set_xlabel(_stamped(run, "ms of a step"))
        legend(axes)

    return _figure("predictions", "Predicted and actual", draw, 1.4 + 0.3 * len(shown))


def line(number: int, label: str) -> dict[str, Any]:
    """How the curve of this number is drawn."""
    colour, dashes = SERIES[number % len(SERIES)], _DASHES[number % len(_DASHES)]
    return {"color": colour, "linestyle": dashes, "label": label, "marker": "o", "markersize": 3.5}


def _by_epoch(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    if len(runs) > 1:
        legend(axes)


def legend(axes: Axes, columns: int = 2) -> None:
    """Above the plot, where nothing is covered."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)


def _stamped(run: Run, label: str) -> str:
    return f"{STAMP} {label}" if run.simulated else f" {label}"  # matplotlib hides labels that begin with an underscore


def _figure(name: str, title: str, draw: Callable[[Axes], None], height: float = 2.7) -> Figure:
    return Figure(name, title, _inline(svg(draw, height, transparent=True), name, title))


def svg(draw: Callable[[Axes], None], height: float = 2.7, *, transparent: bool = False) -> str:
    """A plot as an SVG document.

    Args:
        draw: into the axes.
        height: inches.
        transparent: without a ground of its own, on which it is legible everywhere.

    Raises:
        GnnrecError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as error:
        remedy = "Install it: pip install gnnrec[report]"
        raise GnnrecError("matplotlib, which draws plots, is not installed", where="report", remedy=remedy) from error
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells when it looks for fonts
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user likes elsewhere
        matplotlib.rcParams.update(_STYLE)
        canvas = Canvas((_WIDTH, height), layout="constrained")
        draw(canvas.add_subplot())
        file = io.StringIO()
        canvas.savefig(file, format="svg", transparent=transparent, metadata={"Date": None})
    return file.getvalue()


def _inline(svg: str, name: str, title: str) -> str:
    """Without what belongs to a file of its own; ids that no other figure of the page has; the page's colours."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    prefix = re.sub(r"\W", "-", name)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for colour, variable in _IN_PAGE.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
