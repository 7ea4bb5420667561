"""What the command line prints: tables, metrics, progress."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnrec import ranks
from gnnrec.errors import GnnrecError

if TYPE_CHECKING:
    import pandas as pd

PROFILED = 12  # rows of a profile that are shown


def complain(error: GnnrecError, job: str = "") -> int:
    """Print the error on one line; returns the exit code.

    Args:
        job: the job of a sweep that met it.
    """
    text = "".join(letter if letter.isprintable() else " " for letter in f"{job}{error}")
    if ranks.speaks(text):
        print(f"gnnrec: {text}", file=sys.stderr)
    return 128 + error.signum if hasattr(error, "signum") else 2


def give(frame: pd.DataFrame, out: str | None) -> None:
    """Write the table to a file, or show its beginning."""
    from gnnrec.recommend import write_table

    if out is not None:
        write_table(frame, Path(out))
        print(f"{len(frame)} rows in {out}")
        return
    shown = frame.head(50)
    table(records(shown))
    if len(shown) < len(frame):
        print(f"... {len(frame) - len(shown)} rows more; out=FILE (.parquet, .csv, .json) keeps them all")


def show_metrics(summary: dict[str, Any]) -> None:
    """Metrics of every part, seconds and peak memory, from the content of `summary.json`."""
    print(f"metrics after epoch {summary['best_epoch']} of {summary['epochs']}")
    show_parts(summary["metrics"] | {"best attainable": summary["data"].get("attainable", {})})
    print(
        f"training {summary['train_seconds']:.1f} s (compilation {summary['compile_seconds']:.1f} s), "
        f"evaluation {summary['eval_seconds']:.1f} s, peak memory {summary['peak_rss_bytes'] / 2**30:.2f} GiB"
    )
    if "peak_gpu_bytes" in summary:
        print(f"device {summary['device_name']}, peak memory {summary['peak_gpu_bytes'] / 2**30:.2f} GiB")


def show_sweep(frame: pd.DataFrame, sweep: Path) -> None:
    """The jobs of a sweep, of their metrics the first of each part; all of them are in the files beside the jobs."""
    names = list(frame.columns)
    metrics = [next((name for name in names if name.startswith(f"{part}_")), "") for part in ("valid", "test")]
    options = names[1 : names.index("status")]
    rows = []
    for row in records(frame.astype(object).where(frame.notna(), "")):
        shown = {name: row[name] for name in ("job", *options, "status", *filter(None, metrics))}
        shown["seconds"] = f"{row['seconds']:.1f}" if row.get("seconds", "") != "" else ""
        shown["peak GiB"] = f"{row['peak_rss_bytes'] / 2**30:.2f}" if row.get("peak_rss_bytes", "") != "" else ""
        rows.append(shown)
    table(rows)
    if metrics[0] and frame[metrics[0]].notna().any():
        best = records(frame)[int(frame[metrics[0]].astype(float).argmax())]
        chosen = " ".join(f"{name}={best[name]}" for name in options)
        print(f"best by {metrics[0].replace('_', ' ')}: job {best['job']} ({chosen})")
    print(f"{len(frame)} jobs in {sweep}, with sweep.parquet and sweep.csv")


def show_parts(parts: dict[str, dict[str, float]]) -> None:
    """A row for each metric, a column for each part: a screen has more room for rows than for columns."""
    names = dict.fromkeys(name for metrics in parts.values() for name in metrics)
    table([{"metric": name} | {part: found[name] for part, found in parts.items() if name in found} for name in names])


def show_account(summary: dict[str, Any]) -> None:
    """What the plan predicted beside what happened, where there was a plan."""
    from gnnrec.units import in_seconds

    if (found := summary.get("memory")) is None:
        return
    stamp, actual = "SIMULATED " if "simulated" in found else "", found["actual_seconds_per_step"]
    happened = "no step was made" if actual is None else f"actual {in_seconds(actual)} ({found['deviation']:+.0%})"
    predicted = in_seconds(found["predicted_seconds_per_step"])
    print(f"{stamp}memory: {found['mode']}, predicted step {predicted}, {happened}")
    if "hidden_share" in found:
        transfers = in_seconds(found["transfer_seconds_per_step"])
        print(f"{stamp}transfers {transfers} a step; {found['hidden_share']:.0%} of the shorter of both was hidden")
    if "likely_cause" in found:
        print(f"more than 25 % off: {found['likely_cause']}")


def show_profile(run_dir: Path) -> None:
    """The operators that take most of a step, and how much memory there was, from a run's `profile.json`."""
    import json

    profile = json.loads((run_dir / "profile.json").read_bytes())
    if not profile["steps"]:
        print("profile: no step was made")
        return
    print(f"profile of {profile['steps']} steps, {1000 * profile['seconds_per_step']:.2f} ms each")
    shown, rows = 0.0, []
    for row in profile["operators"][:PROFILED]:
        shown += row["share_ratio"]
        rows.append({"class": row["class"], "operator": row["operator"].removeprefix("gnnrec::")})
        rows[-1] |= {"direction": row["direction"] or "", "calls a step": f"{row['calls_per_step']:g}"}
        rows[-1] |= {"ms a step": 1000 * row["seconds_per_step"], "share": f"{row['share_ratio']:.1%}"}
        rows[-1] |= {"GB/s": "" if row["gb_per_s"] is None else row["gb_per_s"]}
    table(rows)
    rest = len(profile["operators"]) - len(rows)
    print(f"{rest} more rows, {1 - shown:.1%}, in profile.json; Perfetto (ui.perfetto.dev) opens {profile['trace']}")


def show_recommendations(run: Any) -> None:
    """Ten recommendations for the first user with a training item."""
    from gnnrec.recommend import recommend

    log = run.data.train
    ranker = run.ranker()
    if not len(log):  # of a rank whose users have none
        return
    user = log.user_ids.decode(log.users[:1])
    seen = run.seen(with_valid=True)
    frame = recommend(ranker, log.user_ids, log.item_ids, seen, user, min(10, log.num_items))
    print(f"recommendations for user {user[0]}")
    table(records(frame[["rank", "item", "score"]]))


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame, as `table` takes them."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def catalog_row(described: dict[str, Any]) -> dict[str, Any]:
    """A row of `gnnrec data list`, from what `catalog.describe` gives."""
    states = {file["state"] for file in described["files"]}
    row = {key: described[key] for key in ("name", "users", "items")}
    row["interactions"] = " + ".join(map(str, described["interactions"]))
    return row | {"here": states.pop() if len(states) == 1 else "incomplete", "source": described["source"]}


class Percent:
    """Prints the progress of a download, a line every ten percent."""

    shown = -1

    def __call__(self, done: int, total: int | None) -> None:
        tenths = 10 * done // total if total else 0
        if tenths > self.shown:
            self.shown = tenths
            print(f"{done / 1e6:.1f} MB" + (f" of {total / 1e6:.1f} MB" if total else ""), flush=True)


def table(rows: list[dict[str, Any]]) -> None:
    """Print rows with aligned columns."""
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table()
    for column in columns:
        is_text = any(isinstance(row.get(column), str) for row in rows)
        table.add_column(column, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        values = (row.get(column, "") for column in columns)
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values))
    # Ids may look like rich's markup. Where nobody looks at a screen, no column is to be cut.
    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 1000)
    with console.capture() as text:  # rich itself would leave with 1 where the output is a closed pipe
        console.print(table)
    print(text.get(), end="")
