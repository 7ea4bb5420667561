"""The plots of the study's report, from its content alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from study_findings import around, epoch_seconds
from study_places import stamp
from study_records import Json
from study_tables import by_class

from gnnrec.report.profiles import CLASSES
from gnnrec.report.svg import SERIES, Figure, figure, legend, line, logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def kernels(content: Json) -> Iterator[Figure]:
    """Milliseconds of a step by class, a bar for each model and placement that was run."""
    shown = by_class(content)
    if not shown:
        return
    kinds = [kind for kind in CLASSES if any(kind in seconds for _, seconds in shown)]
    names = [_named(row) for row, _ in shown]

    def draw(axes: Axes) -> None:
        left = [0.0] * len(shown)
        for number, kind in enumerate(kinds):
            widths = [1e3 * seconds.get(kind, 0.0) for _, seconds in shown]
            hatch = "///" if number >= len(SERIES) else ""
            axes.barh(names, widths, left=left, label=kind, color=SERIES[number % len(SERIES)], hatch=hatch)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("ms of a step")
        legend(axes, columns=2)

    yield figure("kernels", "A step by class of operator", draw, 1.2 + 0.1 * len(kinds) + 0.36 * len(shown))


def slowdowns(content: Json) -> Iterator[Figure]:
    """Times the step in DRAM, by model and placement."""
    rows = [row for row in around(content["cells"], content["centre"], "placement") if row["slowdown_ratio"]]
    if not rows:
        return
    names = [_named(row) for row in rows]
    models = list(dict.fromkeys(row["model"] for row in rows))

    def draw(axes: Axes) -> None:
        colours = [SERIES[models.index(row["model"])] for row in rows]
        bars = axes.barh(names, [row["slowdown_ratio"] for row in rows], color=colours)
        axes.bar_label(bars, [f"{row['slowdown_ratio']:.2f}" for row in rows], padding=2, fontsize=7.5)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel("times the step in DRAM")

    yield figure("slowdowns", "Slowdown by placement, beside all in DRAM", draw, 0.9 + 0.36 * len(rows))


def footprints(content: Json) -> Iterator[Figure]:
    """DRAM of a step by width, beside that of edge-wise kernels."""

    def of(name: str) -> Callable[[Json], float]:
        return lambda row: row[name] / 2**20

    curves = {" ours": of("all_dram_bytes"), " edge-wise, at least": of("edge_wise_dram_bytes")}
    yield from _over(content, "dim", "footprints", "Memory of tensors by width", "MiB", curves, steep=True)


def costs(content: Json) -> Iterator[Figure]:
    """Seconds by layers, width and batch."""
    for factor in ("layers", "dim"):
        step = {"": lambda row: 1e3 * row["seconds_per_step"]}
        yield from _over(content, factor, f"step-{factor}", f"A step by {factor}, all in DRAM", "ms", step)
    both = {" a step": lambda row: row["seconds_per_step"], " an epoch": epoch_seconds}
    yield from _over(content, "batch", "batch", "A step and an epoch by batch", "seconds", both, steep=True)


def rates(content: Json) -> Iterator[Figure]:
    """GB/s by threads, a plot a tier."""
    for number, place in enumerate(dict.fromkeys((row["hardware"], row["tier"]) for row in content["rates"])):
        mine = [row for row in content["rates"] if (row["hardware"], row["tier"]) == place]

        def draw(axes: Axes, mine: Sequence[Json] = mine) -> None:
            for count, pattern in enumerate(dict.fromkeys(row["pattern"] for row in mine)):
                points = sorted((row["threads_count"], row["gb_per_s"]) for row in mine if row["pattern"] == pattern)
                axes.plot(*zip(*points, strict=True), **line(count, f" {pattern}"))
            axes.set_ylim(bottom=0)
            axes.set_xlabel("threads")
            axes.set_ylabel("GB/s")
            legend(axes, columns=3)

        title = f"Bandwidth by threads, {place[1]} of {place[0]} ({mine[0]['provenance']})"
        yield figure(f"rates-{number}", title, draw)


def _over(
    content: Json,
    factor: str,
    name: str,
    title: str,
    unit: str,
    curves: Mapping[str, Callable[[Json], float]],
    *,
    steep: bool = False,
) -> Iterator[Figure]:
    """Lines over a factor of what is all in DRAM, one for each model and quantity; nothing for a single value."""
    done = [row for row in content["cells"] if (row["placement"], row["status"]) == ("dram", "done")]
    lines: list[tuple[str, list[tuple[Any, float]]]] = []
    for model in dict.fromkeys(row["model"] for row in done):
        rows = around([row for row in done if row["model"] == model], content["centre"], factor)
        lines += [(f" {model}{words}", [(row[factor], value(row)) for row in rows]) for words, value in curves.items()]
    places = sorted({x for _, points in lines for x, _ in points})
    if len(places) < 2:
        return

    def draw(axes: Axes) -> None:
        for number, (label, points) in enumerate(lines):
            axes.plot(*zip(*points, strict=True), **line(number, label))
        if steep:
            logarithmic(axes, "y")
        else:
            axes.set_ylim(bottom=0)
        if factor != "layers":
            logarithmic(axes, "x")
        axes.set_xticks(places, [f"{place:,}" for place in places])
        axes.tick_params(axis="x", which="minor", bottom=False)
        axes.set_xlabel(factor)
        axes.set_ylabel(unit)
        legend(axes, columns=1)

    yield figure(name, title, draw, 2.4 + 0.17 * len(lines))


def _named(row: Json) -> str:
    """Model and placement, with what has to be said of them below."""
    return f"{row['model']}, {row['placement']}\n{stamp(row)}".strip()
