"""Memory that is kept from step to step."""

from __future__ import annotations

import pytest
import torch

from gnnrec import device, kept, models
from gnnrec.config import BPRConfig, LightGCNConfig, NGCFConfig, OptimizerConfig, SoftmaxConfig, TrainerConfig
from gnnrec.data import synthetic
from gnnrec.training.resident import Resident
from gnnrec.training.run import graph_of


@pytest.fixture
def everything(monkeypatch):
    """Small results are kept too."""
    monkeypatch.setattr(kept, "LEAST", 0)


def test_a_block_serves_one_tensor_after_the_other(everything):
    memory, x = kept.Kept(), torch.zeros(3)
    with memory.serving():
        first, second = (device.empty(x, (4, 5), "a matrix") for _ in range(2))
        places = {first.data_ptr(), second.data_ptr()}
        assert len(places) == 2
        assert all(place % 64 == 0 for place in places)
        assert (first.dtype, first.shape, first.is_contiguous()) == (torch.float32, (4, 5), True)
        assert not first._is_view()  # of which autograd would add nothing up in place
        row = first[1]
        del first
        assert device.empty(x, (20,), "numbers").data_ptr() not in places  # a row of it is still there
        del row
        assert device.empty(x, (20,), "numbers").data_ptr() in places
        halves = device.empty(x, (5,), "halves", torch.bfloat16)
        assert (halves.dtype, halves.shape) == (torch.bfloat16, (5,))


def test_no_more_is_held_than_was_in_use_at_once(everything):
    memory, x = kept.Kept(), torch.zeros(1)

    def matrix(numbers):
        return device.empty(x, (numbers,), "a matrix")

    def held():
        return sorted(len(block) // 4 for block in memory._blocks)

    with memory.serving():
        three = [matrix(100) for _ in range(3)]
        assert held() == [100, 100, 100]
        del three
        large = matrix(200)
        assert held() == [100, 200]  # 300 numbers were in use
        del large
        one, other = matrix(50), matrix(100)
        assert held() == [50, 100]  # the oldest is taken again, then 200 make way for 50
        memory.release()
        assert held() == [50, 100]
        del one
        memory.release()
        assert held() == [100]
        del other
        memory.release()
        assert held() == []


def test_nothing_is_kept_outside_of_a_training_and_of_what_malloc_keeps(everything, monkeypatch):
    memory, shape = kept.Kept(), torch.Size([4])
    assert kept.empty(shape, torch.float32) is None
    with memory.serving():
        assert kept.empty(shape, torch.float32) is not None
        monkeypatch.setattr(kept, "LEAST", 16)
        assert kept.empty(shape, torch.float32) is None
        assert kept.empty(shape, torch.float64) is not None
    assert kept.empty(shape, torch.float64) is None


def test_without_memory_torch_says_so(everything, monkeypatch):
    def refuse(size):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(kept, "_mapped", refuse)
    with kept.Kept().serving():
        assert kept.empty(torch.Size([4]), torch.float32) is None
        with pytest.raises(RuntimeError, match="allocate"):
            device.empty(torch.zeros(1), (1 << 50,), "a matrix")


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (LightGCNConfig(dim=20, layers=3), BPRConfig()),
        (LightGCNConfig(dim=20, layers=2), SoftmaxConfig(negatives=40, popularity=0.5)),
        (LightGCNConfig(dim=20, layers=2, layer_weights="learned"), SoftmaxConfig()),
        (NGCFConfig(dim=20, layers=2), BPRConfig()),
    ],
)
def test_a_training_has_the_same_bits(everything, monkeypatch, storage, model, loss):
    graph = graph_of(synthetic.generate(200, 160, 2400, communities=4, seed=0).log)
    trainer, found = TrainerConfig(batch_size=64, storage=storage), []
    for least in (0, 1 << 40):
        monkeypatch.setattr(kept, "LEAST", least)
        learner = Resident(models.build(model, graph, 1), trainer, loss, OptimizerConfig(lr=0.01), seed=1)
        learner.warm_up(0)
        losses = [float(learner.step(step, 0.01)) for step in range(6)]
        found.append((losses, learner.state()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())
