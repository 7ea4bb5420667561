"""Training whose state lies beside a GPU, in DRAM, files or an own tier: the bits of one whose state lies on it.

For tests/interpreter, where the GPU is pretended, and tests/gpu. Their fixture `gpu` is the device that device=cuda
stands for, `sizes` how large the graph is and what is tried.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from made_up_tiers import disk, dram
from made_up_tiers import gpu as gpu_tier

from gnnrec import extensions, models, recommend
from gnnrec.config import (
    BPRConfig,
    DataConfig,
    EvaluationConfig,
    LightGCNConfig,
    MemoryConfig,
    OptimizerConfig,
    SyntheticConfig,
    TrainConfig,
    TrainerConfig,
)
from gnnrec.config.memory import CustomTierConfig
from gnnrec.graph import BipartiteGraph
from gnnrec.memtier import measure_custom
from gnnrec.memtier.files import TierFolder
from gnnrec.memtier.layout import Layout
from gnnrec.memtier.ring import Ring
from gnnrec.memtier.stores import FileStore, HostStore
from gnnrec.training import checkpoint, placing, run
from gnnrec.training.trainer import Trainer

STEPS = 3


class Sizes(NamedTuple):
    """Of a graph whose items are as popular as it goes, of a model, of blocks; and pairs of panel and ring."""

    users: int
    items: int
    edges: int
    dim: int
    batch: int
    block_bytes: int
    rings: tuple[tuple[int, int], ...]


@pytest.fixture(scope="module")
def graph(sizes):
    rng = np.random.default_rng(0)
    edges = rng.integers(sizes.users, size=sizes.edges), rng.zipf(1.3, sizes.edges) % sizes.items
    return BipartiteGraph.from_edges(*edges, sizes.users, sizes.items)


CASES = {
    "reg": ({}, BPRConfig(reg=0.01), OptimizerConfig(lr=0.01)),
    "hardest_adamw": (
        {"layer_weights": [0.1, 0.2, 0.7]},
        BPRConfig(negatives=3, hardest=True, reg=0.01),
        OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1),
    ),
    "one_layer": ({"layers": 1}, BPRConfig(negatives=2), OptimizerConfig(lr=0.01, weight_decay=1e-3)),
    "factors": ({"layers": 0}, BPRConfig(reg=0.01), OptimizerConfig(lr=0.01)),
}


def trained(model, sizes, loss, optimizer):
    trainer = Trainer(model, TrainerConfig(epochs=2, batch_size=sizes.batch), loss, optimizer, seed=1)
    losses = [float(trainer._step(step)) for step in range(STEPS)]
    trainer.learner.close()
    return trainer.learner, losses


def whole(matrix):
    return torch.cat([matrix.rows(block) for block in range(matrix.layout.blocks)])


@pytest.mark.parametrize("case", CASES)
def test_bits_are_those_of_a_gpu_for_every_panel_and_ring(graph, gpu, sizes, tmp_path, case):
    changes, loss, optimizer = CASES[case]
    settings = LightGCNConfig(**({"dim": sizes.dim, "layers": 2} | changes))
    model = models.build(settings, graph, 3)
    model.to(gpu)
    _, expected = trained(model, sizes, loss, optimizer)
    final = model.scorer()
    rings = sizes.rings if case == "reg" else sizes.rings[:1]
    for (width, ring), files in [*((ring, False) for ring in rings), (rings[0], True)]:
        with TierFolder(tmp_path / f"{width}-{ring}-{files}") as folder:
            store = FileStore(folder, Ring(ring), gpu) if files else HostStore(gpu, ring)
            alignment = folder.access.alignment if files else 64
            layout = Layout.of(graph.num_nodes, sizes.dim, width, alignment, sizes.block_bytes)
            streamed = models.StreamedLightGCN(graph, settings, store, layout, seed=3)
            learner, losses = trained(streamed, sizes, loss, optimizer)
            assert losses == expected
            assert torch.equal(whole(streamed.embedding), model.embedding.cpu())
            assert torch.equal(learner._largest.cpu(), model.embedding.detach().abs().max().cpu())
            ours = streamed.scorer()
            assert torch.equal(ours.user_factors, final.user_factors.cpu())
            assert torch.equal(ours.item_factors, final.item_factors.cpu())
            moved = {name: (x.read_bytes, x.write_bytes) for name, x in learner.actual.moved.items()}
            size = 4 * graph.num_nodes * sizes.dim
            for read, written in moved.values():
                assert STEPS * size <= written <= read  # the ring is read ahead of what there is to do


DATA = DataConfig(
    source="synthetic",
    name="synthetic",
    synthetic=SyntheticConfig(num_users=20, num_items=16, num_interactions=120, communities=2),
)
STREAM = MemoryConfig(name="stream", panel=16)


def config(memory, **changes) -> TrainConfig:
    given = {
        "model": LightGCNConfig(dim=32, layers=1),
        "loss": BPRConfig(reg=1e-3),
        "optimizer": OptimizerConfig(lr=0.02),
        "trainer": TrainerConfig(epochs=2, batch_size=60, eval_every=1, monitor="recall@5"),
        "evaluation": EvaluationConfig(k=[5]),
        "device": "cuda",
    }
    return TrainConfig(data=DATA, memory=memory, **(given | changes))


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU, DRAM, and a disk wherever a folder is named."""
    monkeypatch.setattr(placing, "discover", lambda folders: [gpu_tier(), dram(), *map(disk, folders)])
    monkeypatch.setattr(placing.calibrate, "calibrated", lambda tiers: list(tiers))


@pytest.fixture(scope="module")
def resident(tmp_path_factory, gpu):
    folder = tmp_path_factory.mktemp("resident") / "run"
    return folder, *run.train(config(MemoryConfig()), folder)


def close(found, expected):
    """Rankings on a GPU and on a CPU differ by rounding."""
    return all(found[part] == pytest.approx(metrics, abs=0.02) for part, metrics in expected.items())


@pytest.fixture
def elsewhere(request, tmp_path, monkeypatch) -> tuple[MemoryConfig, str]:
    """Memory of a kind, and the tier where state then lies."""
    folders = [str(tmp_path / name) for name in "ab"]
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "examples")
    monkeypatch.setattr(extensions, "_allowed", {"my_package"})
    monkeypatch.setattr(measure_custom, "SECONDS", 0.0)
    monkeypatch.setattr(measure_custom, "_WANTED", 16 << 20)
    own = CustomTierConfig("my_package.tiers:Striped", {"folders": folders})
    kinds = {
        "dram": (STREAM, "dram"),
        "files": (replace(STREAM, folder=folders[0]), folders[0]),
        "own": (replace(STREAM, custom=own), own.path),
    }
    return kinds[request.param]


@pytest.mark.parametrize("elsewhere", ["dram", "files", "own"], indirect=True)
def test_a_streamed_run_leaves_what_a_resident_one_does(machine, resident, tmp_path, elsewhere):
    folder, expected, theirs = resident
    memory, tier = elsewhere
    short = config(memory, trainer=TrainerConfig(epochs=1, batch_size=60, eval_every=1, monitor="recall@5"))
    run.train(short, tmp_path / "run")[0].places.close()
    done, summary = run.train(config(memory, resume=True), tmp_path / "run")
    with done:
        assert torch.equal(whole(done.model.embedding), expected.model.embedding.cpu())
    assert close(summary["metrics"], theirs["metrics"])
    saved, reference = (checkpoint.load_latest(path / "checkpoints")[0].tensors for path in (tmp_path / "run", folder))
    assert saved.keys() == reference.keys()
    assert all(torch.equal(saved[name], reference[name]) for name in saved)
    tensors = {entry["tensor"]: entry for entry in summary["memory"]["tensors"]}
    for name in ("embedding", "exp_avg", "exp_avg_sq"):
        assert tensors[name]["tier"] == tier
        assert tensors[name]["actual_bytes_per_step"] >= 0.9 * tensors[name]["predicted_bytes_per_step"]
    assert tensors["panels"]["tier"] == "gpu0"
    for device in ("cuda", "cpu"):
        with run.open_run(tmp_path / "run", device) as opened:
            assert isinstance(opened.model, models.StreamedLightGCN) == (tier != "dram" or device == "cuda")
            assert close(run.evaluate(opened, [5]), theirs["metrics"])
            log = opened.data.train
            table = recommend.recommend(opened.model.scorer(), log.user_ids, log.item_ids, None, None, 3)
            assert len(table) == 3 * log.num_users


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "resident"])
def test_a_run_goes_on_in_other_memory(machine, resident, tmp_path, streamed):
    """From a GPU to DRAM beside it, and the other way."""
    first, second = (MemoryConfig(), STREAM) if streamed else (STREAM, MemoryConfig())
    short = config(first, trainer=TrainerConfig(epochs=1, batch_size=60, eval_every=1, monitor="recall@5"))
    run.train(short, tmp_path / "run")
    done, _ = run.train(config(second, resume=True), tmp_path / "run")
    found = whole(done.model.embedding) if streamed else done.model.embedding.cpu()
    assert torch.equal(found, resident[1].model.embedding.cpu())
