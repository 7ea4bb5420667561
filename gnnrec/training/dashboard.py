"""The dashboard: lines at the foot of a terminal, drawn again in place, below those that `view.Lines` writes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gnnrec.training.meters import Curve, Meter
from gnnrec.training.runlog import Phase, Progress, Status, gpu_bytes, memory_bytes, rss_bytes
from gnnrec.training.view import Lines
from gnnrec.units import in_bytes, in_clock, in_seconds

REFRESH_SECONDS = 0.5  # between two drawings
MARGIN = 4  # columns on the right that stay free: a "^C^C" of the terminal's must not begin a line that nobody erases
WIDEST, BAR, CURVE = 96, 36, 40  # columns
TIERS = 2  # are shown
WORDS: Mapping[Phase, str] = {
    "loading": "loading kernels",
    "stopping": "stopping after this step",
    "saving": "saving a checkpoint",
    "testing": "evaluating the result",
}


class Row(NamedTuple):
    """A line of the dashboard; behind the text a bar of this share, or a curve, as wide as there is room."""

    label: str
    text: str
    share: float | None = None
    curve: Curve | None = None


class Dashboard(Lines):
    """Shows where a training is. At the end it is gone, so that what stays is what `Lines` writes.

    A thread of its own draws, since a step may take minutes; what others print meanwhile goes above. The thread that
    trains only notes numbers, so that a terminal that stands still does not hold it up.

    Args:
        stream: the terminal.
        console: what draws there, by default as `stream` and the environment (NO_COLOR, COLUMNS) have it.
    """

    def __init__(self, stream: TextIO, console: Console | None = None) -> None:
        super().__init__(stream)
        # Whether there is a terminal has been decided, or `view=live` asks for it anyway.
        self._console = console or Console(file=stream, force_terminal=True, force_interactive=True)
        self._title, self._phase = "training", ""
        self._progress: Progress | None = None
        self._valid: Mapping[str, float] = {}  # the latest
        self._best: Mapping[str, float] = {}
        self._best_epoch = 0
        self._losses, self._meter, self._memory_bytes = Curve(), Meter(), memory_bytes()
        self._lines: list[str] = []  # to be written
        self._lock = threading.RLock()  # of all above; a signal's handler may take it once more
        self._live: Live | None = None
        self._over = threading.Event()
        self._drawing = threading.Thread(target=self._draw_again, name="dashboard", daemon=True)

    def start(self, config: Mapping[str, Any], run_dir: Path) -> None:
        """Take the names of model and data."""
        self._title = f"{config['model']['name']} on {config['data']['name']}"

    def phase(self, phase: Phase) -> None:
        """Show it; the first one begins to draw."""
        with self._lock:
            self._phase = WORDS.get(phase, phase)
            if phase == "training":
                self._meter.resume()
        super().phase(phase)
        if self._live is None:
            self._open()

    def steps(self, progress: Progress) -> None:
        """Take the numbers."""
        with self._lock:
            self._progress, self._best, self._best_epoch = progress, progress.best, progress.best_epoch
            self._losses.add(progress.loss)
            self._meter.add(progress.step, progress.moved)

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """As `Lines` does; and take what validation has found."""
        super().event(event, fields)
        if event == "epoch" and fields["valid"]:
            with self._lock:
                self._valid, monitor = fields["valid"], self._settings["monitor"]
                if not self._best or self._valid[monitor] > self._best[monitor]:  # the next step would tell it too
                    self._best, self._best_epoch = self._valid, fields["epoch"]

    def line(self, text: str) -> None:
        """Write a line above with the next drawing."""
        with self._lock:
            self._lines.append(text)

    def close(self, status: Status) -> None:
        """Write the last lines, and leave the terminal as it was."""
        if self._live is None:
            return
        self._over.set()
        try:
            self._drawing.join()
            self._draw(self._live)
        finally:
            self._live.stop()

    def render(self) -> Group:
        """What is drawn now."""
        plain, room = self._console.options.ascii_only, min(self._console.width - MARGIN, WIDEST)
        with self._lock:
            rows, heading = self._rows(), f" {self._title}, {self._phase} "
            lines = [Text(("--" if plain else "──") + heading, "dim")]
            indent = max(len(row.label) for row in rows) + 2
            for row in rows:
                line = Text.assemble((row.label.ljust(indent), "dim"), row.text, "  ")
                if row.share is not None:
                    line.append_text(bar(row.share, min(room - len(line), BAR), plain=plain))
                if row.curve is not None:
                    line.append(row.curve.drawn(max(min(room - len(line), CURVE), 0), plain=plain), "cyan")
                lines.append(line)
        lines[0].append(("-" if plain else "─") * (room - len(lines[0])))
        for line in lines:
            line.rstrip()
            line.truncate(room, overflow="crop" if plain else "ellipsis")
        return Group(*lines)

    def _rows(self) -> list[Row]:
        progress, meter = self._progress, self._meter
        memory, clock = f"{in_bytes(rss_bytes())} of {in_bytes(self._memory_bytes)}", in_clock(meter.passed)
        if (gpu := gpu_bytes()) is not None:
            memory += f", GPU {in_bytes(gpu[0])} of {in_bytes(gpu[1])}"
        if progress is None:
            return [Row("memory", memory), Row("time", clock)]
        epoch = min(progress.epoch + 1, progress.epochs)
        rows = [
            Row("epoch", f"{epoch} of {progress.epochs}", share=progress.step / progress.steps),
            Row("loss", f"{progress.loss:.4f}", curve=self._losses),
        ]
        for name in self._shown():
            latest = f"{self._valid[name]:.4f}  " if name in self._valid else ""
            word = "best " if name == self._settings.get("monitor") else ""  # the other one's best may be elsewhere
            rows.append(Row(name, f"{latest}{word}{self._best[name]:.4f} in epoch {self._best_epoch}"))
        rows.append(Row("speed", "-" if meter.steps is None else _speed(meter.steps)))
        for tier, (read, written) in list(meter.bytes.items())[:TIERS]:
            rows.append(Row("tier", f"{read / 1e9:.2f} GB/s read, {written / 1e9:.2f} written  {tier}"))
        left = meter.left(progress.steps)
        time = clock if left is None else f"{clock}, about {in_clock(left)} left"
        return [*rows, Row("memory", memory), Row("time", time)]

    def _shown(self) -> list[str]:
        """Of the metrics, the one that decides, and beside it NDCG or recall."""
        monitor = str(self._settings.get("monitor"))
        metric, _, k = monitor.partition("@")
        return [name for name in (monitor, f"{'recall' if metric == 'ndcg' else 'ndcg'}@{k}") if name in self._best]

    def _open(self) -> None:
        self._live = Live(
            get_renderable=self.render,
            console=self._console,
            auto_refresh=False,  # nor would that write lines
            transient=True,
            redirect_stderr=sys.stderr.isatty(),  # into a file, warnings still go there
        )
        self._live.start()
        self._drawing.start()

    def _draw_again(self) -> None:
        while not self._over.wait(REFRESH_SECONDS):
            assert self._live is not None
            self._draw(self._live)

    def _draw(self, live: Live) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        with self._console:  # as one write: nothing flickers
            for line in lines:
                self._console.out(line, highlight=False)
            live.refresh()


def bar(share: float, width: int, *, plain: bool = False) -> Text:
    """A bar of this width, the share of it filled, and the share in percent."""
    length, full = width - len(" 100%"), "#" if plain else "━"
    text, filled = Text(), round(share * length)
    if length > 0:
        text.append(full * filled, "green").append(("-" if plain else "─") * (length - filled), "dim").append(" ")
    return text.append(f"{share:.0%}")


def _speed(steps: float) -> str:
    return f"{steps:.1f} steps/s" if steps >= 1 else f"{in_seconds(1 / steps)} a step" if steps > 0 else "-"
