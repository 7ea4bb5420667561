"""What a training shows: lines, or a dashboard that leaves nothing but the lines."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from gnnrec.memtier.account import by_tier
from gnnrec.memtier.files import Traffic
from gnnrec.training import dashboard, meters
from gnnrec.training.dashboard import Dashboard, bar
from gnnrec.training.meters import LEVELS, Curve, Meter
from gnnrec.training.runlog import Progress, RunLog
from gnnrec.training.view import Lines, views

SETTINGS = {"epochs": 40, "monitor": "recall@20"}
VALID = {"recall@20": 0.2411, "ndcg@20": 0.1902, "map@20": 0.1}
LINES = """\
loading kernels; the first run compiles them, in seconds, and keeps them on disk
epoch 12/40  loss 0.2135  valid recall@20 0.2411
no better recall@20 for 5 evaluations: stopped
"""
CONFIG = {"model": {"name": "lightgcn"}, "data": {"name": "ml-100k"}}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setattr(dashboard, "REFRESH_SECONDS", 0.05)
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that meters read, in its one element."""
    now = [100.0]
    monkeypatch.setattr(meters.time, "monotonic", lambda: now[0])
    return now


def progress(step: int = 396, loss: float = 0.2135, **options: Any) -> Progress:
    best = {"recall@20": 0.2434, "ndcg@20": 0.1913, "map@20": 0.1}
    return Progress(step, 1320, 11, 40, loss, **({"best": best, "best_epoch": 10} | options))


def told(log: RunLog) -> None:
    """Tell of a training."""
    log.event("settings", trainer=SETTINGS)
    log.phase("loading")
    log.phase("training")
    log.steps(progress())
    log.phase("validating")
    log.event("epoch", epoch=12, step=396, loss=0.2135, valid=VALID)
    log.event("stopped", step=396, evaluations=5)


def shown(text: str) -> list[str]:
    """The lines that a terminal shows in the end."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[\d;?]*[a-zA-Z]|[^\x1b]", text):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part.startswith("\x1b[") and part.endswith("A"):
            row -= int(part[2:-1] or 1)
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
    return "\n".join(lines).rstrip().splitlines()


# --- which view -------------------------------------------------------------------------------------------------------


def test_lines_where_nobody_looks_on(capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(loggers=views()) as log:
        told(log)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (LINES, "")


def test_an_epoch_without_validation_has_a_short_line() -> None:
    stream = io.StringIO()
    with RunLog(loggers=views(stream=stream)) as log:
        log.event("settings", trainer=SETTINGS)
        log.event("epoch", epoch=1, step=33, loss=0.5, valid={})
    assert stream.getvalue() == "epoch 1/40  loss 0.5000\n"


def test_rich_is_imported_for_a_dashboard_only() -> None:
    code = """
import sys
from gnnrec.training.view import views
views()[0].phase("loading")
print("rich" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[1:] == ["False"]


@pytest.mark.parametrize(
    ("kind", "variables", "expected"),
    [
        ("auto", {}, Dashboard),
        ("auto", {"CI": "false", "NO_COLOR": "1"}, Dashboard),
        ("auto", {"TERM": "dumb"}, Lines),
        ("auto", {"CI": "true"}, Lines),
        ("plain", {}, Lines),
        ("live", {"TERM": "dumb"}, Dashboard),
    ],
)
def test_which_view_a_terminal_gets(
    kind: str, variables: dict[str, str], expected: type, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (view,) = views(kind, terminal)
    assert type(view) is expected


def test_other_views(terminal: Terminal) -> None:
    assert views("quiet", terminal) == []
    (view,) = views("live", io.StringIO())
    assert type(view) is Dashboard


# --- the dashboard ----------------------------------------------------------------------------------------------------


def drawn(width: int, clock: list[float], **options: Any) -> list[str]:
    """What a dashboard draws on a console of this width."""
    file = io.TextIOWrapper(io.BytesIO(), options.pop("encoding", "utf-8"))
    console = Console(file=file, width=width, height=24)
    view = Dashboard(file, console)
    view.start(CONFIG, Path())
    view.event("settings", {"trainer": SETTINGS})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dashboard, "_open", lambda self: None)
        view.phase("training")
    for number in range(100):
        clock[0] += 0.125
        moved = {"/mnt/nvme": (10**8 * number, 5 * 10**7 * number)} if options.get("moved") else {}
        view.steps(progress(297 + number, 1 - number / 127, moved=moved))
    view.event("epoch", {"epoch": 12, "loss": 0.3, "valid": options.get("valid", VALID)})
    with console.capture() as text:
        console.print(view.render())
    return text.get().splitlines()


def test_the_dashboard_at_80_columns(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "rss_bytes", lambda: 2**29)
    monkeypatch.setattr(dashboard, "memory_bytes", lambda: 24 * 2**30)
    lines = drawn(80, clock, moved=True)
    assert lines[0] == "── lightgcn on ml-100k, training ".ljust(76, "─")
    assert lines[1] == "epoch      12 of 40  " + "━" * 9 + "─" * 22 + " 30%"
    assert re.fullmatch(rf"loss       0.2205  █[{LEVELS}]{{38}}▁", lines[2])
    assert lines[3:] == [
        "recall@20  0.2411  best 0.2434 in epoch 10",
        "ndcg@20    0.1902  0.1913 in epoch 10",
        "speed      8.0 steps/s",
        "tier       0.80 GB/s read, 0.40 written  /mnt/nvme",
        "memory     512.00 MiB of 24.00 GiB",
        "time       0:12, about 1:55 left",
    ]


def test_a_better_validation_is_the_best_at_once(clock: list[float]) -> None:
    lines = drawn(80, clock, valid={"recall@20": 0.2435, "ndcg@20": 0.19})
    assert lines[3:5] == ["recall@20  0.2435  best 0.2435 in epoch 12", "ndcg@20    0.1900  0.1900 in epoch 12"]


@pytest.mark.parametrize("width", [60, 40, 20, 5])
def test_a_narrow_terminal_cuts_what_is_least_important(width: int, clock: list[float]) -> None:
    lines = drawn(width, clock, moved=True)
    assert len(lines) == 9
    assert max(map(len, lines)) <= max(width - dashboard.MARGIN, 1)
    if width == 40:
        assert lines[1] == "epoch      12 of 40  ━━━─────── 30%"
        assert lines[3:6] == ["recall@20  0.2411  best 0.2434 in e…", *lines[4:6]]
        assert lines[6] == "tier       0.80 GB/s read, 0.40 wri…"


def test_a_terminal_without_unicode(clock: list[float]) -> None:
    lines = drawn(80, clock, encoding="ascii")
    assert "\n".join(lines).isascii()
    assert lines[1] == "epoch      12 of 40  #########---------------------- 30%"


def test_at_the_end_the_lines_are_left_and_the_cursor_is_back(terminal: Terminal) -> None:
    with RunLog(loggers=views(stream=terminal)) as log:
        told(log)
        time.sleep(0.2)
    text = terminal.getvalue()
    assert "best 0.2434" in text
    assert shown(text) == LINES.splitlines()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_the_dashboard_ends_on_an_error(error: type[BaseException], terminal: Terminal) -> None:
    def fail() -> None:
        with RunLog(loggers=views(stream=terminal)) as log:
            told(log)
            raise error

    with pytest.raises(error):
        fail()
    assert shown(terminal.getvalue()) == LINES.splitlines()
    assert terminal.getvalue().count("\x1b[?25h") == 1


def test_what_others_print_goes_above(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", errors)
    with RunLog(loggers=views()) as log:
        told(log)
        time.sleep(0.2)
        print("from [b]elsewhere[/b]")
        print("a warning", file=sys.stderr)
        time.sleep(0.2)
    assert shown(terminal.getvalue()) == [*LINES.splitlines(), "from [b]elsewhere[/b]", "a warning"]
    assert errors.getvalue() == ""
    assert (sys.stdout, sys.stderr) == (terminal, errors)


def test_warnings_go_where_standard_error_goes(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    with RunLog(loggers=views(stream=terminal)) as log:
        told(log)
        print("a warning", file=sys.stderr)
    assert errors.getvalue() == "a warning\n"


def test_no_color(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def colours() -> set[str]:
        with RunLog(loggers=views(stream=terminal)) as log:
            told(log)
            log.steps(progress())
        return set(re.findall(r"\x1b\[3\dm", terminal.getvalue()))

    assert colours()
    terminal.truncate(0)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours()


def test_steps_are_cheap_and_drawn_a_few_times_a_second(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert dashboard.REFRESH_SECONDS >= 0.25
    with RunLog(loggers=views("live", terminal)) as log:
        log.phase("training")
        started, spent = time.monotonic(), time.thread_time()
        for step in range(20_000):
            log.steps(progress(step % 1320))
        spent = time.thread_time() - spent
    assert spent / 20_000 < 50e-6  # about 3 us on an idle core
    assert terminal.getvalue().count("speed") <= (time.monotonic() - started) / dashboard.REFRESH_SECONDS + 2


def test_a_model_in_closed_form_has_a_short_dashboard(terminal: Terminal) -> None:
    with RunLog(loggers=views(stream=terminal)) as log:
        log.phase("computing")
        log.phase("testing")
    text = terminal.getvalue()
    assert "evaluating the result" in text
    assert "epoch" not in text
    assert shown(text) == []


def test_bytes_are_those_of_the_tier_where_the_plan_has_a_tensor() -> None:
    tiers = {"embedding": "/mnt/nvme", "exp_avg": "dram0", "exp_avg_sq": "/mnt/nvme", "graph": "dram0"}
    plan: Any = SimpleNamespace(placements=[SimpleNamespace(name=name, tier=tier) for name, tier in tiers.items()])
    moved = {"embedding": Traffic(1, 2), "exp_avg": Traffic(10, 20), "exp_avg_sq": Traffic(100, 200)}
    assert by_tier(plan, moved) == {"/mnt/nvme": (101, 202), "dram0": (10, 20)}
    assert by_tier(plan, {}) == {}


# --- meters -----------------------------------------------------------------------------------------------------------


def test_a_curve_has_means_of_all_numbers_in_bounded_memory() -> None:
    curve = Curve(points=8)
    assert curve.drawn(10) == ""
    curve.add(3.0)
    assert curve.drawn(10) == "▁"
    for number in range(1, 1000):
        curve.add(3.0 - number)
    assert 4 <= len(curve.drawn(80)) <= 8
    assert curve.drawn(80)[0] == "█"
    assert curve.drawn(80)[-1] == "▁"
    assert len(curve.drawn(3)) == 3
    assert curve.drawn(0) == ""
    assert set(curve.drawn(80, plain=True)) <= set("_.-=^")


def test_rates_leave_out_what_goes_on_between_steps_and_the_time_left_does_not(clock: list[float]) -> None:
    meter = Meter()
    assert (meter.steps, meter.bytes, meter.left(100)) == (None, {}, None)
    clock[0] += 30  # compiling
    meter.resume()
    for step in range(1, 11):
        clock[0] += 0.5
        meter.add(step, {"a": (1000 * step, 0)})
    clock[0] += 9.5  # validation
    meter.resume()
    clock[0] += 0.5
    meter.add(11, {"a": (11_000, 0)})
    assert meter.steps == pytest.approx(2)
    assert meter.bytes == {"a": (pytest.approx(2000), 0)}
    assert meter.left(21) == pytest.approx(10 * 14.5 / 10)
    clock[0] += 4
    assert meter.left(21) == pytest.approx(10.5)
    assert meter.passed == pytest.approx(49)
    clock[0] += 1000
    assert meter.left(21) == 0


def test_rates_are_those_of_the_last_seconds_and_few_marks_are_kept(clock: list[float]) -> None:
    meter = Meter()
    for step in range(20_000):
        clock[0] += 0.001 if step < 10_000 else 0.002
        meter.add(step, {})
    assert meter.steps == pytest.approx(500, rel=0.01)
    assert len(meter._marks) < 30


@pytest.mark.parametrize(("share", "width", "expected"), [(0, 10, "───── 0%"), (1, 10, "━━━━━ 100%"), (0.5, 3, "50%")])
def test_bars(share: float, width: int, expected: str) -> None:
    assert bar(share, width).plain == expected
