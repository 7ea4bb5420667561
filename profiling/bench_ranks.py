"""What several processes cost: a training step of 1 process x 2 threads beside 2 processes x 1 thread, by torchrun.

    python profiling/bench_ranks.py                      # Gowalla, experiment=published_lightgcn, one epoch a run
    python profiling/bench_ranks.py --split rows
    python profiling/bench_ranks.py --rounds 5 --out ranks.json trainer.batch_size=65536

Rounds alternate, seconds are those of a step without compilation, ratios medians over rounds. The losses of both must
agree before a time is shown. What stands at the end of the command line goes to both trainings.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnnrec.storage import atomic_write
from gnnrec.training.runlog import machine, read_events, versions

GOAL = 1.15  # times the seconds of a single process
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node={ranks}", "-m"]
CLOSE = 1e-5  # relative: of losses of an epoch, whose scores are summed in another order


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2, help="threads of the one process, and number of the others")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--split", choices=["columns", "rows"], default="columns", help="what each process has")
    parser.add_argument("--out", type=Path, help="JSON")
    options, more = parser.parse_known_args(arguments)
    overrides = ["data=gowalla", "experiment=published_lightgcn", "trainer.epochs=1", "device=cpu", *more]
    rounds = []
    for number in range(options.rounds):
        split = [f"distributed.split={options.split}"]
        found = {
            ranks: run(ranks, options.cores // ranks, overrides + (split if ranks > 1 else []))
            for ranks in (1, options.cores)
        }
        one, several = found.values()
        if abs(one["loss"] - several["loss"]) > CLOSE * abs(one["loss"]):
            print(f"losses differ: {one['loss']} and {several['loss']}", file=sys.stderr)
            return 1
        rounds.append({"one": one, "several": several, "ratio": several["step_seconds"] / one["step_seconds"]})
        print(f"round {number + 1}: {shown(one)}; {shown(several)}; ratio {rounds[-1]['ratio']:.3f}", flush=True)
    ratio = statistics.median(entry["ratio"] for entry in rounds)
    print(f"{options.cores} processes take {ratio:.3f} of one (goal: at most {GOAL}); load {os.getloadavg()[0]:.1f}")
    if options.out is not None:
        report = {"overrides": overrides, "cores": options.cores, "split": options.split}
        report |= {"ratio": ratio, "rounds": rounds}
        report |= {"load": os.getloadavg(), "machine": machine(), "versions": versions()}
        atomic_write(options.out, (json.dumps(report, indent=2) + "\n").encode())
    return 0


def run(ranks: int, threads: int, overrides: Sequence[str]) -> dict[str, Any]:
    """A training of its own in a folder of its own."""
    start = [word.format(ranks=ranks) for word in TORCHRUN] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        given = [*overrides, f"threads={threads}", f"hydra.run.dir={folder}/run"]
        words = [sys.executable, "-m", *start, "gnnrec", "train", *given]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads(Path(folder, "run", "summary.json").read_bytes())
        epochs = [event for event in read_events(Path(folder, "run", "events.jsonl")) if event["event"] == "epoch"]
    seconds = (summary["train_seconds"] - summary["compile_seconds"]) / summary["steps"]
    found = {"ranks": ranks, "threads": threads, "step_seconds": seconds, "loss": epochs[-1]["loss"]}
    return found | {name: summary.get(name) for name in ("metrics", "eval_seconds", "peak_rss_bytes", "distributed")}


def shown(found: dict[str, Any]) -> str:
    """Of a training, what counts."""
    return f"{found['ranks']} x {found['threads']} threads {1000 * found['step_seconds']:.1f} ms a step"


if __name__ == "__main__":
    sys.exit(main())
