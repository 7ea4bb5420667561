"""When a training step is captured, with a GPU's part made up here; tests/gpu has the graphs themselves."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch

from gnnrec import models
from gnnrec.config import BPRConfig, OptimizerConfig, TrainerConfig
from gnnrec.data import synthetic
from gnnrec.training import capture
from gnnrec.training.run import graph_of
from gnnrec.training.trainer import Trainer


class Graph:
    """Calls the step again on the captured tensors."""

    def __init__(self, step, batch, loss):
        self.step, self.batch, self.loss = step, batch, loss

    def replay(self):
        self.loss.copy_(self.step(*self.batch))


@pytest.fixture
def events(monkeypatch):
    """What was done with batches of how many numbers."""
    seen = []

    def call(self, step, batch):
        seen.append(("called", len(batch[0])))
        return step(*batch)

    def captured(self, step, batch):
        seen.append(("captured", len(batch[0])))
        own, loss = [x.clone() for x in batch], torch.zeros(())
        return capture._Captured(Graph(step, own, loss), own, loss)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(capture.CapturedStep, "_call", call)
    monkeypatch.setattr(capture.CapturedStep, "_capture", captured)
    return seen


@pytest.mark.parametrize("sizes", [[8, 3, 8, 3, 8, 3], [3, 8, 3, 8], [8, 8, 3, 8, 3, 3], [5]])
def test_a_shape_is_captured_once_it_has_been_called(events, sizes):
    step = capture.CapturedStep(torch.device("cuda", 0))
    batches = [torch.full((size,), float(number)) for number, size in enumerate(sizes)]
    losses = [step(torch.sum, batch) for batch in batches]
    assert [float(loss) for loss in losses] == [float(batch.sum()) for batch in batches]
    for size in set(sizes):
        times = min(2, sizes.count(size))
        assert [what for what, of in events if of == size] == ["called", "captured"][:times]


def test_a_trainer_is_freed_with_its_last_name():
    """And a graph's memory with it, without a collection."""
    log = synthetic.generate(30, 20, 200, communities=2).log
    model = models.LightGCN(graph_of(log), dim=4, layers=1)
    for _ in range(2):  # numba's compiler leaves cycles that hold its callers, so the first may compile
        trainer = Trainer(model, TrainerConfig(epochs=1, batch_size=64), BPRConfig(), OptimizerConfig())
        trainer.fit()
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert gone() is None
    finally:
        gc.enable()
