"""The plots of what a profile knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gnnrec.report.profiles import Operator, Profile
from gnnrec.report.records import Run
from gnnrec.report.svg import INK, SERIES, Figure, figure, legend, line, logarithmic, stamped
from gnnrec.units import in_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP"  # one an operator, beside its colour
_LINES = ("-", "--", ":")


def classes(runs: Sequence[Run]) -> Figure:
    """Milliseconds of a step by class, a bar a run."""
    profiled = [(number, run, run.profile.seconds()) for number, run in enumerate(runs) if run.profile]
    kinds = list(dict.fromkeys(kind for _, _, seconds in profiled for kind in seconds))
    height = 0.8 / len(profiled)

    def draw(axes: Axes) -> None:
        for place, (number, run, seconds) in enumerate(profiled):
            lengths = [1e3 * seconds.get(kind, 0.0) for kind in kinds]
            rows = [row + (place + 0.5) * height - 0.4 for row in range(len(kinds))]
            label = stamped(run, run.label)
            bars = axes.barh(rows, lengths, 0.9 * height, color=SERIES[number % len(SERIES)], label=label)
            axes.bar_label(bars, [f"{ms:.3g}" if ms else "" for ms in lengths], padding=2, fontsize=7.5)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(stamped(runs[0], "ms of a step") if len(runs) == 1 else "ms of a step")
        if len(runs) > 1:
            legend(axes)

    return figure("classes", "A step by class of operator", draw, 1.0 + len(kinds) * (0.16 + 0.12 * len(profiled)))


def placed(profile: Profile) -> list[tuple[Operator, float, float]]:
    """The operators that have a place in a roofline, with it; the longest, as many as can be told apart, by name."""
    points = [(operator, operator.intensity, operator.gflop_per_s) for operator in profile.operators]
    longest = [(operator, x, y) for operator, x, y in points if x and y][: len(SERIES)]
    return sorted(longest, key=lambda point: (point[0].name, point[0].direction))


def roofs(profile: Profile) -> dict[str, float]:
    """The measured bandwidths by what a plot calls them, 10^9 bytes a second."""
    found: dict[str, float] = {}
    for ceiling in profile.ceilings:
        if ceiling.read:
            found[f"{ceiling.tier}, in order: {ceiling.read:.3g} GB/s"] = ceiling.read
        if ceiling.gather:
            found[f"{ceiling.tier}, rows of {ceiling.row_bytes} bytes: {ceiling.gather:.3g} GB/s"] = ceiling.gather
    return found


def roofline(run: Run) -> Figure:
    """Operations a second by operations a byte, under what was measured."""
    assert run.profile is not None
    profile, shown, bandwidths = run.profile, placed(run.profile), roofs(run.profile)

    def draw(axes: Axes) -> None:
        intensities = [intensity for _, intensity, _ in shown]
        ends = min(intensities) / 4, max(intensities) * 4
        if profile.products is not None and bandwidths:  # as far as where the slowest roof ends
            ends = ends[0], max(ends[1], 2 * profile.products / min(bandwidths.values()))
        for (name, rate), dashes in zip(bandwidths.items(), _LINES * len(bandwidths), strict=False):
            ridge = ends[1] if profile.products is None else min(ends[1], profile.products / rate)
            axes.plot((ends[0], ridge), (ends[0] * rate, ridge * rate), dashes, color=INK, linewidth=1.1, label=name)
        if profile.products is not None:
            label = f"products in {profile.product_type}: {profile.products:.3g} GFLOP/s"
            axes.plot(ends, [profile.products] * 2, "-.", color=INK, linewidth=1.1, label=label)
        for number, (operator, intensity, gflop_per_s) in enumerate(shown):
            label, colour = stamped(run, f"{operator.label} ({operator.share:.0%})"), SERIES[number]
            inside = "none" if operator.direction == "backward" else colour
            how: Any = {"color": colour, "markerfacecolor": inside, "markersize": 7, "label": label}
            axes.plot(intensity, gflop_per_s, _MARKERS[number], **how)
        logarithmic(axes, "x", "y")
        axes.set_xlabel("operations a byte")
        axes.set_ylabel(stamped(run, "GFLOP/s"))
        legend(axes, columns=1)

    lines = len(shown) + len(bandwidths) + (profile.products is not None)
    return figure("roofline", "Roofline", draw, 2.7 + 0.17 * lines)


def memory(runs: Sequence[Run]) -> Figure:
    """Resident memory by time, beside what was planned in memory."""

    def draw(axes: Axes) -> None:
        for number, run in enumerate(runs):
            if run.profile is None:
                continue
            begin = run.profile.memory[0][0] if run.profile.memory else 0.0
            points = [(seconds - begin, rss / 2**20) for seconds, rss in run.profile.memory]
            how = line(number, f" {run.label}") | {"marker": "" if len(points) > 40 else "o"}
            axes.plot(*zip(*points, strict=True), **how)
            of = f" of {run.label}" if len(runs) > 1 else ""
            for tier, planned in _planned(run).items():
                label = f" planned in {tier}{of}: {in_bytes(planned)}"
                axes.axhline(planned / 2**20, color=INK, linestyle=_LINES[1 + number % 2], linewidth=1.1, label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds since the begin of the training")
        axes.set_ylabel("resident MiB")
        if len(runs) > 1 or _planned(runs[0]):
            legend(axes, columns=1)

    return figure("memory", "Memory of the process over the run", draw, 3.0)


def _planned(run: Run) -> dict[str, int]:
    """Bytes by tier, without folders, which are no memory."""
    tiers = run.plan.tier_bytes if run.plan else {}
    return {tier: planned for tier, planned in tiers.items() if not tier.startswith(("/", "…"))}
