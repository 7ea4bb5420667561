"""NGCF whose activations do not lie in memory: bit-equal to one whose do, evaluated, resumed and exported alike."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_tiers import disk, dram
from test_streamed import DATA, whole

from gnnrec import models, ops, recommend
from gnnrec.config import (
    BPRConfig,
    MemoryConfig,
    NGCFConfig,
    OptimizerConfig,
    SimulateConfig,
    TrainConfig,
    TrainerConfig,
)
from gnnrec.data import dataset
from gnnrec.errors import CheckpointError, StorageError
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.memtier import forms
from gnnrec.memtier.files import TierFolder
from gnnrec.memtier.layout import Layout
from gnnrec.memtier.matrices import PanelMatrix
from gnnrec.memtier.passes import Passes
from gnnrec.memtier.ring import Ring
from gnnrec.memtier.stores import FileStore
from gnnrec.models.streamed_ngcf import numbers
from gnnrec.ops._numba import num_threads
from gnnrec.training import checkpoint, placing, run
from gnnrec.training.trainer import Interrupted, Trainer

STREAM = MemoryConfig(name="stream", panel=16, buffer="1MiB")


@pytest.fixture(scope="module")
def graph():
    return run.graph_of(dataset.load(DATA).train)


@pytest.fixture
def machine(monkeypatch):
    """A machine with 16 GiB of DRAM, and a disk wherever a folder is named."""
    monkeypatch.setattr(placing, "discover", lambda folders: [dram(), *map(disk, folders)])
    monkeypatch.setattr(placing.calibrate, "calibrated", lambda tiers: list(tiers))


def config(memory=None, **changes) -> TrainConfig:
    return replace(
        TrainConfig(
            data=DATA,
            model=NGCFConfig(dim=48, layers=3, message_dropout=0.1, node_dropout=0.1),
            loss=BPRConfig(reg=1e-3),
            optimizer=OptimizerConfig(lr=0.01),
            trainer=TrainerConfig(epochs=3, batch_size=1000, eval_every=1, checkpoint_every=1),
            memory=memory or MemoryConfig(),
        ),
        **changes,
    )


def assert_same_parameters(streamed, resident):
    assert torch.equal(whole(streamed.embedding), resident.embedding)
    expected = resident.state_dict()
    assert {"embedding", *streamed.state_dict()} == set(expected)
    for name, value in streamed.state_dict().items():
        assert torch.equal(value, expected[name]), name


# The operator


@pytest.mark.parametrize(("dropout", "node_dropout"), [(0.0, 0.0), (0.2, 0.3)])
def test_blocks_of_a_layer_are_the_layer(dropout, node_dropout):
    """With a row that is long enough to be cut into pieces."""
    rng = np.random.default_rng(0)
    users, items, dim = 2600, 700, 32
    drawn = np.unique(rng.integers(0, users, 20_000) * items + rng.integers(0, items, 20_000) ** 3 // items**2)
    drawn = np.unique(np.concatenate([drawn, np.arange(2500) * items]))
    graph = BipartiteGraph.from_edges(drawn // items, drawn % items, users, items)
    matrix, nodes = graph.norm_adjacency(), users + items
    assert int(matrix.indptr.diff().max()) > 2048
    x, w1, w2 = (torch.randn(shape, requires_grad=True) for shape in ((nodes, dim), (dim, dim), (dim, dim)))
    b1, b2 = (torch.randn(dim, requires_grad=True) for _ in range(2))
    options = {"dropout": dropout, "node_dropout": node_dropout, "seed": torch.tensor(1 << 40)}
    expected = ops.ngcf_layer(matrix, x, w1, b1, w2, b2, training=True, **options)
    upstream = torch.randn(nodes, dim)
    upstream[torch.randperm(nodes)[:2000]] = 0
    expected.backward(upstream)

    layer, own = ops.NGCFBlocks(matrix.indptr, w1, b1, w2, b2, **options), x.detach()
    sums, panels = torch.empty(nodes, dim), (slice(0, 16), slice(16, 32))
    for rows in (slice(0, 1000), slice(1000, 1777), slice(1777, nodes)):
        for columns in panels:
            out = torch.empty(rows.stop - rows.start, 16)
            layer.aggregate(matrix.row_block(rows), numbers(rows), own[:, columns].contiguous(), out)
            sums[rows, columns] = out
    every = torch.arange(nodes)
    result, norms = layer.forward(every, own, sums)
    assert torch.equal(result, expected)
    for some in (every[5:9], every[::7].contiguous()):
        assert torch.equal(layer.forward(some, own[some], sums[some])[0], expected[some])

    grad_x, grad_sums = torch.zeros(nodes, dim), torch.zeros(nodes, dim)
    for some in upstream.abs().sum(1).nonzero().flatten().split(700):
        inputs = own[some], sums[some], result[some], norms[some], upstream[some]
        grad_x[some], grad_sums[some] = layer.backward(some, *inputs)
    for columns in panels:
        out = grad_x[:, columns].contiguous()
        layer.aggregate(matrix, every, grad_sums[:, columns].contiguous(), out, backward=True)
        grad_x[:, columns] = out
    assert torch.equal(grad_x, x.grad)
    for found, parameter in zip(layer.gradients(), (w1, b1, w2, b2), strict=True):
        assert torch.equal(found, parameter.grad)


def test_blocks_of_a_layer_say_what_is_wrong(graph):
    matrix, w, b = graph.norm_adjacency(), torch.randn(16, 16), torch.randn(16)
    indptr = matrix.indptr
    with pytest.raises(ValueError, match=r"NGCFBlocks: indptr must be a torch.Tensor, got SparseMatrix"):
        ops.NGCFBlocks(matrix, w, b, w, b)
    with pytest.raises(ValueError, match=r"NGCFBlocks: indptr must be torch.int64, got torch.int32"):
        ops.NGCFBlocks(indptr.int(), w, b, w, b)
    with pytest.raises(ValueError, match=r"NGCFBlocks: w2 must be torch.float32, got torch.float64"):
        ops.NGCFBlocks(indptr, w, b, w.double(), b)
    with pytest.raises(ValueError, match=r"NGCFBlocks: b2 must have shape \[16\], got \[15\]"):
        ops.NGCFBlocks(indptr, w, b, w, b[:15])
    with pytest.raises(ValueError, match=r"NGCFBlocks: dropout must lie in \[0, 1\), got 1.5"):
        ops.NGCFBlocks(indptr, w, b, w, b, dropout=1.5)
    layer, rows = ops.NGCFBlocks(indptr, w, b, w, b), torch.arange(4)
    with pytest.raises(ValueError, match=r"NGCFBlocks: sums must have shape \[4, 16\], got \[3, 16\]"):
        layer.forward(rows, torch.zeros(4, 16), torch.zeros(3, 16))
    with pytest.raises(ValueError, match=r"NGCFBlocks: x must have shape \[\d+, dim >= 1\], got \[4, 16\]"):
        layer.aggregate(matrix.row_block(slice(0, 4)), rows, torch.zeros(4, 16), torch.zeros(4, 16))


def test_passes_move_each_way_what_they_are_asked_to(tmp_path):
    with TierFolder(tmp_path / "tier") as folder:
        layout = Layout.of(500, 48, 16, folder.access.alignment, 1 << 13)
        read, changed, written = (PanelMatrix(folder, name, layout) for name in ("a", "b", "c"))
        x = torch.randn(500, 48)
        for matrix in (read, changed):
            matrix.fill_from(lambda rows: x[rows])
        passes, each = Passes(Ring(1 << 16)), layout.file_bytes
        for _ in range(2):
            with passes.open(read=[read], change=[changed], write=[written]) as stream:
                for panel in range(3):
                    for block in stream.panel(panel):
                        a, b, c = block.tensors
                        b += a
                        c.copy_(b)
                        a.zero_()
        moved = {name: (traffic.read_bytes, traffic.write_bytes) for name, traffic in passes.moved.items()}
        assert moved == {"a": (2 * each, 0), "b": (2 * each, 2 * each), "c": (0, 2 * each)}
        assert torch.equal(whole(read), x)
        assert torch.equal(whole(written), x + x + x)
        # By rows: the panels are matrices of their own.
        views = changed.column_panels() + written.column_panels()
        with passes.open(change=views) as stream:
            for block in stream.panel(0):
                rows = torch.cat(block.tensors[:3], dim=1)
                assert torch.equal(rows, (x + x + x)[block.rows])
                for number, tensor in enumerate(block.tensors[3:]):
                    tensor.copy_(rows[:, 16 * number : 16 * (number + 1)] * 2)
        assert torch.equal(whole(written), (x + x + x) * 2)


# Steps


def streamed(graph, folder, settings, width, ring, block_bytes=1 << 13):
    layout = Layout.of(graph.num_nodes, settings.dim, width, folder.access.alignment, block_bytes)
    return models.StreamedNGCF(graph, settings, FileStore(folder, ring), layout, seed=3)


CASES = {
    "plain": ({}, BPRConfig(), OptimizerConfig(lr=0.01)),
    "dropout": ({"node_dropout": 0.2, "message_dropout": 0.3}, BPRConfig(reg=0.01), OptimizerConfig(lr=0.01)),
    "adamw": ({"layers": 2}, BPRConfig(reg=0.01), OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1)),
    "hardest": ({"layers": 2, "init_std": 0.1}, BPRConfig(negatives=4, hardest=True), OptimizerConfig(lr=0.02)),
    "one_layer": ({"layers": 1, "node_dropout": 0.1}, BPRConfig(reg=1e-3, negatives=3), OptimizerConfig(lr=0.01)),
    "cosine": ({"layers": 2, "similarity": "cosine", "popularity": 0.5}, BPRConfig(), OptimizerConfig(lr=0.01)),
}


@pytest.mark.parametrize("case", CASES)
def test_bits_are_those_of_memory_for_every_width_ring_and_block(graph, tmp_path, case):
    changes, loss, optimizer = CASES[case]
    settings = NGCFConfig(**({"dim": 48, "layers": 3, "message_dropout": 0.1} | changes))
    loop = TrainerConfig(epochs=2, batch_size=1500)
    model = models.build(settings, graph, 3)
    expected = Trainer(model, loop, loss, optimizer, seed=1)
    losses = [float(expected._step(step)) for step in range(4)]
    rings = [Ring(0, 1, 1), Ring(1 << 16, 2, 2, phased=True), Ring(1 << 26, 3, 1)]
    for width, ring, block_bytes in [(16, rings[0], 1 << 13), (16, rings[2], 1 << 16), (48, rings[1], 1 << 14)]:
        with TierFolder(tmp_path / f"{width}") as folder:
            other = streamed(graph, folder, settings, width, ring, block_bytes)
            trainer = Trainer(other, loop, loss, optimizer, seed=1)
            trainer._warm_up()
            assert [float(trainer._step(step)) for step in range(4)] == losses
            assert_same_parameters(other, model)
            assert trainer.learner.largest() == expected.learner.largest()
            ours, theirs = other.scorer(), model.scorer()
            assert torch.equal(ours.user_factors, theirs.user_factors)
            assert torch.equal(ours.item_factors, theirs.item_factors)
            history = graph.user_item().select_rows(torch.tensor([3, 1]))
            for mine, reference in zip(
                ours.topk_by_history(history, 5, None), theirs.topk_by_history(history, 5, None)
            ):
                assert torch.equal(mine, reference)


def test_bits_are_equal_for_any_number_of_threads(graph, tmp_path, thread_counts):
    settings, found = NGCFConfig(dim=48, layers=2, node_dropout=0.1), []
    for threads in thread_counts:
        with num_threads(threads), TierFolder(tmp_path / f"{threads}") as folder:
            model = streamed(graph, folder, settings, 16, Ring(1 << 16))
            trainer = Trainer(model, TrainerConfig(epochs=1, batch_size=1500), BPRConfig(), OptimizerConfig(), seed=1)
            losses = [float(trainer._step(step)) for step in range(2)]
            found.append((losses, whole(model.embedding), model.w1[0].detach()))
    for losses, *tensors in found[1:]:
        assert losses == found[0][0]
        assert all(torch.equal(a, b) for a, b in zip(tensors, found[0][1:], strict=True))


# Runs


@pytest.fixture(scope="module")
def resident(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resident") / "run"
    done, summary = run.train(config(), folder)
    return done, summary, folder


def test_a_streamed_run_leaves_what_a_resident_one_does(machine, resident, tmp_path):
    expected, theirs, folder = resident
    seen = []
    done, summary = run.train(config(STREAM), tmp_path / "run", on_plan=seen.append)
    with done:
        assert_same_parameters(done.model, expected.model)
    assert sorted(path.name for path in (tmp_path / "run/tier").iterdir()) == [".gnnrec-tier.lock"]
    assert summary["metrics"] == theirs["metrics"]
    (plan,) = seen
    assert (plan.mode, plan.panel) == ("stream", 16)
    saved, _ = checkpoint.load_latest(tmp_path / "run/checkpoints")
    reference, _ = checkpoint.load_latest(folder / "checkpoints")
    assert saved.tensors.keys() == reference.tensors.keys()
    assert all(torch.equal(saved.tensors[name], reference.tensors[name]) for name in saved.tensors)

    # What was moved is what was planned, but for the ends of panels, which are filled up to whole pages.
    tensors = {entry["tensor"]: entry for entry in summary["memory"]["tensors"]}
    numbers_of = 1100 * 48 * 4
    times = {"embedding": 5, "exp_avg": 2, "exp_avg_sq": 2, "layers": 8, "aggregates": 10, "gradient": 8}
    for name, count in times.items():
        assert tensors[name]["predicted_bytes_per_step"] == count * numbers_of
        assert 1 <= tensors[name]["actual_bytes_per_step"] / (count * numbers_of) < 1.1
        assert tensors[name]["tier"] == str(tmp_path / "run/tier")
        assert tensors[name]["actual_seconds_per_step"] > 0
    assert sum(times.values()) == 14 * 3 - 7
    assert {name for name, entry in tensors.items() if entry["mode"] == "stream"} == {*times, "final", "best"}
    assert summary["memory"]["transfer_seconds_per_step"] > 0


def test_a_streamed_run_is_evaluated_and_gives_recommendations(machine, resident, tmp_path):
    expected, theirs, _ = resident
    done, summary = run.train(config(STREAM), tmp_path / "run")
    done.places.close()
    with run.open_run(tmp_path / "run") as opened:
        assert isinstance(opened.model, models.StreamedNGCF)
        assert run.evaluate(opened, [20]) == summary["metrics"] == theirs["metrics"]
        log = opened.data.train
        tables = recommend.embeddings(opened.model.scorer(), log.user_ids, log.item_ids)
        reference = recommend.embeddings(expected.model.scorer(), log.user_ids, log.item_ids)
        assert tables["items"].equals(reference["items"])


@pytest.mark.parametrize("back", [None, "stream"])
def test_a_run_goes_on_in_other_memory(machine, resident, tmp_path, back):
    """From files to DRAM and the other way; with another width of panels too."""
    first, second = (STREAM, None) if back is None else (None, replace(STREAM, panel=48))
    short = config(first, trainer=replace(config().trainer, epochs=1))
    done, _ = run.train(short, tmp_path / "run")
    done.places.close()
    done, summary = run.train(config(second, resume=True), tmp_path / "run")
    with done:
        if back is None:
            assert all(torch.equal(a, b) for a, b in zip(done.model.parameters(), resident[0].model.parameters()))
        else:
            assert_same_parameters(done.model, resident[0].model)
    assert summary["metrics"] == resident[1]["metrics"]
    with run.open_run(tmp_path / "run") as opened:
        assert isinstance(opened.model, models.StreamedNGCF) == (back is not None)
        assert run.evaluate(opened, [20]) == summary["metrics"]


def test_another_model_is_not_taken_from_a_checkpoint(machine, tmp_path):
    trainer = TrainerConfig(epochs=1, batch_size=1000)
    done, _ = run.train(config(STREAM, trainer=trainer), tmp_path / "run")
    done.places.close()
    saved, _ = checkpoint.load_latest(tmp_path / "run/checkpoints", as_rows=True)
    wide = {name: value for name, value in saved.tensors.items() if not name.endswith("w1.2")}
    checkpoint.save(tmp_path / "run/checkpoints", saved.step, wide, saved.state)
    with pytest.raises(CheckpointError, match="holds another model"):
        run.train(config(STREAM, trainer=replace(trainer, epochs=2), resume=True), tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds another model"):
        run.open_run(tmp_path / "run")


def test_pins_choose_what_is_streamed(machine, resident, tmp_path):
    memory = MemoryConfig(name="stream", buffer="1MiB", pin={"embedding": "dram"})
    done, summary = run.train(config(memory), tmp_path / "moments")
    with done:
        assert torch.equal(done.model.embedding, resident[0].model.embedding)
    assert {e["tensor"] for e in summary["memory"]["tensors"] if e["mode"] == "stream"} == {"exp_avg", "exp_avg_sq"}


def test_auto_streams_where_memory_is_short(machine, resident, tmp_path, monkeypatch):
    for module in (forms, placing):  # as if the graph were larger than a few blocks
        monkeypatch.setattr(module, "ROWS_BYTES", 1 << 14)
    loop = TrainerConfig(epochs=1, batch_size=100)
    enough, summary = run.train(config(MemoryConfig(name="auto"), trainer=loop), tmp_path / "enough")
    assert isinstance(enough.model, models.NGCF)
    assert summary["memory"]["mode"] == "dram"
    needed = sum(entry["bytes"] for entry in summary["memory"]["tensors"])
    less, seen = MemoryConfig(name="auto", limit=f"{3 * needed // 5}"), []
    done, summary = run.train(config(less, trainer=loop), tmp_path / "less", on_plan=seen.append)
    with done:
        assert_same_parameters(done.model, enough.model)
    (plan,) = seen
    assert plan.tier_bytes()["dram"] <= 3 * needed // 5
    assert plan.place("layers").mode == "stream"


def test_a_simulated_device_is_waited_for(machine, resident, tmp_path):
    slow = replace(STREAM, simulate=SimulateConfig(read_gb_per_s=0.2, write_gb_per_s=0.2))
    trainer = replace(config().trainer, epochs=1)
    done, summary = run.train(config(slow, trainer=trainer), tmp_path / "run")
    done.places.close()
    account, per_step = summary["memory"], 35 * 1100 * 48 * 4 / 0.2e9
    assert account["simulated"] == "SIMULATED"
    assert account["transfer_seconds_per_step"] > 0.9 * per_step
    assert account["predicted_seconds_per_step"] > 0.9 * per_step


def test_an_interrupted_run_goes_on_to_the_same_bits(machine, resident, tmp_path, monkeypatch):
    step = Trainer._step

    def interrupting(trainer, number):
        if number == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer, number)

    monkeypatch.setattr(Trainer, "_step", interrupting)
    with pytest.raises(Interrupted, match="the state is kept in"):
        run.train(config(STREAM), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run/tier").iterdir()) == [".gnnrec-tier.lock"]
    monkeypatch.setattr(Trainer, "_step", step)
    done, summary = run.train(config(STREAM, resume=True), tmp_path / "run")
    with done:
        assert_same_parameters(done.model, resident[0].model)
    assert summary["metrics"] == resident[1]["metrics"]


@pytest.mark.parametrize("way", ["preadv", "pwritev"])
def test_a_failing_disk_leaves_the_last_checkpoint(machine, resident, tmp_path, monkeypatch, way):
    real, step = getattr(os, way), Trainer._step

    def failing(*arguments):
        raise OSError(5, "made up")

    def broken(trainer, number):
        if number == 12:
            monkeypatch.setattr(os, way, failing)
        return step(trainer, number)

    monkeypatch.setattr(Trainer, "_step", broken)
    with pytest.raises(StorageError, match=r"tier/[\w.]+\.bin: (read|write) at byte \d+ failed: .*EIO.*\. The device"):
        run.train(config(STREAM), tmp_path / "run")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gnnrec-io")]
    monkeypatch.setattr(os, way, real)
    monkeypatch.setattr(Trainer, "_step", step)
    done, _ = run.train(config(STREAM, resume=True), tmp_path / "run")
    with done:
        assert_same_parameters(done.model, resident[0].model)
