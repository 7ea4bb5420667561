"""A cell of the study, in a process of its own: a few steps of a training, or what a plan says of them.

    python profiling/study_cell.py FOLDER '{"overrides": ["data=gowalla"], "placement": "dram", ...}'

study.py gives the words. The folder gets a run's config.yaml, plan.json, profile.json and trace.json, and cell.json,
which says how the cell ended, with figures whose units are those of study_records.py.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gnnrec import process

process.prepare()
# ruff: noqa: E402

import study_model
import torch
from study_settings import PLANNED

from gnnrec.config import TrainConfig, to_yaml
from gnnrec.config.recipes import composed
from gnnrec.data import dataset
from gnnrec.errors import GnnrecError
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.memtier.demands import HeldOut
from gnnrec.report.cells import STAMP
from gnnrec.storage import atomic_write
from gnnrec.training import placing, runlog
from gnnrec.training.profile import SKIPPED, StepProfile
from gnnrec.training.run import graph_of, set_threads
from gnnrec.training.rundir import PLAN, TIER
from gnnrec.training.trainer import Learner, Trainer

RECORD = "cell.json"
Json = dict[str, Any]
SETTLING = 6  # steps, after which memory comes from what earlier ones have freed: the first ones take twice as long


def main(arguments: Sequence[str]) -> int:
    """Leave cell.json; the exit code is 2 where the cell is not feasible."""
    folder, words = Path(arguments[0]), json.loads(arguments[1])
    try:
        found = {"status": "done", "reason": ""} | cell(words, folder)
    except GnnrecError as error:
        found = {"status": "infeasible", "reason": str(error)}
    atomic_write(folder / RECORD, (json.dumps(words | found, indent=1) + "\n").encode())
    return 0 if found["status"] == "done" else 2


def cell(words: Json, folder: Path) -> Json:
    """The figures of a cell."""
    config = composed(words["overrides"])
    if config.threads is not None:
        set_threads(config.threads)
    data = dataset.load(config.data)
    graph, held_out = graph_of(data.train), placing.held_out(config, data)
    workload = placing.workload(config, graph, [], held_out=held_out)
    if words["placement"] in PLANNED:
        figures = study_model.modelled(workload, words)
    else:
        if words["dram_share"] is not None:
            limit = int(words["dram_share"] * study_model.needed_bytes(workload))
            config = replace(config, memory=replace(config.memory, limit=str(limit)))
        figures = measured(config, graph, held_out, words, folder)
    counts = {"users_count": graph.num_users, "items_count": graph.num_items, "interactions_count": len(data.train)}
    return counts | study_model.footprint(workload) | figures


def measured(config: TrainConfig, graph: BipartiteGraph, held_out: HeldOut, words: Json, folder: Path) -> Json:
    """Steps that are run: by the clock, then operator by operator."""
    assert config.trainer is not None
    assert config.loss is not None
    assert config.optimizer is not None
    tier = folder / TIER
    places = placing.planned(config, graph, held_out=held_out, folder=tier)
    learner: Learner | None = None
    try:
        model, graph = placing.build(config, graph, places, torch.device("cpu"), tier)
        trainer = Trainer(model, config.trainer, config.loss, config.optimizer, seed=config.seed, places=places)  # type: ignore[arg-type]
        learner, lr = trainer.learner, config.optimizer.lr
        learner.warm_up(0)
        settled = len(_timed(learner, lr, 0, SETTLING, words["step_budget"]))
        seconds = _timed(learner, lr, settled, words["steps"], words["step_budget"])
        profile, begin = StepProfile(folder, 4 * config.model.dim), settled + len(seconds)  # type: ignore[union-attr]
        with profile.watch(learner, SKIPPED + len(seconds)):
            for step in range(begin, begin + SKIPPED + len(seconds)):
                float(profile.step(learner, step, lr))
        profile.write()
    finally:
        if learner is not None:
            learner.close(drain=False)
        places.close()
    atomic_write(folder / "config.yaml", to_yaml(config).encode())
    plan = places.plan
    if plan is not None:
        atomic_write(folder / PLAN, (json.dumps(plan.to_dict(), indent=1) + "\n").encode())
    median = statistics.median(seconds)
    found: Json = {"provenance": STAMP if config.memory.slower is not None else "measured"}
    found |= {"seconds_per_step": median, "spread_ratio": (max(seconds) - min(seconds)) / median}
    found |= {"steps_count": len(seconds), "peak_rss_bytes": runlog.peak_rss_bytes()}
    return found | study_model.of_plan(plan, places.home)


def _timed(learner: Learner, lr: float, first: int, steps: int, budget: float) -> list[float]:
    """Seconds of so many steps from the first on, of fewer where these take the budget."""
    seconds: list[float] = []
    while len(seconds) < steps and sum(seconds) < budget:
        started = time.perf_counter()
        float(learner.step(first + len(seconds), lr))
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
