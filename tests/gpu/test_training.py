import pytest
import torch

pytest.importorskip("omegaconf", reason="a run keeps its configuration by omegaconf, which this Python lacks")
from training_walk import *  # noqa: F403
from training_walk import DATA, config, dataset, run

from gnnrec import models
from gnnrec.config import BPRConfig, OptimizerConfig, SoftmaxConfig, TrainerConfig
from gnnrec.training.resident import Resident
from gnnrec.training.trainer import Trainer


@pytest.fixture(autouse=True, scope="module")
def gpu():
    return torch.device("cuda", torch.cuda.current_device())


class WithoutWaiting:
    def __enter__(self):
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_):
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def without_waiting():
    return WithoutWaiting()


def test_a_run_says_what_it_ran_on(gpu, tmp_path):
    _, summary = run.train(config("gfcf", "cuda"), tmp_path)
    assert (summary["device"], summary["device_name"]) == ("cuda", torch.cuda.get_device_name(gpu))
    assert 0 < summary["peak_gpu_bytes"] < 1 << 30
    assert {"cuda", "triton"} <= set(summary["versions"])


def test_a_captured_run_gives_the_same_bits(gpu, monkeypatch):
    """At a learning rate that falls; an epoch's last batch is smaller."""
    graph = run.graph_of(dataset.load(DATA).train)
    assert graph.num_edges % 64

    def trained():
        model = models.LightGCN(graph, dim=8, layers=2).to(gpu)
        config = TrainerConfig(batch_size=64, epochs=3, lr_decay="cosine")
        trainer = Trainer(model, config, BPRConfig(), OptimizerConfig(lr=0.02, weight_decay=0.01))
        return trainer, [float(trainer._step(step)) for step in range(3 * trainer.sampler.steps_per_epoch)]

    captured, losses = trained()
    monkeypatch.setattr(Resident, "_captures", lambda learner: False)
    plain, expected = trained()
    assert len(captured.learner.captured.captured) == 2  # shapes
    assert losses == expected
    assert torch.equal(captured.model.embedding, plain.model.embedding)


def test_what_is_captured(gpu):
    graph = run.graph_of(dataset.load(DATA).train)

    def captures(model, loss, **options):
        return Trainer(
            model.to(gpu), TrainerConfig(batch_size=64), loss, OptimizerConfig(**options)
        ).learner._captures()

    assert captures(models.LightGCN(graph, dim=8, layers=2), BPRConfig())
    assert not captures(models.LightGCN(graph, dim=8, layers=2), BPRConfig(), name="sgd")
    assert not captures(models.NGCF(graph, dim=8, layers=2), BPRConfig())
    assert not captures(models.LightGCN(graph, dim=8, layers=2), SoftmaxConfig())
