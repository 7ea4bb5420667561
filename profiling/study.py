"""The study of recommenders on slower memory: what a step of LightGCN and NGCF takes and holds by layers, width, batch
and data, and by where tensors lie; and what follows for whoever buys or configures memory.

    python profiling/study.py                            # some minutes; outputs/study/study.html, .md, .json, .parquet
    python profiling/study.py preset=paper folder=/mnt/pmem0 out=outputs/paper  # an hour; folder: the slow tier
    python profiling/study.py data=[mine] centre.data=mine sources.mine=[data=files,data.log=ratings.csv] models=[ngcf]

study.yaml has all settings. Each cell is a process of its own with a run folder in OUT/runs; a second call goes on
where the first stopped, and tries again what has no figures. Let the machine be idle meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gnnrec import process

process.prepare()
# ruff: noqa: E402

import pandas as pd
import study_records as records
import study_report
from study_cell import RECORD
from study_findings import findings
from study_model import preset
from study_settings import FILE, PLANNED, Cell, Settings, settings

from gnnrec.config import SimulateConfig
from gnnrec.config.recipes import composed
from gnnrec.errors import GnnrecError
from gnnrec.memtier import calibrate, conditions
from gnnrec.memtier.costs import Access, bandwidth
from gnnrec.memtier.declared import declared
from gnnrec.memtier.discover import discover
from gnnrec.memtier.tiers import Tier
from gnnrec.ops import most_threads
from gnnrec.recommend import write_table
from gnnrec.storage import atomic_write, storage_errors
from gnnrec.training import runlog

SECONDS = 90.0  # of a calibration, at most, as `gnnrec calibrate` takes
Json = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 2 for what the user can mend, failed cells among it, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__, FILE.read_text(), sep="\n")
        return 0
    try:
        run(settings(arguments))
    except GnnrecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    return 0


def run(wanted: Settings) -> None:
    """Measure what was not measured; write table and report, after Ctrl-C of what there is.

    Raises:
        GnnrecError: no such hardware, an option that cannot be used, a file that cannot be written, a damaged record;
            in the end, for a cell that failed, or none that has figures.
    """
    cells = wanted.cells()
    # A cell of every data: options and sources that cannot be used are said before there are processes.
    configs = [composed(_training(cell, wanted)) for cell in {cell.data: cell for cell in cells}.values()]
    threads = configs[0].threads or most_threads()
    out = Path(wanted.out)
    folder = Path(os.path.abspath(wanted.folder or out / "tier"))
    for path in (out, folder):
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
    if (load := conditions.load_per_core()) > conditions.BUSY:
        print(f"warning: load {load:.2f} a core: figures of a busy machine are too high", file=sys.stderr, flush=True)
    hardware, tiers = declared(preset(wanted.hardware.app_direct)), _measured(folder)
    slower = _slower(wanted, hardware, threads)
    machine = {"date": datetime.now(UTC).date().isoformat()} | conditions.machine()
    machine |= {"load_per_core": round(load, 2), **runlog.versions(gpu=False)}
    try:
        for number, cell in enumerate(cells, 1):
            words, place = _words(cell, wanted, folder, slower), out / "runs" / cell.name
            if not _ended(place, words):
                print(f"{number} of {len(cells)}: {cell.name}", flush=True)
                _in_process(place, words | {"conditions": machine}, wanted.timeout)
    finally:
        content = records.gather(wanted, tiers, hardware, slower, threads)
        _report(wanted, out, content)
    states = [row["status"] for row in content["cells"]]
    if "failed" in states or "done" not in states:
        found = f"{states.count('failed')} of {len(states)} cells failed, {states.count('done')} have figures"
        remedy = "The report tells why, output.txt in a cell's folder more; the same command tries these again"
        raise GnnrecError(found, where=str(out / "runs"), remedy=remedy)


def _report(wanted: Settings, out: Path, content: Json) -> None:
    """Write all figures and the report; print the guidance."""
    atomic_write(out / f"{wanted.title}.json", (json.dumps(content, indent=1) + "\n").encode())
    frame = pd.DataFrame(content["cells"], columns=list(records.CELLS)).convert_dtypes()
    write_table(frame, out / f"{wanted.title}.parquet")
    page, *_ = study_report.write(content, out / f"{wanted.title}.html")
    for finding in findings(content):
        print(f"- {finding.text}{f' -> {finding.helps}' if finding.helps else ''}")
    print(f"{page}, with {wanted.title}.md, tables as {wanted.title}-*.csv, all figures as .json and .parquet")


def _measured(folder: Path) -> list[Tier]:
    """DRAM and the folder's device with their rates, measured where that was not done on this machine."""
    tiers = [tier for tier in calibrate.calibrated(discover([folder])) if not tier.unavailable]
    tiers = [tier for tier in tiers if tier.kind == "dram" or tier.where == str(folder)]
    unknown = [tier for tier in tiers if tier.provenance != "measured"]
    if unknown:
        kinds = " and ".join(tier.kind for tier in unknown)
        print(f"measuring {kinds}, once on this machine: {SECONDS:.0f} s", flush=True)
        calibrate.keep(calibrate.measure(unknown, seconds=SECONDS))
        tiers = calibrate.calibrated(tiers)
    return tiers


def _slower(wanted: Settings, hardware: Sequence[Tier], threads: int) -> SimulateConfig:
    """The speeds of a simulated device: as given, or what so many threads get of the declared one."""
    if wanted.simulate.read_gb_per_s is not None:
        return wanted.simulate
    slow = next(tier for tier in hardware if tier.kind != "dram")
    read, write = (bandwidth(slow, Access(way, 1), threads).gb_per_s for way in ("read", "write"))
    return replace(wanted.simulate, read_gb_per_s=read, write_gb_per_s=write)


def _training(cell: Cell, wanted: Settings) -> list[str]:
    """The options of a cell's training, wherever tensors lie."""
    overrides = [*wanted.sources[cell.data], "data.valid_ratio=0", "device=cpu", "loss.reg=1e-4"]
    overrides += [f"model={cell.model}", f"model.layers={cell.layers}", f"model.dim={cell.dim}"]
    return [*overrides, f"trainer.batch_size={cell.batch}", *wanted.options]


def _words(cell: Cell, wanted: Settings, folder: Path, slower: SimulateConfig) -> Json:
    """What study_cell.py is told."""
    overrides = _training(cell, wanted)
    memory = {"direct": "direct", "auto": "auto", "app_direct": "stream"}.get(cell.placement)
    if memory is not None:
        overrides += [f"memory={memory}", f"memory.folder={folder}"]
    if cell.placement == "app_direct":
        overrides += [
            f"memory.simulate.{way}_gb_per_s={getattr(slower, f'{way}_gb_per_s')}" for way in ("read", "write")
        ]
        overrides.append(f"memory.simulate.latency_us={slower.latency_us}")
    words: Json = {"overrides": overrides, "placement": cell.placement, "hardware": vars(wanted.hardware)}
    limited = memory in ("auto", "stream") or cell.placement in PLANNED
    words |= {"dram_share": wanted.dram_share if limited else None, "version": records.VERSION}
    return words | {"steps": wanted.steps, "step_budget": wanted.step_budget}


def _ended(place: Path, words: Json) -> bool:
    """Whether this cell has its figures, with these settings."""
    record = records.read(place)
    return record is not None and record["status"] == "done" and words.items() <= record.items()


def _in_process(place: Path, words: Json, timeout: float) -> None:
    """Run a cell; where it does not tell how it ended, its record says that it failed."""
    with storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        (place / RECORD).unlink(missing_ok=True)
    script = Path(__file__).with_name("study_cell.py")
    command, why = [sys.executable, str(script), str(place), json.dumps(words)], ""
    with open(place / "output.txt", "wb") as output:
        try:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=timeout).returncode
            why = f"exit code {code}, see output.txt in its folder"
        except subprocess.TimeoutExpired:
            why = f"it took more than {timeout:g} s"
    record = records.read(place)
    if record is None:
        record = words | {"status": "failed", "reason": why}
        atomic_write(place / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    if record["status"] != "done":
        print(f"  {record['status']}: {record['reason']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
