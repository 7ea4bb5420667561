"""Whole runs on the public data sets, where GNNREC_DATA names them."""

from pathlib import Path

import pytest

from gnnrec import models
from gnnrec.config import (
    BPRConfig,
    DataConfig,
    GFCFConfig,
    LightGCNConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from gnnrec.training import run as runs


def train(data_root: Path, run_dir: Path, name: str, model: LightGCNConfig | GFCFConfig, epochs: int = 1) -> dict:
    gradient = isinstance(model, LightGCNConfig)
    config = TrainConfig(
        data=DataConfig(source="catalog", name=name, root=str(data_root), valid_ratio=0.1 if gradient else 0),
        model=model,
        loss=BPRConfig() if gradient else None,
        optimizer=OptimizerConfig() if gradient else None,
        trainer=TrainerConfig(epochs=epochs) if gradient else None,
    )
    config.validate()
    return runs.train(config, run_dir)[1]


def test_gfcf_on_gowalla_is_the_published_number(data_root, tmp_path):
    """Shen et al. 2021, table 3: data, mask, decomposition and metrics together."""
    summary = train(data_root, tmp_path, "gowalla", GFCFConfig())
    assert summary["data"] == {
        "name": "gowalla",
        "users": 29_858,
        "items": 40_981,
        "train": 810_128,
        "test": 217_242,
    }
    assert summary["metrics"]["test"]["recall@20"] == pytest.approx(0.1849, abs=2e-4)
    assert summary["metrics"]["test"]["ndcg@20"] == pytest.approx(0.1518, abs=2e-4)
    assert summary["train_seconds"] + summary["eval_seconds"] < 120  # 40 on an idle machine of 2 cores


@pytest.mark.parametrize(("name", "counts"), [("ml-100k", (943, 1682, 100_000)), ("lastfm", (1880, 4489, 52_668))])
def test_small_sets_train_as_they_are(data_root, tmp_path, name, counts):
    summary = train(data_root, tmp_path, name, LightGCNConfig(), epochs=10)
    data = summary["data"]
    assert (data["users"], data["items"], data["train"] + data["valid"] + data["test"]) == counts
    closed = train(data_root, tmp_path / "gfcf", name, GFCFConfig())
    for metrics in (summary["metrics"]["test"], closed["metrics"]["test"]):
        assert metrics["recall@20"] > 0.1
    run = runs.open_run(tmp_path)
    assert isinstance(run.model, models.LightGCN)
    assert runs.evaluate(run, [20])["test"] == summary["metrics"]["test"]
