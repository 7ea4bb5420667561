"""LightGCN on several ranks' columns: the numbers of one process. The ranks are threads here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretend_ranks import together
from test_run import config as run_config

from gnnrec import models
from gnnrec.config import (
    BPRConfig,
    DistributedConfig,
    LightGCNConfig,
    MemoryConfig,
    NGCFConfig,
    OptimizerConfig,
    SimGCLConfig,
    SoftmaxConfig,
    TrainerConfig,
    check_ranks,
)
from gnnrec.data import synthetic
from gnnrec.errors import ConfigError, GnnrecError, StorageError
from gnnrec.ranks import ALONE, Ranks
from gnnrec.training import checkpoint, distributed, run
from gnnrec.training.checkpoint import Parts
from gnnrec.training.column_parallel import AllColumns, ColumnParallel, columns_of
from gnnrec.training.resident import Resident
from gnnrec.training.run import graph_of

BATCH, STEPS = 512, 4
CONSTANT = 4 + 2 * 4  # bytes of the L2 term and of two kinds of signals


@pytest.fixture(scope="module")
def graph():
    return graph_of(synthetic.generate(200, 150, 3000, communities=4, seed=0).log)


@pytest.mark.parametrize(
    ("dim", "size", "widths"),
    [(64, 2, [32, 32]), (64, 3, [16, 16, 32]), (48, 2, [16, 32]), (64, 8, [8] * 8), (20, 2, [10, 10]), (3, 2, [1, 2])],
)
def test_every_column_is_one_ranks(dim, size, widths):
    cuts = [columns_of(dim, rank, size) for rank in range(size)]
    assert [cut.stop - cut.start for cut in cuts] == widths
    assert [column for cut in cuts for column in range(dim)[cut]] == list(range(dim))


@pytest.mark.parametrize("options", [{}, {"init_std": None}, {"dim": 20}])
def test_ranks_start_from_the_columns_of_one_process(graph, options):
    options = {"dim": 32, "layers": 1, "seed": 3} | options
    whole = models.LightGCN(graph, **options).embedding
    parts = [models.LightGCN(graph, **options, columns=columns_of(whole.shape[1], k, 2)).embedding for k in range(2)]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def learner(graph, ranks: Ranks, loss: BPRConfig, dim: int = 32) -> ColumnParallel:
    columns = columns_of(dim, ranks.rank, ranks.size)
    model = models.LightGCN(graph, dim=dim, layers=2, seed=1, columns=columns)
    return ColumnParallel(model, TrainerConfig(batch_size=BATCH), loss, OptimizerConfig(), 5, ranks, columns)


def resident(graph, loss: BPRConfig, dim: int = 32) -> Resident:
    model = models.LightGCN(graph, dim=dim, layers=2, seed=1)
    return Resident(model, TrainerConfig(batch_size=BATCH), loss, OptimizerConfig(), 5)


LOSSES = [BPRConfig(reg=0.0), BPRConfig(reg=0.1, negatives=2), BPRConfig(reg=0.1, negatives=2, hardest=True)]


@pytest.mark.parametrize("loss", LOSSES)
def test_one_rank_has_the_bits_of_one_process(graph, loss):
    one, other = resident(graph, loss), learner(graph, ALONE, loss)
    assert all(torch.isclose(one.step(k, 1e-2), other.step(k, 1e-2), rtol=1e-6) for k in range(STEPS))
    found = {name: x.parts[0] if isinstance(x, Parts) else x for name, x in other.state().items()}
    assert one.state().keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in one.state().items())


@pytest.mark.parametrize(("dim", "size", "loss"), [*((32, 2, loss) for loss in LOSSES), (16, 2, BPRConfig(reg=0.1))])
def test_ranks_have_the_numbers_of_one_process(graph, dim, size, loss):
    """Within float32 rounding of the sums of scores."""
    one = resident(graph, loss, dim)
    expected = [float(one.step(k, 1e-2)) for k in range(STEPS)]

    def work(ranks: Ranks):
        mine = learner(graph, ranks, loss, dim)
        losses = [float(mine.step(k, 1e-2)) for k in range(STEPS)]
        return losses, mine.embedding, mine.actual

    results = together(size, work)
    assert all(losses == results[0][0] for losses, _, _ in results)  # so that all decide the same
    assert results[0][0] == pytest.approx(expected, rel=1e-6)
    found = torch.cat([part for _, part, _ in results], dim=1)
    torch.testing.assert_close(found, one.model.embedding.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_exchanges_a_number_for_every_negative_and_pair(graph, loss):
    """Half of the two scores of an example: their difference is all that the loss takes of them."""
    (actual, _) = together(2, lambda ranks: steps(learner(graph, ranks, loss)))
    constant = CONSTANT - (0 if loss.reg else 4) + (2 * 4 if loss.hardest else 0)
    assert actual.totalled == STEPS * (loss.negatives * BATCH * 4 + constant)
    if loss.negatives == 1:
        assert actual.totalled <= STEPS * (2 * BATCH * 4 + CONSTANT)


def steps(mine: ColumnParallel):
    for k in range(STEPS):
        mine.step(k, 1e-2)
    return mine.actual


def test_a_ranking_from_all_columns_is_that_of_one_process(graph):
    config = LightGCNConfig(dim=32, layers=1, popularity=0.2)
    scorer, users, seen = models.build(config, graph).scorer(), torch.tensor([3, 0, 7, 199, 20]), graph.user_item()
    expected = scorer.topk(users, 9, seen.select_rows(users))

    def work(ranks: Ranks):
        part = models.build(config, graph, columns=columns_of(32, ranks.rank, ranks.size)).scorer()
        return AllColumns(part, ranks).topk(users, 9, seen.select_rows(users))

    for found in together(2, work):
        assert all(map(torch.equal, found, expected))


def example() -> dict[str, torch.Tensor]:
    matrix = torch.randn(70, 20)
    return {"model.embedding": matrix, "optimizer.0.exp_avg": -matrix, "optimizer.0.step": torch.tensor(7.0)}


def saved(tensors: dict[str, torch.Tensor], size: int, folder: Path) -> list[Path]:
    def work(ranks: Ranks) -> Path:
        mine = columns_of(20, ranks.rank, ranks.size)
        part = {
            name: Parts(1, {mine.start: value[:, mine]}) if value.dim() == 2 else value
            for name, value in tensors.items()
            if value.dim() == 2 or ranks.leads
        }
        return distributed.save(ranks, folder, 7, part, {"step": 7})

    return together(size, work)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_checkpoint_of_any_number_of_ranks_is_read_by_any(tmp_path, size):
    tensors = example()
    paths = saved(tensors, size, tmp_path)
    assert set(paths) == {tmp_path / "step-00000007"}
    for as_rows in (False, True):
        for columns in (None, *(columns_of(20, rank, 4) for rank in range(4))):
            found, warnings = checkpoint.load_latest(tmp_path, as_rows=as_rows, columns=columns)
            assert (found.step, found.state, warnings) == (7, {"step": 7}, [])
            assert found.tensors.keys() == tensors.keys()
            for name, value in tensors.items():
                expected = value[:, columns or slice(None)] if value.dim() == 2 else value
                assert torch.equal(checkpoint.whole(found.tensors[name]), expected)


def test_a_file_that_any_rank_cannot_write_is_an_error_of_all(tmp_path, monkeypatch):
    saved(example(), 2, tmp_path)
    before = checkpoint.load_latest(tmp_path)[0].tensors["model.embedding"]
    real = checkpoint.write_share

    def refused(folder, tensors):
        if 0 not in tensors["model.embedding"].parts:
            raise StorageError("no space left", where=str(folder))
        return real(folder, tensors)

    monkeypatch.setattr(checkpoint, "write_share", refused)
    with pytest.raises(GnnrecError, match="no space left"):
        saved(example(), 2, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]
    assert torch.equal(checkpoint.load_latest(tmp_path)[0].tensors["model.embedding"], before)


def config(epochs: int, **changes):
    base = run_config()
    return replace(
        base, model=LightGCNConfig(dim=32, layers=2), trainer=replace(base.trainer, epochs=epochs), **changes
    )


def train(folder: Path, size: int, epochs: int, **changes) -> dict:
    """The summary of a run by so many ranks, 0 for a process that knows nothing of them."""
    if not size:
        return run.train(config(epochs, **changes), folder)[1]

    def work(ranks: Ranks):
        return run.train(config(epochs, **changes), folder, ranks=ranks)[1]

    first, *others = together(size, work)
    assert all(other["metrics"] == first["metrics"] for other in others)
    return first


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict:
    return train(tmp_path_factory.mktemp("one") / "run", 0, 4)


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 2), (2, 4)])
def test_a_run_goes_on_with_another_number_of_ranks(finished, tmp_path, before, after):
    train(tmp_path / "run", before, 2)
    summary = train(tmp_path / "run", after, 4, resume=True)
    assert summary["steps"] == finished["steps"]
    for part, metrics in finished["metrics"].items():
        assert summary["metrics"][part] == pytest.approx(metrics, rel=1e-3)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"] == summary["metrics"]
    opened = run.open_run(tmp_path / "run")
    assert run.evaluate(opened, [20]) == summary["metrics"]


def test_a_mistake_that_the_first_rank_finds_is_everyones(tmp_path):
    train(tmp_path / "run", 0, 1)
    with pytest.raises(GnnrecError, match="holds a run already"):
        train(tmp_path / "run", 2, 1)


@pytest.mark.parametrize(
    ("changes", "size", "says"),
    [
        ({"model": NGCFConfig(), "distributed": DistributedConfig("columns")}, 2, "distributed.split: is 'columns'"),
        ({"model": NGCFConfig(), "device": "cuda"}, 2, "device: is 'cuda'"),
        (
            {"distributed": DistributedConfig("rows"), "model": LightGCNConfig(init="spectral")},
            2,
            "model.init: is 'spec.*distributed.split=columns",
        ),
        (
            {"distributed": DistributedConfig("rows"), "trainer": TrainerConfig(sampling="interactions")},
            2,
            "trainer.sampling: is 'interactions'.*distributed.split=columns",
        ),
        ({"model": SimGCLConfig()}, 2, "model: is 'simgcl'"),
        ({"model": LightGCNConfig(layer_weights="learned")}, 2, "model.layer_weights: is 'learned'"),
        ({"loss": SoftmaxConfig()}, 2, "loss: is 'softmax'"),
        ({"optimizer": OptimizerConfig(name="lamb")}, 2, "optimizer: is 'lamb'"),
        ({"optimizer": OptimizerConfig(clip=1.0)}, 2, "optimizer.clip: is 1.0"),
        ({"optimizer": OptimizerConfig(state_dtype="bfloat16")}, 2, "optimizer.state_dtype: is 'bfloat16'"),
        ({"trainer": TrainerConfig(storage="bfloat16")}, 2, "trainer.storage: is 'bfloat16'"),
        ({"memory": MemoryConfig(name="stream")}, 2, "memory: is 'stream'"),
        ({"profile": "on"}, 2, "profile: is 'on'"),
        ({"model": LightGCNConfig(dim=4)}, 8, "model.dim: is 4, and 8 ranks need a column each"),
        ({"distributed": DistributedConfig("rows")}, None, "distributed.split: has no effect in a single process"),
        (
            {"distributed": DistributedConfig(timeout_seconds=5.0)},
            None,
            "distributed.timeout_seconds: has no effect in a single process",
        ),
    ],
)
def test_what_ranks_cannot_train_is_refused(changes, size, says):
    with pytest.raises(ConfigError, match=says):
        check_ranks(replace(run_config(), **changes), size)


def test_a_time_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"distributed\.timeout_seconds: is 0"):
        DistributedConfig(timeout_seconds=0).validate()
