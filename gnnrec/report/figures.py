"""The plots of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gnnrec.report.records import Run
from gnnrec.report.svg import SERIES, Figure, figure, legend, line, stamped
from gnnrec.report.tables import epoch_seconds, spent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_LABELLED = 3  # runs whose best values do not cover each other


def loss(runs: Sequence[Run]) -> Figure:
    """Of the training part, by epoch."""

    def draw(axes: Axes) -> None:
        for number, run in enumerate(runs):
            axes.plot([e.epoch for e in run.epochs], [e.loss for e in run.epochs], **line(number, f" {run.label}"))
        _by_epoch(axes, runs)

    return figure("loss", "Loss by epoch", draw)


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
            for epoch, value in kept if len(runs) <= _LABELLED else ():
                axes.annotate(f"{value:.4f}", (epoch, value), (0, 9), textcoords="offset points", ha="right")
        axes.margins(y=0.2)
        _by_epoch(axes, runs)

    return figure(f"valid-{name}", f"Validation {name} by epoch, ★ best epoch", draw)


def seconds(runs: Sequence[Run]) -> Figure:
    """Of training, by epoch."""

    def draw(axes: Axes) -> None:
        for number, run in enumerate(runs):
            axes.plot([e.epoch for e in run.epochs], epoch_seconds(run), **line(number, stamped(run, run.label)))
        axes.set_ylim(0, 1.1 * max(second for run in runs for second in epoch_seconds(run)))
        axes.set_ylabel(stamped(runs[0], "seconds") if len(runs) == 1 else "seconds")
        _by_epoch(axes, runs)

    return figure("epoch-seconds", "Seconds of training by epoch", draw)


def times(runs: Sequence[Run]) -> Figure:
    """Of the whole runs, by what they went into."""
    kinds = list(dict.fromkeys(kind for run in runs for kind in spent(run)))

    def draw(axes: Axes) -> None:
        left = [0.0] * len(runs)
        for number, kind in enumerate(kinds):
            widths = [spent(run).get(kind, 0.0) for run in runs]
            axes.barh([stamped(run, run.label) for run in runs], widths, left=left, label=kind, color=SERIES[number])
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        legend(axes)

    return figure("times", "Time of the run" if len(runs) == 1 else "Time of the runs", draw, 1.3 + 0.35 * len(runs))


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

    return figure("tier-map", "Where tensors lie", draw, 1.4 + 0.22 * len(tensors))


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
        axes.set_xlabel(stamped(run, "ms of a step"))
        legend(axes)

    return figure("predictions", "Predicted and actual", draw, 1.4 + 0.3 * len(shown))


def _by_epoch(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    if len(runs) > 1:
        legend(axes)
