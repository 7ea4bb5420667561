"""Training whose state does not lie in memory: bit-equal to one whose does, evaluated, resumed and exported alike."""

from __future__ import annotations

import json
import mmap
import os
import random
import re
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from alone import alone
from made_up_tiers import disk, dram

from gnnrec import models, ops, recommend
from gnnrec.config import (
    BPRConfig,
    DataConfig,
    LightGCNConfig,
    MemoryConfig,
    NGCFConfig,
    OptimizerConfig,
    SimulateConfig,
    SoftmaxConfig,
    SyntheticConfig,
    TrainConfig,
    TrainerConfig,
)
from gnnrec.data import dataset
from gnnrec.data.interactions import IdMap, Interactions
from gnnrec.errors import CheckpointError, ConfigError, StorageError
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.memtier import measure_file
from gnnrec.memtier.costs import UnknownRateError
from gnnrec.memtier.files import Throttle, TierFolder
from gnnrec.memtier.layout import Layout
from gnnrec.memtier.planner import PlanError
from gnnrec.memtier.ring import Ring
from gnnrec.memtier.stores import FileStore
from gnnrec.models.draws import embedding_blocks, embeddings
from gnnrec.models.scorer import FactorScorer, popularity_bias
from gnnrec.training import checkpoint, placing, room, run
from gnnrec.training.evaluate import Evaluator
from gnnrec.training.trainer import Interrupted, Trainer

SMALL = SyntheticConfig(num_users=700, num_items=400, num_interactions=9000, communities=4)
DATA = DataConfig(source="synthetic", name="synthetic", synthetic=SMALL)
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
            model=LightGCNConfig(dim=48, layers=3),
            loss=BPRConfig(reg=1e-3),
            optimizer=OptimizerConfig(lr=0.01),
            trainer=TrainerConfig(epochs=3, batch_size=1000, eval_every=1, checkpoint_every=1),
            memory=memory or MemoryConfig(),
        ),
        **changes,
    )


def streamed(graph, folder, settings, width, ring):
    layout = Layout.of(graph.num_nodes, settings.dim, width, folder.access.alignment, 1 << 13)
    return models.StreamedLightGCN(graph, settings, FileStore(folder, ring), layout, seed=3)


def whole(matrix):
    return torch.cat([matrix.rows(block) for block in range(matrix.layout.blocks)])


@pytest.mark.parametrize("std", [0.1, None])
def test_initial_embeddings_are_those_of_the_whole(std):
    graph = BipartiteGraph.from_edges(np.arange(50), np.arange(50) % 30, 50, 30)
    blocks = [slice(0, 16), slice(16, 45), slice(45, 55), slice(55, 56), slice(56, 80)]
    parts = embedding_blocks(graph, 32, std, torch.Generator().manual_seed(7), blocks)
    assert torch.equal(torch.cat(list(parts)), embeddings(graph, 32, std, torch.Generator().manual_seed(7)))


CASES = {
    "plain": ({}, BPRConfig(), OptimizerConfig(lr=0.01)),
    "reg_adamw": ({}, BPRConfig(reg=0.01), OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1)),
    "hardest": ({"layers": 2}, BPRConfig(negatives=4, hardest=True, reg=0.01), OptimizerConfig(lr=0.02)),
    "several": ({"layer_weights": [0.1, 0.2, 0.7], "layers": 2}, BPRConfig(negatives=3), OptimizerConfig(lr=0.01)),
    "one_layer": ({"layers": 1, "init_std": None}, BPRConfig(), OptimizerConfig(lr=0.01, weight_decay=1e-3)),
    "factors": ({"layers": 0}, BPRConfig(reg=0.01), OptimizerConfig(lr=0.01)),
}


@pytest.mark.parametrize("case", CASES)
def test_bits_are_those_of_memory_for_every_width_and_ring(graph, tmp_path, case):
    changes, loss, optimizer = CASES[case]
    settings = LightGCNConfig(**({"dim": 48, "layers": 3} | changes))
    loop = TrainerConfig(epochs=2, batch_size=1500)
    model = models.build(settings, graph, 3)
    expected = Trainer(model, loop, loss, optimizer, seed=1)
    losses = [float(expected._step(step)) for step in range(5)]
    rings = [Ring(0, 1, 1), Ring(1 << 16, 2, 2, phased=True), Ring(1 << 26, 3, 1)]
    for width, ring in [(16, rings[0]), (16, rings[2]), (48, rings[1])]:
        with TierFolder(tmp_path / f"{width}") as folder:
            other = streamed(graph, folder, settings, width, ring)
            trainer = Trainer(other, loop, loss, optimizer, seed=1)
            assert [float(trainer._step(step)) for step in range(5)] == losses
            trainer.learner.close()
            assert torch.equal(whole(other.embedding), model.embedding)
            ours, theirs = other.scorer(), model.scorer()
            assert torch.equal(ours.user_factors, theirs.user_factors)
            assert torch.equal(ours.item_factors, theirs.item_factors)
            history = graph.user_item().select_rows(torch.tensor([3, 1]))
            for mine, reference in zip(
                ours.topk_by_history(history, 5, None), theirs.topk_by_history(history, 5, None)
            ):
                assert torch.equal(mine, reference)


def test_what_is_read_between_steps_belongs_to_them(graph, tmp_path):
    gb_per_s, steps, started = 0.02, 3, time.perf_counter()
    with TierFolder(tmp_path / "tier", throttle=Throttle(gb_per_s, gb_per_s)) as folder:
        model = streamed(graph, folder, LightGCNConfig(dim=48, layers=1), 48, Ring(1 << 26))
        trainer = Trainer(model, TrainerConfig(epochs=1, batch_size=500), BPRConfig(), OptimizerConfig(), seed=1)
        for step in range(steps):
            trainer._step(step)
            time.sleep(0.1)
            if step == 1:
                trainer.learner.scorer()
                assert not trainer.learner._stream.is_open  # its buffers make room for rankings
        trainer.learner.close()
        found = trainer.learner.actual
    of_step = sum(model.layout.place(0, block)[1] for block in range(model.layout.blocks))
    assert [(moved.read_bytes, moved.write_bytes) for moved in found.moved.values()] == 3 * [2 * (steps * of_step,)]
    # The writes after the last step are in no step.
    assert 0.9 * (2 * steps - 1) < found.transferring * gb_per_s * 1e9 / (3 * of_step)
    assert found.transferring < time.perf_counter() - started


def test_parts_of_matrices_are_those_of_the_whole(graph):
    matrix, x = graph.norm_adjacency(), torch.randn(graph.num_nodes, 16)
    whole_product = ops.spmm(matrix, x)
    for rows in (slice(0, 0), slice(0, 7), slice(690, 1100), slice(0, 1100)):
        assert torch.equal(ops.spmm(matrix.row_block(rows), x), whole_product[rows])
    moved = graph.moved(lambda name, tensor: tensor.clone())
    assert moved.norm_adjacency().indices.data_ptr() != matrix.indices.data_ptr()
    assert torch.equal(ops.spmm(moved.norm_adjacency(), x), whole_product)
    assert torch.equal(ops.spmm(moved.user_item().T, x[:700]), ops.spmm(graph.user_item().T, x[:700]))


def test_propagation_into_given_memory(graph):
    matrix, x = graph.norm_adjacency(), torch.randn(graph.num_nodes, 16)
    out, work = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    for weights in ([0.3], [0.1, 0.9], [0.2, 0.3, 0.5], [0.1, 0.2, 0.3, 0.4]):
        found = ops.lightgcn_propagate_into(out, work, matrix, x, layer_weights=weights)
        assert found is out
        expected = ops.lightgcn_propagate(matrix, x, num_layers=len(weights) - 1, layer_weights=weights)
        assert torch.equal(found, expected)
        rows = torch.randperm(graph.num_nodes)[:90]
        sparse = torch.zeros_like(x).index_copy_(0, rows, x[rows])
        expected = ops.lightgcn_propagate(matrix, sparse, num_layers=len(weights) - 1, layer_weights=weights)
        found = ops.lightgcn_propagate_into(out, work, matrix, sparse, layer_weights=weights, rows=rows)
        assert torch.equal(found, expected)
    for rows, message in (([3, 3], "different ones"), ([0, graph.num_nodes], "must lie within 0 and")):
        with pytest.raises(ValueError, match=message):
            ops.lightgcn_propagate_into(
                out, work, matrix, x, layer_weights=[0.5, 0.5], rows=torch.tensor(rows, dtype=torch.int64)
            )
    for wrong in ((x, work), (out, x), (out, out), (out[:, ::2], work), (out[:-1], work)):
        with pytest.raises(ValueError, match=r"lightgcn_propagate_into: (out|work) must"):
            ops.lightgcn_propagate_into(*wrong, matrix, x, layer_weights=[0.5, 0.5])


@pytest.mark.parametrize("count", [50, 10_000])  # nodes that are counted, and too many for that
def test_nodes_of_a_batch_are_found_in_either_way(count):
    triples = torch.randint(50, (3, 40), generator=torch.Generator().manual_seed(0))
    panels, (nodes, numbers) = ops.BPRPanels(triples, (count, 16)), triples.unique(return_inverse=True)
    assert torch.equal(panels.nodes, nodes)
    assert torch.equal(panels._numbers, numbers)


def test_panels_of_a_loss_have_widths_that_fold():
    panels = ops.BPRPanels(torch.tensor([[0], [2], [5]]), (6, 48))
    assert panels.nodes.tolist() == [0, 2, 5]
    for shape in ((3, 24), (2, 16)):
        with pytest.raises(ValueError, match=r"must be \[3, a multiple of 16\]"):
            panels.add(torch.zeros(shape), torch.zeros(shape))


def same(found, expected):
    for one, other in zip(found, expected):
        assert torch.equal(one, other)


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
        assert torch.equal(whole(done.model.embedding), expected.model.embedding)
        assert (tmp_path / "run/tier/embedding.bin").exists()
    assert sorted(path.name for path in (tmp_path / "run/tier").iterdir()) == [".gnnrec-tier.lock"]
    assert summary["metrics"] == theirs["metrics"]
    (plan,) = seen
    assert (plan.mode, plan.panel) == ("stream", 16)
    assert json.loads((tmp_path / "run/plan.json").read_text()) == json.loads(json.dumps(plan.to_dict()))
    saved, _ = checkpoint.load_latest(tmp_path / "run/checkpoints")
    reference, _ = checkpoint.load_latest(folder / "checkpoints")
    assert saved.tensors.keys() == reference.tensors.keys()
    assert all(torch.equal(saved.tensors[name], reference.tensors[name]) for name in saved.tensors)

    account = summary["memory"]
    tensors = {entry["tensor"]: entry for entry in account["tensors"]}
    for name in ("embedding", "exp_avg", "exp_avg_sq"):
        moved = tensors[name]["actual_bytes_per_step"]
        assert 0.9 * tensors[name]["predicted_bytes_per_step"] < moved
        assert tensors[name]["tier"] == str(tmp_path / "run/tier")
        assert tensors[name]["actual_seconds_per_step"] > 0
    assert tensors["graph"]["actual_bytes_per_step"] is None
    assert account["actual_seconds_per_step"] > 0
    assert "simulated" not in account


def test_a_streamed_run_is_evaluated_and_gives_recommendations(machine, resident, tmp_path):
    expected, theirs, _ = resident
    done, summary = run.train(config(STREAM), tmp_path / "run")
    done.places.close()
    with run.open_run(tmp_path / "run") as opened:
        assert isinstance(opened.model, models.StreamedLightGCN)
        assert run.evaluate(opened, [20]) == summary["metrics"] == theirs["metrics"]
        log = opened.data.train
        tables = recommend.embeddings(opened.model.scorer(), log.user_ids, log.item_ids)
        reference = recommend.embeddings(expected.model.scorer(), log.user_ids, log.item_ids)
        assert tables["items"].equals(reference["items"])
        with pytest.raises(StorageError, match="another run keeps its tensors in this folder"):
            run.open_run(tmp_path / "run")


@pytest.mark.parametrize("changes", [{}, {"similarity": "cosine", "popularity": 0.1}], ids=["dot", "both"])
@alone
def test_the_final_evaluation_takes_what_the_plan_counts(peak_memory, changes):
    """Ten million interactions of training, beside which there is no second graph of them, and no copy of vectors."""
    users, items, each, rng = 200_000, 100_000, 50, np.random.default_rng(0)
    maps = IdMap.range(users), IdMap.range(items)

    def part(count):
        drawn = np.sort(rng.integers(0, users, count)).astype(np.int32), rng.integers(0, items, count).astype(np.int32)
        return Interactions(*drawn, *maps, name="some")

    graph, data = run.graph_of(part(users * each)), dataset.Dataset("some", part(1), part(1_000_000), part(5000))
    settings = config(model=LightGCNConfig(dim=64, layers=2, **changes))
    vectors, bias = torch.randn(graph.num_nodes, 64), popularity_bias(graph, 0.1, torch.device("cpu"))

    def evaluated(data=data, graph=graph):
        cosine, biased = bool(changes), bias if changes else None
        scorer = FactorScorer(vectors[:users], vectors[users:], None, cosine=cosine, item_bias=biased)
        Evaluator(data.test, run.seen(graph, data.valid), [20])(scorer)

    tiny = run.graph_of(part(1000))
    evaluated(replace(data, valid=part(10)), tiny)  # compiled
    graph.user_item()
    _, peak = peak_memory(evaluated)
    held_out = placing.held_out(settings, data)
    counted = placing.workload(settings, graph, [dram()], held_out=held_out).resident()
    ranking = next(demand.bytes for demand in counted if demand.name == "ranking")
    assert 0.3 * ranking < peak < 1.1 * ranking + (8 << 20)


@pytest.mark.parametrize("graph_in_file", [False, True], ids=["graph", "graph_in_file"])
@pytest.mark.parametrize(
    "model", [LightGCNConfig(dim=48, layers=2), NGCFConfig(dim=48, layers=2)], ids=["lightgcn", "ngcf"]
)
def test_plans_count_the_buffers_that_are_made(machine, tmp_path, monkeypatch, model, graph_in_file):
    """Of all memory past torch's at any time of a run, with evaluations, checkpoints and the best one kept."""
    held, peak = 0, 0

    def gone(count):
        nonlocal held
        held -= count

    class Counted(mmap.mmap):
        def __new__(cls, number, count, *args, **options):
            nonlocal held, peak
            made = super().__new__(cls, number, count, *args, **options)
            if number == -1:  # of no file
                held += count
                peak = max(peak, held)
                weakref.finalize(made, gone, count)
            return made

    monkeypatch.setattr(mmap, "mmap", Counted)
    memory = replace(STREAM, pin={"graph": str(tmp_path / "tier")}) if graph_in_file else STREAM
    memory = replace(memory, folder=str(tmp_path / "tier"))
    done, _ = run.train(config(memory, model=model), tmp_path / "run")
    done.places.close()
    bytes_of = {placement.name: placement.bytes for placement in done.places.plan.placements}
    names = {"panels", "buffers", "file_buffers"} | ({"graph_buffers"} if graph_in_file else set())
    counted = sum(bytes_of[name] for name in names)
    assert bytes_of["panels"] + bytes_of["file_buffers"] < peak <= counted
    if isinstance(model, LightGCNConfig) and not graph_in_file:
        assert peak == counted


@pytest.mark.parametrize("back", [None, "stream"])
def test_a_run_goes_on_in_other_memory(machine, resident, tmp_path, back):
    """From files to DRAM and the other way; with another width of panels too."""
    first, second = (STREAM, None) if back is None else (None, replace(STREAM, panel=48))
    short = config(first, trainer=replace(config().trainer, epochs=1))
    done, _ = run.train(short, tmp_path / "run")
    done.places.close()
    done, summary = run.train(config(second, resume=True), tmp_path / "run")
    with done:
        found = done.model.embedding
        assert torch.equal(found if back is None else whole(found), resident[0].model.embedding)
    assert summary["metrics"] == resident[1]["metrics"]
    with run.open_run(tmp_path / "run") as opened:
        assert isinstance(opened.model, models.StreamedLightGCN) == (back is not None)
        assert run.evaluate(opened, [20]) == summary["metrics"]


def test_a_simulated_device_is_said_to_be_one(machine, resident, tmp_path):
    slow = replace(STREAM, simulate=SimulateConfig(read_gb_per_s=0.05, write_gb_per_s=0.05))
    done, summary = run.train(config(slow), tmp_path / "run")
    with done:
        assert torch.equal(whole(done.model.embedding), resident[0].model.embedding)
    account = summary["memory"]
    assert account["simulated"] == "SIMULATED"
    per_step = 6 * 1100 * 48 * 4 / 0.05e9
    assert account["transfer_seconds_per_step"] > 0.9 * per_step
    assert summary["metrics"] == resident[1]["metrics"]
    assert json.loads((tmp_path / "run/plan.json").read_text())["seconds_per_step"] > 0.9 * per_step


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": SoftmaxConfig(temperature=0.2), "model": NGCFConfig(dim=16, layers=2, message_dropout=0.1)},
        {"loss": SoftmaxConfig(temperature=0.2), "model": LightGCNConfig(dim=16, layers=2, similarity="cosine")},
        {"optimizer": OptimizerConfig(lr=0.01, clip=0.01)},
    ],
    ids=["ngcf", "softmax", "clip"],
)
def test_moments_alone_are_streamed_where_columns_mix(machine, tmp_path, changes):
    here, summary = run.train(config(**changes), tmp_path / "here")
    memory = MemoryConfig(name="stream", buffer="1MiB")
    short = replace(config(memory, **changes), trainer=replace(config(**changes).trainer, epochs=2))
    done, _ = run.train(short, tmp_path / "run")
    done.places.close()
    done, found = run.train(replace(config(memory, **changes), resume=True), tmp_path / "run")
    with done:
        for name, value in here.model.state_dict().items():
            assert torch.equal(done.model.state_dict()[name], value)
    assert found["metrics"] == summary["metrics"]
    assert {e["tensor"] for e in found["memory"]["tensors"] if e["mode"] == "stream"} == {"exp_avg", "exp_avg_sq"}
    with run.open_run(tmp_path / "run") as opened:
        assert run.evaluate(opened, [20]) == summary["metrics"]


@pytest.mark.parametrize("pin", [{}, {"graph": "TIER", "exp_avg": "dram"}], ids=["all", "pinned"])
def test_direct_placement_gives_the_same_bits(machine, resident, tmp_path, pin):
    tier = str(tmp_path / "slow")
    pin = {name: tier if where == "TIER" else where for name, where in pin.items()}
    done, summary = run.train(config(MemoryConfig(name="direct", folder=tier, pin=pin)), tmp_path / "run")
    names = {"embedding", "exp_avg", "exp_avg_sq"}
    if pin:
        names = {"embedding", "exp_avg_sq", "graph.indptr", "graph.indices", "graph.scale"}
    with done:
        assert torch.equal(done.model.embedding, resident[0].model.embedding)
        assert (
            set(done.places.placed)
            == names
            == {path.name for path in Path(tier).glob("[eg]*") if path.suffix != ".json"}
        )
    assert summary["metrics"] == resident[1]["metrics"]
    on_tier = {entry["tensor"]: entry["on_tier"] for entry in summary["memory"]["tensors"] if "on_tier" in entry}
    assert set(on_tier) == {name.partition(".")[0] for name in names}
    assert all("page cache" in words for words in on_tier.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"model": NGCFConfig(dim=16, layers=2)},
        {"trainer": TrainerConfig(epochs=3, batch_size=1000, storage="bfloat16")},
    ],
    ids=["ngcf", "bfloat16"],
)
def test_direct_placement_of_other_models(machine, tmp_path, changes):
    """NGCF has other parameters, whose state stays; a bfloat16 embedding has a float32 master."""
    here, summary = run.train(config(**changes), tmp_path / "here")
    there, found = run.train(config(MemoryConfig(name="direct"), **changes), tmp_path / "there")
    with there:
        for name, value in here.model.state_dict().items():
            assert torch.equal(there.model.state_dict()[name], value)
        names = {"embedding", "exp_avg", "exp_avg_sq"} | ({"master"} if "trainer" in changes else set())
        assert set(there.places.placed) == names
        embedding = there.places.placed["embedding"].tensor
        assert embedding.data_ptr() == there.model.embedding.data_ptr()
    assert found["metrics"] == summary["metrics"]


def test_pins_choose_what_is_streamed(machine, resident, tmp_path):
    memory = MemoryConfig(name="stream", buffer="1MiB", pin={"embedding": "dram"})
    done, summary = run.train(config(memory), tmp_path / "moments")
    with done:
        assert torch.equal(done.model.embedding, resident[0].model.embedding)
    assert {e["tensor"] for e in summary["memory"]["tensors"] if e["mode"] == "stream"} == {"exp_avg", "exp_avg_sq"}
    with pytest.raises(ConfigError, match=r"memory=stream: streams into .* against memory\.pin\.exp_avg=dram\. Pin"):
        run.train(config(replace(STREAM, pin={"exp_avg": "dram"})), tmp_path / "none")


def test_a_finished_run_is_resumed_without_a_step(machine, tmp_path):
    for resume in (False, True):
        done, summary = run.train(config(STREAM, resume=resume), tmp_path / "run")
        done.places.close()
    assert summary["memory"]["actual_seconds_per_step"] is None
    assert "likely_cause" not in summary["memory"]


@pytest.mark.parametrize("state", [{"epoch": None}, {"epoch": "2", "worse": []}, [1]])
def test_a_damaged_position_is_passed_over(machine, resident, tmp_path, state):
    run.train(config(STREAM), tmp_path / "run")[0].places.close()
    (checkpoint.latest(tmp_path / "run/checkpoints") / "state.json").write_text(json.dumps(state))
    done, _ = run.train(config(STREAM, resume=True), tmp_path / "run")
    with done:
        assert torch.equal(whole(done.model.embedding), resident[0].model.embedding)


def test_numbers_that_overflow_are_seen(graph, tmp_path):
    settings = LightGCNConfig(dim=16, layers=1)
    with TierFolder(tmp_path / "tier") as folder:
        model = streamed(graph, folder, settings, 16, Ring(0))
        block = model.embedding.rows(0)
        block[0, 3] = float("nan")
        model.embedding.fill(
            block if number == 0 else model.embedding.rows(number) for number in range(model.layout.blocks)
        )
        trainer = Trainer(model, TrainerConfig(epochs=1, batch_size=1500), BPRConfig(), OptimizerConfig(), seed=1)
        trainer._step(0)
        assert not trainer.learner.largest() < 1e15
        trainer.learner.close()


def test_auto_takes_memory_as_long_as_there_is_enough(machine, tmp_path):
    loop = TrainerConfig(epochs=1, batch_size=100)
    done, summary = run.train(config(MemoryConfig(name="auto"), trainer=loop), tmp_path / "enough")
    assert isinstance(done.model, models.LightGCN)
    assert summary["memory"]["mode"] == "dram"
    needed = sum(entry["bytes"] for entry in summary["memory"]["tensors"])
    less = MemoryConfig(name="auto", limit=f"{int(0.9 * needed)}", buffer="64KiB")
    done, summary = run.train(config(less, trainer=loop), tmp_path / "less")
    with done:
        assert summary["memory"]["mode"] == "stream"
        held = sum(e["bytes"] for e in summary["memory"]["tensors"] if e["tier"] == "dram")
        assert held <= 0.9 * needed
    with pytest.raises(PlanError, match=r"no placement fits: dram needs .* too little\. In this order: memory\.limit="):
        run.train(config(MemoryConfig(name="auto", limit="200KiB")), tmp_path / "none")
    done, summary = run.train(config(MemoryConfig(name="auto"), trainer=loop), tmp_path / "none")  # it never was a run
    assert summary["memory"]["mode"] == "dram"


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
        assert torch.equal(whole(done.model.embedding), resident[0].model.embedding)
    assert summary["metrics"] == resident[1]["metrics"]


def test_a_disk_without_room_is_found_out_before_training(machine, tmp_path, monkeypatch):
    short, free, real = config(STREAM, trainer=replace(config().trainer, epochs=1)), 0, os.statvfs

    def statvfs(path):
        return SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_namemax=real(path).f_namemax)

    monkeypatch.setattr(room.os, "statvfs", statvfs)
    numbers = 1100 * 48 * 4
    words = (
        r"run: checkpoints \(1 of 825.00 KiB\) and streamed tensors \(1.01 MiB\) will take .*, 0 bytes are free\. Free"
    )
    with pytest.raises(StorageError, match=words):
        run.train(short, tmp_path / "run")
    assert not (tmp_path / "run/config.yaml").exists()
    assert not (tmp_path / "run/tier/embedding.bin").exists()
    free = 9 * numbers + 8192  # a checkpoint has four matrices, five are streamed
    run.train(short, tmp_path / "run")[0].places.close()
    # Two checkpoints more: the first one is there.
    with pytest.raises(StorageError, match=r"run: checkpoints \(2 of"):
        run.train(config(STREAM, resume=True), tmp_path / "run")
    # A finished run writes none.
    free = 5 * numbers + 8192
    done, summary = run.train(replace(short, resume=True), tmp_path / "run")
    done.places.close()
    assert summary["epochs"] == 1
    two = replace(short.trainer, epochs=2)
    with pytest.raises(StorageError, match=r"run: checkpoints \(1 of"):
        run.train(config(STREAM, resume=True, trainer=two), tmp_path / "run")
    state = next((tmp_path / "run/checkpoints").glob("*/state.json"))
    state.write_text("{")  # damaged: nobody knows what is left
    with pytest.raises(StorageError, match=r"run: checkpoints \(1 of"):
        run.train(replace(short, resume=True), tmp_path / "run")
    free = 0
    run.train(config(), tmp_path / "resident")


@pytest.mark.parametrize("patience", [60, -60])
def test_a_calibration_that_runs_out_of_time(tmp_path, monkeypatch, capsys, patience):
    """Of a disk on a busy machine: the run goes on with the rates that were measured, or says what to do."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(placing, "CALIBRATION_SECONDS", 0)
    monkeypatch.setattr(placing, "discover", lambda folders: [dram(), *(unmeasured(folder) for folder in folders)])
    for name, value in {"_LEAST": 16 << 20, "_WANTED": 16 << 20, "_WRITE_BACK": 1, "_PATIENCE": patience}.items():
        monkeypatch.setattr(measure_file, name, value)
    monkeypatch.setattr(measure_file, "_RUN_SECONDS", 0.002)
    monkeypatch.setattr(placing.calibrate, "calibrated", list)
    short = config(STREAM, trainer=replace(config().trainer, epochs=1))
    if patience > 0:
        run.train(short, tmp_path / "run")[0].places.close()
        assert "the time was up before" in capsys.readouterr().out
        return
    where = re.escape(str(tmp_path / "run/tier"))
    words = r"has no rate of \w+: unavailable: .*were written in the time there was.*seconds=300 on an idle machine"
    with pytest.raises(UnknownRateError, match=rf"{where}: {words}"):
        run.train(short, tmp_path / "run")
    enough = replace(short, memory=MemoryConfig(name="auto", folder=str(tmp_path / "run/tier")))
    assert run.train(enough, tmp_path / "enough")[1]["memory"]["mode"] == "dram"  # the disk is not needed


def unmeasured(folder):
    return replace(disk(folder), provenance="", rates=(), latency_ns=None)


def test_live_files_are_no_checkpoint(machine, tmp_path):
    done, _ = run.train(config(STREAM), tmp_path / "run")
    with done, pytest.raises(CheckpointError, match="live tensors"):
        run.open_run(tmp_path / "run/tier")


@pytest.mark.parametrize("way", ["preadv", "pwritev"])
def test_a_failing_disk_leaves_the_last_checkpoint(machine, resident, tmp_path, monkeypatch, way):
    real, calls, step = getattr(os, way), [], Trainer._step

    def failing(*arguments):
        calls.append(way)
        raise OSError(5, "made up")

    def broken(trainer, number):
        if number == 12:
            monkeypatch.setattr(os, way, failing)
        return step(trainer, number)

    monkeypatch.setattr(Trainer, "_step", broken)
    with pytest.raises(StorageError, match=r"tier/\w+\.bin: (read|write) at byte \d+ failed: .*EIO.*\. The device"):
        run.train(config(STREAM), tmp_path / "run")
    assert calls
    monkeypatch.setattr(os, way, real)
    monkeypatch.setattr(Trainer, "_step", step)
    done, _ = run.train(config(STREAM, resume=True), tmp_path / "run")
    with done:
        assert torch.equal(whole(done.model.embedding), resident[0].model.embedding)


def with_graph(tier):
    """The graph in a file there too."""
    return replace(STREAM, folder=tier, pin={"graph": tier})


KILLS = int(os.environ.get("GNNREC_KILLS", "3"))  # of a release: 50
KILLED = """
import sys
from pathlib import Path
from gnnrec.training import placing, run
sys.path.insert(0, {tests!r})
import test_streamed as here
from made_up_tiers import disk, dram
placing.discover = lambda folders: [dram(), *map(disk, folders)]
placing.calibrate.calibrated = list
run.train(here.long(here.{memory}, {resume}, {model!r}), Path({folder!r}))
"""


KILLABLE = {"lightgcn": LightGCNConfig(dim=48, layers=3), "ngcf": NGCFConfig(dim=48, layers=2, message_dropout=0.1)}


def long(memory, resume, model):
    """A checkpoint after every 7 steps."""
    trainer = TrainerConfig(epochs=3 * KILLS + 10, batch_size=1000, eval_every=1000)
    return config(memory, resume=resume, trainer=trainer, model=KILLABLE[model])


@pytest.mark.parametrize("model", KILLABLE)
def test_a_killed_run_goes_on_to_the_same_bits(machine, tmp_path, model):
    """kill -9 at random times, in a process of its own each, with the graph in a file or not; what it leaves in the
    tier's folder is removed."""
    expected, theirs = run.train(long(None, False, model), tmp_path / "reference")
    folder, choice, tests = tmp_path / "run", random.Random(5), str(Path(__file__).parent)
    for kill in range(KILLS):
        memory = f"with_graph({str(folder / 'tier')!r})" if kill % 2 == 0 else "STREAM"
        there = (folder / "config.yaml").exists()
        code = KILLED.format(tests=tests, memory=memory, resume=there, model=model, folder=str(folder))
        command = [sys.executable, "-u", "-c", code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while (line := process.stdout.readline()) and not line.startswith("loading"):
            pass
        time.sleep(choice.uniform(0, 1))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
    assert (folder / "tier/embedding.bin").exists()
    assert (folder / "tier/graph.bin").exists() or KILLS % 2 == 0
    done, summary = run.train(long(STREAM, True, model), folder)
    with done:
        assert torch.equal(whole(done.model.embedding), expected.model.embedding)
        if model == "ngcf":
            there = expected.model.state_dict()
            assert all(torch.equal(value, there[name]) for name, value in done.model.state_dict().items())
    assert summary["metrics"] == theirs["metrics"]
