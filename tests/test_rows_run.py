"""Runs of ranks that have rows: results of one process, checkpoints for any number. The ranks are threads here."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pretend_ranks
import pytest
import torch
from pretend_ranks import together
from test_run import config as run_config

from gnnrec import models
from gnnrec.config import DistributedConfig, LightGCNConfig, NGCFConfig
from gnnrec.data import synthetic
from gnnrec.graph.rows import GraphRows
from gnnrec.ranks import Ranks
from gnnrec.training import evaluate, run
from gnnrec.training.evaluate import Evaluator


@pytest.fixture(scope="module")
def log():
    return synthetic.generate(200, 150, 3000, communities=4, seed=0).log


def rows(log, ranks: Ranks) -> GraphRows:
    return GraphRows(log.users, log.items, log.num_users, log.num_items, ranks)


def config(model, epochs: int, split: str | None = "rows", **changes):
    base = run_config()
    changes |= {"model": model, "trainer": replace(base.trainer, epochs=epochs)}
    return replace(base, distributed=DistributedConfig(split), **changes)


def train(folder: Path, size: int, model, epochs: int, split: str | None = "rows", **changes) -> dict:
    """The summary of a run by so many ranks, 0 for a process that knows nothing of them."""
    if not size:
        return run.train(config(model, epochs, None, **changes), folder)[1]

    def work(ranks: Ranks):
        with run.train(config(model, epochs, split, **changes), folder, ranks=ranks)[0] as done:
            assert done.graph.num_nodes == 350
        return json.loads(json.dumps({"metrics": run.evaluate(done, [20])}))

    first, *others = together(size, work)
    assert all(other == first for other in others)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics"] == first["metrics"]
    return summary


MODELS = [LightGCNConfig(dim=32, layers=2, popularity=0.2), NGCFConfig(dim=16, layers=2)]


@pytest.fixture(scope="module", params=MODELS, ids=["lightgcn", "ngcf"])
def finished(request, tmp_path_factory) -> tuple:
    return request.param, train(tmp_path_factory.mktemp("one") / "run", 0, request.param, 4)


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 2), (2, 3)])
def test_a_run_goes_on_with_another_number_of_ranks(finished, tmp_path, before, after):
    model, expected = finished
    train(tmp_path / "run", before, model, 2)
    summary = train(tmp_path / "run", after, model, 4, resume=True)
    assert summary["steps"] == expected["steps"]
    for part, metrics in expected["metrics"].items():
        bits = isinstance(model, LightGCNConfig)
        assert summary["metrics"][part] == (metrics if bits else pytest.approx(metrics, rel=1e-2))
    if after:
        assert summary["distributed"]["split"] == "rows"
    assert summary["data"] == expected["data"]
    opened = run.open_run(tmp_path / "run")
    assert run.evaluate(opened, [20]) == summary["metrics"]


def test_columns_go_on_as_rows_and_rows_as_columns(tmp_path):
    model = MODELS[0]
    expected = train(tmp_path / "one", 0, model, 3)
    for epochs, split in ((1, "columns"), (2, "rows"), (3, "columns")):
        summary = train(tmp_path / "run", 2, model, epochs, split, resume=epochs > 1)
    for part, metrics in expected["metrics"].items():
        assert summary["metrics"][part] == pytest.approx(metrics, rel=1e-3)


def test_ngcf_is_split_into_rows_unless_told_otherwise():
    assert DistributedConfig().by_rows(NGCFConfig())
    assert not DistributedConfig().by_rows(LightGCNConfig())


def test_a_rank_may_have_nobody_to_rank(log):
    """The metrics are those of one process, to the bit."""
    train, test = (log.take(np.flatnonzero((log.items % 3 == 0) == there)) for there in (False, True))
    test = test.take(np.flatnonzero(test.users < 40))
    model, graph = LightGCNConfig(dim=16, layers=1), run.graph_of(train)
    expected = Evaluator(test, graph.user_item(), [5, 60])(models.build(model, graph, 1).scorer())
    assert expected["recall@60"] > 0

    def work(ranks: Ranks) -> tuple[int, dict[str, float]]:
        part = rows(train, ranks)
        own = part.own_users
        kept = test.take(np.flatnonzero((test.users >= own.start) & (test.users < own.stop)))
        scorer = models.LightGCNRows(part, model, 1, torch.device("cpu")).scorer()
        return len(kept), Evaluator(kept, part.user_item(), [5, 60], ranks)(scorer)

    found = together(3, work)
    assert [count for count, _ in found][1:] == [0, 0]
    assert all(metrics == expected for _, metrics in found)


def test_a_rank_with_nobody_waits_for_a_block_of_others_at_a_time(log, monkeypatch):
    """All of them take longer than a rank may wait for another."""
    monkeypatch.setattr(pretend_ranks, "SECONDS", 2.0)
    monkeypatch.setattr(evaluate, "users_at_a_time", lambda k, on_gpu: 8)
    test, model = log.take(np.flatnonzero(log.users < 40)), LightGCNConfig(dim=16, layers=1)
    graph = run.graph_of(log)
    expected = Evaluator(test, graph.user_item(), [5])(models.build(model, graph, 1).scorer())

    def work(ranks: Ranks) -> dict[str, float]:
        part = rows(log, ranks)
        scorer = models.LightGCNRows(part, model, 1, torch.device("cpu")).scorer()
        topk = scorer.topk
        scorer.topk = lambda *given: (time.sleep(0.5), topk(*given))[1]
        kept = test if part.own_users.start == 0 else test.take(np.empty(0, np.int64))
        return Evaluator(kept, part.user_item(), [5], ranks)(scorer)

    assert all(metrics == expected for metrics in together(2, work))
