"""What studies share: a recipe composed by Hydra, trained with an evaluation of the test part after every epoch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnnrec import process

process.prepare()
# ruff: noqa: E402

from gnnrec import models
from gnnrec.config.recipes import composed
from gnnrec.data import dataset
from gnnrec.training.evaluate import Evaluator
from gnnrec.training.run import graph_of
from gnnrec.training.runlog import RunLog, read_events
from gnnrec.training.trainer import Trainer
from gnnrec.training.view import views


def curve(overrides: Sequence[str], data: dataset.Dataset | None = None, every: int = 1) -> dict[str, Any]:
    """Train on all of the training part; the test part's metrics after every so many epochs choose nothing.

    Returns:
        overrides; epochs: a record of each evaluated one with epoch, step, loss, seconds of training up to there
        (compilation included) and metrics; start_seconds: of making the model (a decomposition of the graph, for a
        spectral start); compile_seconds; steps.
    """
    config = composed([*overrides, "data.valid_ratio=0"])
    assert config.trainer is not None
    assert config.loss is not None
    assert config.optimizer is not None
    data = dataset.load(config.data) if data is None else data
    graph = graph_of(data.train)
    started = time.perf_counter()
    model = models.build(config.model, graph, config.seed)
    start_seconds = time.perf_counter() - started
    assert not isinstance(model, models.GFCF)
    config.trainer.eval_every, config.trainer.patience = every, 2**31  # never stops early
    test = Evaluator(data.test, graph.user_item(), config.evaluation.k)
    with tempfile.TemporaryDirectory() as folder, RunLog(folder, views()) as log:
        trainer = Trainer(model, config.trainer, config.loss, config.optimizer, seed=config.seed, valid=test, log=log)
        position = trainer.fit()
        records = read_events(Path(folder, "events.jsonl"))
        events = [event for event in records if event["event"] == "epoch" and event["valid"]]
    epochs = [
        {name: event[name] for name in ("epoch", "step", "loss", "train_seconds")} | {"metrics": event["valid"]}
        for event in events
    ]
    result = {"overrides": list(overrides), "epochs": epochs, "start_seconds": start_seconds}
    return result | {"compile_seconds": position.compile_seconds, "steps": position.step}
