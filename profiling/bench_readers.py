"""Seconds and peak memory to read a large log: writes a CSV of random interactions, reads it in a fresh process.

    python profiling/bench_readers.py --rows 20000000 --kind integer

Target for 20 M rows on 2 cores: at most 8 s and 1 GiB.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET = "target for 20 M rows on 2 cores: 8 s, 1 GiB"
USERS, ITEMS, BLOCK = 1_000_000, 200_000, 1_000_000


def write(path: Path, rows: int, kind: str) -> None:
    """Rows in no order, popularity with a long tail; integer ids with gaps, or ids of 13 characters."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv

    rng = np.random.default_rng(0)

    def ids(count: int) -> pa.Array:
        numbers = rng.permutation(3 * count)[:count]
        return pa.array(numbers if kind == "integer" else [f"A{n * 7919 % 10**12:012d}" for n in numbers.tolist()])

    users, items = ids(USERS), ids(ITEMS)
    with path.open("wb") as file:
        for start in range(0, rows, BLOCK):
            n = min(BLOCK, rows - start)
            columns = {
                "user": users.take(pa.array((USERS * rng.random(n) ** 2).astype(np.int64))),
                "item": items.take(pa.array((ITEMS * rng.random(n) ** 3).astype(np.int64))),
                "rating": pa.array(rng.integers(1, 11, n) / 2),
                "timestamp": pa.array(rng.integers(1_100_000_000, 1_400_000_000, n)),
            }
            options = pyarrow.csv.WriteOptions(include_header=start == 0)
            pyarrow.csv.write_csv(pa.table(columns), file, options)


def read(path: Path, cores: int) -> None:
    """Reads the file on the first `cores` cores and prints what it took; the import of the reader counts."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    begin = time.perf_counter()
    from gnnrec.data.readers import read_interactions

    log = read_interactions(path, rating="rating", timestamp="timestamp")
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(log):,} rows, {log.num_users:,} users, {log.num_items:,} items, ids {log.user_ids.ids.type}")
    busy = time.process_time()  # beside the seconds it tells whether other programs had the cores
    print(f"{seconds:.2f} s ({busy:.2f} s of CPU), {peak:.2f} GiB peak RSS on {cores} cores; {TARGET}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--kind", choices=("integer", "string"), default="integer", help="of ids")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--read", type=Path, help="only read this file, in this process")
    arguments = parser.parse_args()
    if arguments.read:
        read(arguments.read, arguments.cores)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        write(path, arguments.rows, arguments.kind)
        print(f"{path.stat().st_size / 1e6:,.0f} MB of CSV", flush=True)
        command = [sys.executable, __file__, "--read", str(path), "--cores", str(arguments.cores)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
