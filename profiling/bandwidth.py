"""The bandwidth matrix of this machine's memory: operation x order x access size x threads x tier x near or far node,
with latency by working set and loaded latency, after Intel's Memory Latency Checker and NVIDIA's nvbandwidth.

    python profiling/bandwidth.py                                      # two minutes; outputs/bandwidth/bandwidth.json
    python profiling/bandwidth.py preset=full folders=[/mnt/nvme] out=full.json tables=full   # all of it, up to an hour
    python profiling/bandwidth.py tiers=[dram] ops=[read,write_nt] sizes=[64,256,4096] budget=30
    python profiling/bandwidth_report.py FILE [FOLDER]                 # the tables of a file again

bandwidth.yaml has all settings. The file holds one value a field, and under `fields` the unit of each. Let the machine
be idle meanwhile. In each folder a file of up to 4 GiB is written, and removed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gnnrec import process

process.prepare()
# ruff: noqa: E402

import bandwidth_records as records
import bandwidth_report
import bandwidth_tiers
from bandwidth_nodes import processors
from bandwidth_settings import FILE, settings

from gnnrec.errors import GnnrecError
from gnnrec.memtier import conditions
from gnnrec.memtier.discover import discover
from gnnrec.storage import atomic_write, storage_errors


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 2 for what the user can mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__, FILE.read_text(), sep="\n")
        return 0
    try:
        run(arguments)
    except GnnrecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(overrides: Sequence[str]) -> None:
    """Measure, write, show.

    Raises:
        GnnrecError: a wrong setting, nothing to measure, a file that cannot be written.
    """
    wanted, groups = settings(overrides), processors()
    out = Path(wanted.out)
    with storage_errors(out):  # before the measuring
        out.parent.mkdir(parents=True, exist_ok=True)
        out.open("ab").close()
    content = records.begin(wanted, groups)
    if content["machine"]["load_per_core"] > conditions.BUSY:
        load = content["machine"]["load_per_core"]
        print(f"warning: load {load:.2f} a core: figures of a busy machine are too low", file=sys.stderr, flush=True)

    def keep() -> None:
        atomic_write(out, json.dumps(content, indent=1).encode())

    bandwidth_tiers.measure(discover(wanted.folders), wanted, groups, content, _tell, keep)
    keep()  # with what was left out
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    bandwidth_report.show(content)
    print(f"kept in {out}")
    if wanted.tables is not None:
        for file in bandwidth_report.write(content, Path(wanted.tables)):
            print(f"        {file}")


def _tell(words: str) -> None:
    """Show what is being measured, on one line of a screen."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{words}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
