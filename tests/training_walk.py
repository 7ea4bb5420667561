"""Training, evaluation and recommendations on a GPU beside the CPU's.

For tests/interpreter, where the GPU is pretended, and tests/gpu. Their fixture `gpu` is the device that device=cuda
stands for, `without_waiting` a context in which nothing may make the CPU wait for it.
"""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import gnnrec
from gnnrec import recommend
from gnnrec.config import (
    BPRConfig,
    DataConfig,
    DirectAUConfig,
    EvaluationConfig,
    GFCFConfig,
    LightGCNConfig,
    NGCFConfig,
    OptimizerConfig,
    SimGCLConfig,
    SoftmaxConfig,
    SquaredConfig,
    SyntheticConfig,
    TrainConfig,
    TrainerConfig,
    XSimGCLConfig,
)
from gnnrec.data import dataset
from gnnrec.models import GFCF, LightGCN, spectral
from gnnrec.models.scorer import FilterScorer
from gnnrec.training import run
from gnnrec.training.runlog import read_events
from gnnrec.training.trainer import Interrupted, Trainer

DATA = DataConfig(
    source="synthetic",
    name="synthetic",
    synthetic=SyntheticConfig(num_users=40, num_items=48, num_interactions=300, communities=3),
)
SECTIONS = {
    "lightgcn": {
        "model": LightGCNConfig(dim=8, layers=2),
        "loss": BPRConfig(),
        "optimizer": OptimizerConfig(lr=0.02),
        "trainer": TrainerConfig(epochs=2, batch_size=64, eval_every=1, monitor="recall@10"),
    },
    "ngcf": {
        "model": NGCFConfig(dim=8, layers=2, message_dropout=0.1, node_dropout=0.2),
        "loss": BPRConfig(),
        "optimizer": OptimizerConfig(lr=0.02),
        "trainer": TrainerConfig(epochs=1, batch_size=128, eval_every=1, monitor="recall@10"),
    },
    "softmax": {
        "model": LightGCNConfig(dim=8, layers=2, init="spectral", similarity="cosine", popularity=0.1),
        "loss": SoftmaxConfig(user_power=0.5, precision="float32"),
        "optimizer": OptimizerConfig(lr=0.02),
        "trainer": TrainerConfig(epochs=2, batch_size=128, eval_every=1, monitor="recall@10", lr_decay="cosine"),
    },
    "squared": {
        "model": LightGCNConfig(dim=8, layers=1),
        "loss": SquaredConfig(user_power=0.5, reg=0.01),
        "optimizer": OptimizerConfig(lr=0.02),
        "trainer": TrainerConfig(epochs=1, batch_size=128, eval_every=1, monitor="recall@10"),
    },
    "directau": {
        "model": LightGCNConfig(dim=8, layers=1),
        "loss": DirectAUConfig(precision="float32"),
        "optimizer": OptimizerConfig(lr=0.02),
        "trainer": TrainerConfig(epochs=1, batch_size=128, eval_every=1, monitor="recall@10"),
    },
    "simgcl": {
        "model": SimGCLConfig(dim=8, layers=1, contrast_nodes=20),
        "loss": BPRConfig(),
        "optimizer": OptimizerConfig(lr=0.02),
        "trainer": TrainerConfig(epochs=1, batch_size=128, eval_every=1, monitor="recall@10"),
    },
    "xsimgcl": {
        "model": XSimGCLConfig(dim=8, layers=2),
        "loss": SoftmaxConfig(precision="float32"),
        "optimizer": OptimizerConfig(lr=0.02),
        "trainer": TrainerConfig(epochs=1, batch_size=128, eval_every=1, monitor="recall@10"),
    },
    "learned": {
        "model": LightGCNConfig(dim=8, layers=2, layer_weights="learned"),
        "loss": BPRConfig(),
        "optimizer": OptimizerConfig(lr=0.02),
        "trainer": TrainerConfig(epochs=1, batch_size=128, eval_every=1, monitor="recall@10"),
    },
    "gfcf": {"model": GFCFConfig(factors=4), "loss": None, "optimizer": None, "trainer": None},
}
DEVICES = ("cpu", "cuda")


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Several blocks of users, where there are several on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FilterScorer, "BLOCK", 16)
        patch.setattr(FilterScorer, "GPU_BLOCK", 16)
        yield


def config(model, device) -> TrainConfig:
    return TrainConfig(data=DATA, device=device, evaluation=EvaluationConfig(k=[5, 10]), **SECTIONS[model])


@pytest.fixture(scope="module", params=list(SECTIONS))
def trained(request, tmp_path_factory, gpu):
    """The folders, models and summaries of the same run on both devices."""
    folder = tmp_path_factory.mktemp(request.param)
    return {device: (folder / device, *run.train(config(request.param, device), folder / device)) for device in DEVICES}


def lies_on(module, device) -> bool:
    return all(x.device == device for x in module.state_dict().values())


def test_a_run_on_either_device_gives_the_same(trained, gpu):
    losses, metrics = {}, {}
    for device, (folder, done, summary) in trained.items():
        assert lies_on(done.model, gpu if device == "cuda" else torch.device("cpu"))
        events = read_events(folder / "events.jsonl")
        losses[device] = [event["loss"] for event in events if event["event"] == "epoch"]
        metrics[device] = summary["metrics"]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-6)
    for part, expected in metrics["cpu"].items():
        assert metrics["cuda"][part] == pytest.approx(expected, abs=1e-3)
    # Evaluated on the other device.
    folder, _, summary = trained["cuda"]
    found = run.evaluate(run.open_run(folder, "cpu"), [5, 10])
    for part, expected in summary["metrics"].items():
        assert found[part] == pytest.approx(expected, abs=1e-3)


def test_recommendations_from_either_device(trained, gpu):
    tables = []
    for device in DEVICES:
        opened = run.open_run(trained["cpu"][0], device)
        scorer, log = opened.model.scorer(), opened.data.train
        assert scorer.item_vectors.device == (gpu if device == "cuda" else torch.device("cpu"))
        ids, few = (log.user_ids, log.item_ids), log.user_ids.decode(np.arange(3))
        found = [
            recommend.recommend(scorer, *ids, opened.seen(with_valid=True), few, 5),
            recommend.recommend(scorer, *ids, None, few, 5),
            recommend.recommend_new_users(scorer, ids[1], log, 5),
            recommend.similar_items(scorer, ids[1], log.item_ids.decode(np.arange(3)), 5),
        ]
        if not isinstance(opened.model, GFCF):
            sides = recommend.embeddings(scorer, *ids)
            found += [pd.DataFrame(np.stack(sides[side]["vector"].to_numpy())) for side in ("users", "items")]
        tables.append(found)
    for ours, theirs in zip(*tables, strict=True):
        assert np.allclose(*(table.select_dtypes("number").to_numpy() for table in (ours, theirs)), atol=1e-5)
        if "item" in ours:
            assert (ours["item"] == theirs["item"]).mean() > 0.9  # but for scores that are equal up to rounding


def test_a_trained_estimator_stays_on_its_device(gpu):
    parts = dataset.load(DATA)
    for estimator in (gnnrec.LightGCN(dim=8, layers=1, epochs=1, device="cuda"), gnnrec.GFCF(factors=4, device="cuda")):
        estimator.fit(parts.train, valid=parts.valid)
        assert isinstance(estimator.model, LightGCN | GFCF)
        assert lies_on(estimator.model, gpu)
        assert 0 <= estimator.evaluate(parts.test, ks=[5])["recall@5"] <= 1
        assert len(estimator.recommend(k=2)) == 2 * parts.train.num_users


def test_the_decomposition_of_more_items(gpu, monkeypatch):
    """Where the Krylov space is not the whole space."""
    monkeypatch.setattr(spectral, "STEPS", 3)
    matrix = run.graph_of(dataset.load(DATA).train).norm_user_item()
    values, vectors = spectral.truncated_svd(matrix.to(gpu), 4, seed=1)
    assert (values.device, vectors.device) == (gpu, gpu)
    expected, directions = spectral.truncated_svd(matrix, 4, seed=1)
    assert torch.allclose(values.cpu(), expected, atol=1e-5)
    assert torch.allclose((vectors.cpu().T @ directions).abs(), torch.eye(4), atol=1e-3)


@pytest.mark.parametrize("trained", ["lightgcn"], indirect=True)
def test_interrupted_and_resumed(trained, tmp_path, monkeypatch):
    _, whole, summary = trained["cuda"]
    real = Trainer._step

    def interrupted(self, step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(Interrupted):
            run.train(config("lightgcn", "cuda"), tmp_path / "cuda")
    shutil.copytree(tmp_path / "cuda", tmp_path / "cpu")
    for device in DEVICES:
        resumed, found = run.train(replace(config("lightgcn", device), resume=True), tmp_path / device)
        ours, theirs = (x.model.embedding.detach().cpu() for x in (resumed, whole))
        if device == "cuda":
            assert torch.equal(ours, theirs)
            assert found["metrics"] == summary["metrics"]
        else:
            assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("trained", ["lightgcn", "learned", "ngcf"], indirect=True)
def test_a_step_never_waits_for_the_gpu(trained, gpu, without_waiting):
    model = trained["cuda"][1].model
    trainer = Trainer(model, TrainerConfig(), BPRConfig(), OptimizerConfig())
    trainer.learner.compute(*trainer.learner.batch(0))
    before, (triples,) = model.embedding.detach().clone(), trainer.learner.batch(1)
    with without_waiting:
        loss = trainer.learner.compute(triples)
    assert loss.device == gpu
    assert not torch.equal(before, model.embedding)
    with pytest.raises((AssertionError, RuntimeError), match=r"makes the CPU wait|synchronizing"), without_waiting:
        loss.tolist()
