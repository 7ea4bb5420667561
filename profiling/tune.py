"""Tunes the GPU kernels' launch shapes for the graphs that bench_ops.py measures on.

    python profiling/tune.py --out tune.json                      # choices go where operators look, times into the file
    python profiling/tune.py --operators spmm --compile           # compiles the candidates only: several at once

What `gnnrec tune` does for any graph, without Hydra.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gnnrec import process

process.prepare()
# ruff: noqa: E402

import torch
import workload

from gnnrec import device as devices
from gnnrec.ops import tuner, tuning
from gnnrec.ops.tuner import Tuned
from gnnrec.storage import atomic_write

LARGE = ("spmm", "ngcf_layer")  # what training on the large graph takes


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", nargs="+", choices=tuple(tuning.CANDIDATES), default=tuple(tuning.CANDIDATES))
    parser.add_argument("--data", default="gowalla", help="a data set of the catalog")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--out", type=Path, help="a JSON file for what each candidate took")
    parser.add_argument("--compile", action="store_true", help="compile the candidates, measure and keep nothing")
    options = parser.parse_args(arguments)
    try:
        device = devices.resolve("cuda")
    except devices.DeviceError as error:
        print(error, file=sys.stderr)
        return 2
    found: list[dict[str, object]] = []
    for graph, tuned in results(options, device):
        print(f"{tuned.operator}, dim {tuned.dim}, {graph}: {dict(tuned.shape)}", end="")
        print(f", {1e3 * tuned.seconds:.3f} ms; by default {1e3 * tuned.default_seconds:.3f} ms", flush=True)
        found.append({"graph": graph, **vars(tuned), "shape": dict(tuned.shape)})
        if not options.compile:
            tuning.keep(dict.fromkeys(tuned.keys, tuned.shape))
        if options.out:
            atomic_write(options.out, json.dumps(found, indent=1).encode())
    return 0


def results(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Tuned]]:
    """The usual graph, then the large one; each with its name."""
    w = workload.load(options.data, options.dim, 1, quick=False, device=device)
    clock = (lambda call: 1.0) if options.compile else None
    for tuned in tuner.tune(
        w.adjacency, operators=options.operators, dims=(options.dim,), items=w.graph.num_items, clock=clock
    ):
        yield w.name, tuned
    operators = [] if options.compile else [name for name in LARGE if name in options.operators]
    if operators:
        w = workload.load_large(w, quick=False)
        for tuned in tuner.tune(w.adjacency, operators=operators, dims=(options.dim,)):
            yield w.name, tuned


if __name__ == "__main__":
    sys.exit(main())
