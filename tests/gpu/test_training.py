import pytest
import torch
from training_walk import *  # noqa: F403
from training_walk import DATA, config, dataset, run

from gnnrec import models
from gnnrec.config import BPRConfig, OptimizerConfig, TrainerConfig
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


def test_a_captured_step_gives_the_same_bits(gpu):
    """Loss, gradient and optimiser in one CUDA graph, replayed on batch after batch."""
    graph = run.graph_of(dataset.load(DATA).train)

    def make():
        model = models.LightGCN(graph, dim=8, layers=2).to(gpu)
        return Trainer(model, TrainerConfig(batch_size=64), BPRConfig(), OptimizerConfig(lr=0.02))

    eager, captured = make(), make()
    batches = [eager._batch(step)[0] for step in range(3)]
    expected = [eager.compute(batch) for batch in batches]
    batch, stream = batches[0].clone(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        losses = [captured.compute(batch)]  # compiles, and makes the optimiser's state
    torch.cuda.current_stream().wait_stream(stream)
    whole = torch.cuda.CUDAGraph()
    with torch.cuda.graph(whole, stream=stream):
        loss = captured.compute(batch)
    for given in batches[1:]:
        batch.copy_(given)
        whole.replay()
        losses.append(loss.clone())
    assert torch.stack(losses).tolist() == torch.stack(expected).tolist()
    assert torch.equal(captured.model.embedding, eager.model.embedding)
