"""A graph whose columns lie in a file: the matrix in memory to the bit, in every training that streams."""

from __future__ import annotations

import json
import os
import threading
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from alone import alone
from made_up_tiers import disk, dram
from test_streamed import config, whole, with_graph

from gnnrec import models, ops
from gnnrec.config import BPRConfig, LightGCNConfig, NGCFConfig, OptimizerConfig, TrainerConfig
from gnnrec.errors import StorageError
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.memtier.adjacency import FileAdjacency
from gnnrec.memtier.files import TierFolder
from gnnrec.memtier.layout import Layout, columns_block_bytes
from gnnrec.memtier.ring import Ring
from gnnrec.memtier.stores import FileStore
from gnnrec.training import placing, run
from gnnrec.training.trainer import Trainer

USERS, ITEMS, GIANT = 4000, 300, 3700
RINGS = [Ring(0, 1, 1), Ring(1 << 16, 2, 2, phased=True), Ring(1 << 26, 3, 1)]
MIB = 1 << 20


@pytest.fixture(scope="module")
def graph() -> BipartiteGraph:
    """Users and items without edges, between others and at both ends; item 7 has more users than a block has entries,
    which the kernels cut into pieces."""
    rng = np.random.default_rng(0)
    users = np.concatenate([rng.integers(50, USERS - 50, 9000), np.arange(100, 100 + GIANT)])
    items = np.concatenate([rng.integers(5, ITEMS // 2, 9000) * 2, np.full(GIANT, 7)])
    users[users % 97 == 0] += 1
    found = BipartiteGraph.from_edges(users, items, USERS, ITEMS)
    assert found.item_degrees.max() > 3500
    assert not found.user_degrees[[0, 97, USERS - 1]].any()
    return found


@pytest.fixture
def made(tmp_path):
    """Makes the graph's adjacency in a file of blocks of so many bytes, ended with the test."""
    with ExitStack() as stack:
        folder = stack.enter_context(TierFolder(tmp_path / "tier"))

        def make(graph, block_bytes, ring=RINGS[0]):
            found = FileAdjacency(folder, graph, ring, block_bytes=block_bytes)
            stack.callback(found.close)
            return found

        yield make


@pytest.mark.parametrize(
    ("block_bytes", "ring"), [*zip([4096, None, 1 << 14], RINGS)], ids=["one", "phased", "several"]
)
def test_rows_are_those_of_memory(graph, made, block_bytes, ring):
    matrix, x = graph.norm_adjacency(), torch.randn(graph.num_nodes, 16)
    adjacency, product, nodes = made(graph, block_bytes, ring), ops.spmm(matrix, x), graph.num_nodes
    blocks = 0
    for _ in range(2):
        for every in range(0, nodes, 256):  # as blocks of embeddings come
            rows = slice(every, min(every + 256, nodes))
            for where, part in adjacency.rows(rows):
                here = slice(rows.start + where.start, rows.start + where.stop)
                assert torch.equal(part.indices, matrix.row_block(here).indices)
                assert torch.equal(ops.spmm(part, x), product[here])
                blocks += 1
    assert blocks >= 2 * -(-nodes // 256)
    # Each round reads the file once, and where a block begins within the last page of the one before, that page again.
    page, rounds = adjacency._blocks.alignment, 2
    assert 0 <= adjacency.read()[0] - rounds * 4 * matrix.nnz <= rounds * (adjacency._blocks.blocks + 1) * page
    assert adjacency._columns.buffers == min(max(4, 2 + ring.readers), adjacency._blocks.blocks)
    longest, alignment = int(matrix.indptr.diff().max()), 4096
    buffer_bytes = adjacency._columns.buffers * adjacency._blocks.block_bytes
    if block_bytes is None:
        block_bytes = columns_block_bytes(matrix.nnz, longest, alignment)
        assert buffer_bytes <= adjacency._columns.buffers * block_bytes
    # A row is never cut, and is all that makes a block larger than it was asked to be.
    assert buffer_bytes <= adjacency._columns.buffers * (max(block_bytes, 4 * longest) + 2 * alignment)
    for chosen in (torch.tensor([0, 1, 150, USERS - 1, USERS + 7, nodes - 1]), torch.arange(0, nodes, 3)):
        parts = adjacency.chosen(chosen)
        for _ in range(2):
            assert torch.equal(torch.cat([ops.spmm(part, x) for _, part in parts]), product[chosen])
    for weights in ([0.3], [0.1, 0.9], [0.2, 0.3, 0.5], [0.1, 0.2, 0.3, 0.4]):
        out, work = (torch.full_like(x, torch.nan) for _ in range(2))
        expected = ops.lightgcn_propagate(matrix, x, num_layers=len(weights) - 1, layer_weights=weights)
        assert torch.equal(adjacency.propagate(out, work, x, weights), expected)
        sparse = torch.zeros_like(x).index_copy_(0, chosen, x[chosen])
        expected = ops.lightgcn_propagate(matrix, sparse, num_layers=len(weights) - 1, layer_weights=weights)
        for rows in (chosen, chosen.flip(0), torch.arange(nodes)):
            assert torch.equal(adjacency.propagate(out, work, sparse, weights, rows), expected)


def test_a_round_that_is_given_up_begins_anew(graph, made):
    matrix, adjacency = graph.norm_adjacency(), made(graph, 4096)
    every = slice(0, graph.num_nodes)
    first = []
    for _ in range(3):
        for _, part in adjacency.rows(every):
            first.append(part.indices.clone())
            break
    adjacency.close()
    for rows in (slice(0, 100), slice(100, 101), slice(101, 4100)):  # wherever blocks end
        parts = [part.indices.clone() for _, part in adjacency.rows(rows)]
        assert torch.equal(torch.cat(parts), matrix.row_block(rows).indices)
    adjacency.close()
    assert all(torch.equal(one, matrix.indices[: len(one)]) for one in first)
    with pytest.raises(AssertionError, match="rows must be taken in their order"):
        next(iter(adjacency.rows(slice(512, 768))))
    adjacency.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gnnrec-io")]


def test_the_graph_is_the_same_one_over_its_file(graph, made):
    adjacency = made(graph, 1 << 14)
    found, file = adjacency.graph, graph.norm_adjacency()
    assert torch.equal(found.norm_adjacency().indices, file.indices)
    assert torch.equal(found.norm_adjacency().indptr, file.indptr)
    assert np.array_equal(found.item_users, graph.item_users)
    assert found.user_items is graph.user_items
    x = torch.randn(USERS, 16)
    assert torch.equal(ops.spmm(found.user_item().T, x), ops.spmm(graph.user_item().T, x))
    for first, last in (
        (0, 10),
        (found.num_edges - 3, found.num_edges + 5),
        (found.num_edges + 2, 2 * found.num_edges),
    ):
        assert np.array_equal(graph.adjacency_columns(first, last), file.indices[first:last].numpy())


def test_blocks_that_are_no_matrix(graph):
    matrix, x = graph.norm_adjacency(), torch.randn(graph.num_nodes, 16)
    rows, nodes = slice(0, 100), graph.num_nodes
    out, work = torch.empty_like(x), torch.empty_like(x)
    for blocks, found in (
        ([(rows, matrix.row_block(rows))], f"the blocks end at row 100 of {nodes}"),
        ([(slice(1, 101), matrix.row_block(rows))], "rows 0 and on"),
        ([(slice(0, 90), matrix.row_block(rows))], "rows 0 and on"),
        ([(slice(0, USERS), graph.user_item())], "rows 0 and on"),
    ):
        with pytest.raises(ValueError, match=f"lightgcn_propagate_blocks: {found}"):
            ops.lightgcn_propagate_blocks(out, work, lambda blocks=blocks: blocks, x, layer_weights=[0.5, 0.5])
    with pytest.raises(ValueError, match="lightgcn_propagate_blocks: out must be contiguous and share no memory"):
        ops.lightgcn_propagate_blocks(out, out, list, x, layer_weights=[0.5, 0.5])


# Steps


def losses_of(model, loop, loss, steps=2):
    trainer = Trainer(model, loop, loss, OptimizerConfig(lr=0.01), seed=1)
    trainer._warm_up()
    return trainer, [float(trainer._step(step)) for step in range(steps)]


CASES = {
    "lightgcn": (LightGCNConfig(dim=48, layers=2), BPRConfig(reg=0.01)),
    "one_layer": (LightGCNConfig(dim=48, layers=1), BPRConfig(negatives=3)),
    "factors": (LightGCNConfig(dim=48, layers=0), BPRConfig()),
    "ngcf": (NGCFConfig(dim=48, layers=2, node_dropout=0.2, message_dropout=0.1), BPRConfig(reg=0.01)),
    "ngcf_one": (NGCFConfig(dim=48, layers=1), BPRConfig()),
}


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_memory_for_every_width_block_and_ring(graph, tmp_path, case):
    settings, loss = CASES[case]
    model, loop = models.build(settings, graph, 3), TrainerConfig(epochs=2, batch_size=1500)
    _, expected = losses_of(model, loop, loss)
    theirs = model.scorer()
    kind = models.StreamedNGCF if isinstance(settings, NGCFConfig) else models.StreamedLightGCN
    for width, ring, block_bytes in [(16, RINGS[2], 1 << 14), (48, RINGS[1], 1 << 13)]:
        with TierFolder(tmp_path / f"{width}") as folder:
            store = FileStore(folder, ring)
            layout = Layout.of(graph.num_nodes, 48, width, folder.access.alignment, 1 << 17)
            adjacency = FileAdjacency(folder, graph, ring, store.times, block_bytes)
            streamed = kind(adjacency.graph, settings, store, layout, seed=3, adjacency=adjacency)
            trainer, found = losses_of(streamed, loop, loss)
            assert found == expected
            actual = trainer.learner.actual
            rounds = 2 * settings.layers * (48 // width) * 2  # see `memtier.adjacency`
            if rounds:  # of the first step those of its batch alone, which no step before has propagated
                blocks = adjacency._blocks
                of_round = sum(blocks.place(number)[1] for number in range(blocks.blocks))
                assert actual.moved["graph"].read_bytes == rounds * of_round
                assert actual.moved["graph"].write_bytes == 0
            else:
                assert "graph" not in actual.moved
            ours = streamed.scorer()
            assert torch.equal(ours.user_factors, theirs.user_factors)
            assert torch.equal(ours.item_factors, theirs.item_factors)
            assert trainer.learner.actual.moved.get("graph") == actual.moved.get("graph")  # of steps alone
            trainer.learner.close()
            assert torch.equal(whole(streamed.embedding), model.embedding)
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("gnnrec-io")]


@alone
def test_memory_holds_less(tmp_path, peak_memory):
    """Ten million entries, 40 MB of columns."""
    users, items, each = 50_000, 40_000, 100
    starts = (np.arange(users) * 7919 % 20_000).astype(np.int32)
    edges = np.repeat(np.arange(users, dtype=np.int32), each), (starts[:, None] + np.arange(each) * 200).ravel()
    edges = edges[0], edges[1].astype(np.int32)
    settings, loop, ring = LightGCNConfig(dim=16, layers=2), TrainerConfig(epochs=1, batch_size=512), Ring(0)
    found, peaks = [], {}
    for number, in_file in enumerate((False, True, False, True)):  # the first two compile
        graphs = [BipartiteGraph.from_edges(*edges, users, items)]
        with TierFolder(tmp_path / f"{number}") as folder:
            store = FileStore(folder, ring)
            layout = Layout.of(graphs[0].num_nodes, 16, 16, folder.access.alignment, 1 << 19)

            def steps(graphs=graphs, store=store, folder=folder, layout=layout, in_file=in_file):
                graph, adjacency = graphs.pop(), None
                if in_file:
                    adjacency = FileAdjacency(folder, graph, ring, store.times)
                    graph = adjacency.graph
                model = models.StreamedLightGCN(graph, settings, store, layout, 3, adjacency)
                trainer = Trainer(model, loop, BPRConfig(), OptimizerConfig(), seed=1)
                losses = [float(trainer._step(step)) for step in range(2)]
                trainer.learner.close()
                return losses

            losses, peak = peak_memory(steps)
            found.append(losses)
            peaks[in_file] = peak
    assert found == found[:1] * 4
    # Without a half of the columns that is made, and the other half, which was there.
    assert peaks[True] < peaks[False] - 25 * MIB


# Runs


@pytest.fixture
def machine(monkeypatch):
    """A machine with 16 GiB of DRAM, and a disk wherever a folder is named."""
    monkeypatch.setattr(placing, "discover", lambda folders: [dram(), *map(disk, folders)])
    monkeypatch.setattr(placing.calibrate, "calibrated", lambda tiers: list(tiers))


def in_file(tmp_path, **changes):
    return config(with_graph(str(tmp_path / "slow")), **changes)


@pytest.fixture(scope="module")
def resident(tmp_path_factory):
    return run.train(config(), tmp_path_factory.mktemp("resident") / "run")


def test_a_run_leaves_what_a_resident_one_does(machine, resident, tmp_path):
    expected, theirs = resident
    done, summary = run.train(in_file(tmp_path), tmp_path / "run")
    with done:
        assert torch.equal(whole(done.model.embedding), expected.model.embedding)
        assert done.graph is done.model.graph
        assert (tmp_path / "slow/graph.bin").stat().st_size >= 8 * expected.graph.num_edges
    assert summary["metrics"] == theirs["metrics"]
    plan = {entry["name"]: entry for entry in json.loads((tmp_path / "run/plan.json").read_text())["tensors"]}
    entries = 2 * expected.graph.num_edges
    assert (plan["graph"]["mode"], plan["graph"]["bytes"]) == ("stream", 4 * entries)
    account = {entry["tensor"]: entry for entry in summary["memory"]["tensors"]}
    predicted = 2 * 3 * 3 * 4 * entries  # forward and backward, layers, panels
    assert account["graph"]["predicted_bytes_per_step"] == predicted
    assert 0.9 * predicted < account["graph"]["actual_bytes_per_step"] < 1.5 * predicted
    assert account["graph"]["actual_seconds_per_step"] > 0
    assert account["pointers"]["tier"] == account["graph_buffers"]["tier"] == account["interactions"]["tier"] == "dram"
    with run.open_run(tmp_path / "run") as opened:
        assert run.evaluate(opened, [20]) == theirs["metrics"]
        assert (tmp_path / "slow/graph.bin").exists()
    assert not (tmp_path / "slow/graph.bin").exists()


@pytest.mark.parametrize("fault", ["eio", "short"])
def test_a_failing_disk_leaves_the_last_checkpoint(machine, resident, tmp_path, monkeypatch, fault):
    real, step = os.preadv, Trainer._step

    def failing(descriptor, buffers, offset):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("graph.bin"):
            raise OSError(5, "made up")
        return real(descriptor, buffers, offset)

    def broken(trainer, number):
        if number == 12 and fault == "eio":
            monkeypatch.setattr(os, "preadv", failing)
        if number == 12 and fault == "short":
            os.truncate(tmp_path / "slow/graph.bin", 8192)
        return step(trainer, number)

    monkeypatch.setattr(Trainer, "_step", broken)
    what = "failed: .*EIO" if fault == "eio" else "0 of .* bytes were moved"
    with pytest.raises(StorageError, match=rf"slow/graph\.bin: read at byte \d+.* ?{what}"):
        run.train(in_file(tmp_path), tmp_path / "run")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gnnrec-io")]
    assert sorted(path.name for path in (tmp_path / "slow").iterdir()) == [".gnnrec-tier.lock"]
    monkeypatch.setattr(os, "preadv", real)
    monkeypatch.setattr(Trainer, "_step", step)
    done, summary = run.train(in_file(tmp_path, resume=True), tmp_path / "run")
    with done:
        assert torch.equal(whole(done.model.embedding), resident[0].model.embedding)
    assert summary["metrics"] == resident[1]["metrics"]
