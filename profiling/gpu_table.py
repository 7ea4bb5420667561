"""The README's tables of a GPU, from bench_ops.json: python profiling/gpu_table.py [FILE]. What is absent is "not
measured"."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnnrec import process

process.prepare()
# ruff: noqa: E402

from operations import FORWARD
from operations_gpu import OPERATIONS

RESULTS = Path(__file__).parent / "results" / "gpu.json"
ABSENT = "not measured"
MIB = 2**20

Json = dict[str, Any]


def main(arguments: Sequence[str]) -> None:
    """Print both tables."""
    file = Path(arguments[0]) if arguments else RESULTS
    report = json.loads(file.read_text()) if file.exists() else {}
    results = {(result["operation"], result["mode"]): result for result in report.get("results", [])}
    print(head(report), "", *targets(results), "", *comparison(results), sep="\n")


def head(report: Json) -> str:
    """What the numbers were measured on."""
    if not report:
        return f"GPU: {ABSENT}."
    machine, versions, copy = report["machine"], report["versions"], report["copy_bandwidth"]
    names = ", ".join(f"{name} {versions[name] or ABSENT}" for name in ("torch", "triton", "torch_geometric", "dgl"))
    data = report["data"]["name"]
    return f"{machine['gpu']}, CUDA {machine['cuda']}, {names}; a copy moves {copy / 1e9:,.0f} GB/s. Data: {data}."


def targets(results: dict[tuple[str, str], Json]) -> list[str]:
    """Each target of the table beside what was measured."""
    lines = ["| operation | to reach | measured |", "|---|---|---|"]
    for operation in OPERATIONS:
        for mode, wanted in operation.targets.items():
            found = {v["target"]: v for v in results.get((operation.name, mode), {}).get("verdicts", [])}
            lines += [f"| {operation.name}, {mode} | {t} | {_verdict(found.get(str(t)))} |" for t in wanted]
    return lines


def _verdict(verdict: Json | None) -> str:
    if verdict is None or verdict["measured"] is None:
        return ABSENT
    number = verdict["measured"]
    shown = {"limit": f"{1e3 * number:.2f} ms", "bandwidth": f"{number:.0%}"}.get(verdict["of"], f"{number:.1f} x")
    return shown if verdict["reached"] else f"{shown}: missed"


def comparison(results: dict[tuple[str, str], Json]) -> list[str]:
    """Ours beside the peers."""
    lines = ["| | ours | time of others / ours | peak memory of others / ours |", "|---|---|---|---|"]
    for operation, mode in ((each, mode) for each in OPERATIONS for mode in each.modes):
        if mode == FORWARD and operation.op != "spmm" and len(operation.modes) > 1:
            continue  # the backward pass comes with the forward pass
        rows = results.get((operation.name, mode), {}).get("rows", [])
        ours = next((row for row in rows if row["name"] == "ours" and row["status"] == "ok"), None)
        others = [row for row in rows if row["ratio"]]
        times = ", ".join(f"{row['name']} {row['ratio']:.2g}" for row in others) or ABSENT
        memory = ", ".join(f"{row['bytes_ratio']:.2g}" if row["bytes_ratio"] else "-" for row in others) or ABSENT
        mine = f"{1e3 * ours['median']:.3g} ms, {ours['peak_bytes'] / MIB:,.0f} MiB" if ours else ABSENT
        lines.append(f"| {operation.name}, {mode} | {mine} | {times} | {memory} |")
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
