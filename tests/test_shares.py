"""What each of several ranks takes of its memory, and what it may take. The ranks are threads here."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from alone import alone
from pretend_ranks import together
from test_run import config as run_config
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from gnnrec.config import (
    BPRConfig,
    DistributedConfig,
    LightGCNConfig,
    MemoryConfig,
    NGCFConfig,
    OptimizerConfig,
    TrainerConfig,
    check_rank_device,
    check_ranks,
)
from gnnrec.config.memory import CustomTierConfig
from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.rows import GraphRows
from gnnrec.memtier.demands import RANKING, HeldOut, Moved
from gnnrec.memtier.shares import Share, Shares, of_rows
from gnnrec.memtier.workload import Workload
from gnnrec.models import LightGCNRows, NGCFRows, build
from gnnrec.ranks import Ranks, agreed
from gnnrec.report.plans import read_plan
from gnnrec.training import division, placing, run
from gnnrec.training.resident import Resident
from gnnrec.training.row_parallel import RowParallel, RowParallelLayers

LIGHTGCN, NGCF = LightGCNConfig(dim=32, layers=2), NGCFConfig(dim=16, layers=2)


def config(model, split: str | None, **memory):
    base = run_config()
    trainer = replace(base.trainer, epochs=1)
    changes = {"model": model, "trainer": trainer, "distributed": DistributedConfig(split)}
    return replace(base, **changes, memory=MemoryConfig(name="auto", **memory))


@pytest.mark.parametrize(("model", "split"), [(LIGHTGCN, "columns"), (LIGHTGCN, "rows"), (NGCF, "rows")])
def test_every_rank_says_what_it_takes_before_it_trains(tmp_path, model, split):
    def work(ranks: Ranks):
        seen = []
        run.train(config(model, split, limit="1GiB"), tmp_path / "run", on_plan=seen.append, ranks=ranks)
        return seen

    (shares,), (others,) = together(2, work)
    assert shares == others
    kept = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert kept == json.loads(json.dumps(shares.to_dict()))
    assert (kept["mode"], kept["split"]) == ("ranks", split)
    assert [share["rank"] for share in kept["ranks"]] == [0, 1]
    for share in kept["ranks"]:
        assert share["bytes"] == sum(share["tensors"].values()) <= share["limit_bytes"] <= 2**30
    assert read_plan(tmp_path / "run", None) == (None, None)
    assert run.evaluate(run.open_run(tmp_path / "run"), [20])  # by a single process


def test_what_is_counted_is_what_is_held():
    made = config(LIGHTGCN, "rows")
    data = run.dataset.load(made.data)
    log = data.train

    def work(ranks: Ranks) -> tuple[Share, dict[str, int]]:
        graph = GraphRows(log.users, log.items, log.num_users, log.num_items, ranks)
        shares = division.shares(made, graph, placing.held_out(made, data), None, ranks)
        model = LightGCNRows(graph, LIGHTGCN, 0, torch.device("cpu"))
        matrix = graph.matrix
        held = [matrix.indptr, matrix.indices, matrix.row_scale, matrix.col_scale, graph.numbers, graph.indptr]
        held += [torch.from_numpy(x) for x in (graph.user_degrees, graph.item_degrees)]
        lists = graph.user_indptr.nbytes + graph.user_items.nbytes
        found = {"embedding": model.embedding.nbytes, "everyone": model.everyone.nbytes, "interactions": lists}
        return shares.ranks[ranks.rank], found | {"graph": sum(x.nbytes for x in held)}

    for share, found in together(2, work):
        assert {name: share.tensors[name] for name in found} == pytest.approx(found, rel=0.01)
        assert share.tensors["exp_avg"] == share.tensors["exp_avg_sq"] == found["embedding"]


def test_every_rank_keeps_the_best_where_any_has_a_validation_part():
    made = config(LIGHTGCN, "rows")
    data = run.dataset.load(made.data)
    some = replace(data, valid=data.valid.take(np.flatnonzero(data.valid.users < 10)))

    def work(ranks: Ranks) -> tuple[int, dict[str, int]]:
        graph, own = division.cut(some, ranks)
        shares = division.shares(made, graph, placing.held_out(made, own), None, ranks)
        return len(own.valid), shares.ranks[ranks.rank].tensors

    found = together(2, work)
    assert [bool(count) for count, _ in found] == [True, False]
    assert all(tensors["best"] == tensors["embedding"] for _, tensors in found)


_UNSEEN = "graph", "interactions", "batch", RANKING, "work"  # no matrices, and what an operator has for itself


class Alive(TorchDispatchMode):
    """Bytes of the matrices that operators have taken or given and that still exist; `peak`: the most."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.held, self.peak = set[int](), 0, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for x in tree_leaves((args, result)):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float32 and x.dim() == 2:
                storage = x.untyped_storage()
                if id(storage) not in self.known:
                    self.known.add(id(storage))
                    self.held += storage.nbytes()
                    weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.held)
        return result

    def _gone(self, number: int, count: int) -> None:
        self.known.remove(number)
        self.held -= count


@pytest.mark.parametrize("batch", [1 << 9, 1 << 15])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", ["lightgcn", "ngcf"])
@alone
def test_steps_hold_what_is_counted(kind, layers, size, batch):
    """Where few nodes are in a batch, and where most are."""
    users, items = np.random.default_rng(0).integers(0, 4_000, (2, 40_000), np.int32)
    trainer = TrainerConfig(batch_size=batch)
    if kind == "ngcf":
        model, made, learner = NGCFConfig(dim=64, layers=layers), NGCFRows, RowParallelLayers
    else:
        model, made, learner = LightGCNConfig(dim=64, layers=layers), LightGCNRows, RowParallel
    given = {"model": model, "loss": BPRConfig(), "optimizer": OptimizerConfig(), "trainer": trainer}

    def work(ranks: Ranks) -> tuple[int, int]:
        graph = GraphRows(users, items, 4_000, 4_000, ranks)
        work = Workload.of(graph, **given, held_out=HeldOut(0, 0, 20), threads=1, cache_bytes=0)
        counted = of_rows(work, graph, valid=False)
        spread = ranks.spread

        def uncounted(*given) -> None:
            """Threads send copies, which processes do not make."""
            with _disable_current_modes():
                spread(*given)

        def steps() -> None:
            mine = learner(made(graph, model, 0, torch.device("cpu")), trainer, BPRConfig(), OptimizerConfig(), 0)
            for step in range(2):
                mine.step(step, 1e-3)

        steps()  # what a kernel is called with while it is compiled waits for the garbage collector
        ranks.spread = uncounted
        with Alive() as alive:
            steps()
        numbers = next(demand.bytes for demand in work.demands({}, Moved(0)) if demand.name == "batch")
        return alive.peak, sum(counted[name] for name in counted.keys() - {"graph", "interactions", RANKING}) - numbers

    for peak, counted in together(size, work):
        assert 0.9 * counted < peak < 1.06 * counted


@pytest.mark.parametrize("batch", [1 << 9, 1 << 15])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("loss", [BPRConfig(), BPRConfig(reg=0)], ids=["reg", "plain"])
@alone
def test_a_process_of_its_own_holds_what_is_counted(loss, layers, batch):
    users, items = np.random.default_rng(0).integers(0, 4_000, (2, 40_000), np.int32)
    graph = BipartiteGraph.from_edges(users, items, 4_000, 4_000)
    model, trainer = LightGCNConfig(dim=64, layers=layers), TrainerConfig(batch_size=batch)
    given = {"model": model, "loss": loss, "optimizer": OptimizerConfig(), "trainer": trainer}
    work = Workload.of(graph, **given, held_out=HeldOut(0, 0, 20), threads=1, cache_bytes=0)
    assert work.in_part == (batch == 1 << 9)
    counted = sum(demand.bytes for demand in work.resident() if demand.name not in _UNSEEN)

    def steps() -> None:
        mine = Resident(build(model, graph, 0), trainer, loss, OptimizerConfig(), 0)
        for step in range(2):
            mine.step(step, 1e-3)

    steps()
    with Alive() as alive:
        steps()
    assert 0.9 * counted < alive.peak < 1.02 * counted


@pytest.mark.parametrize("split", ["columns", "rows"])
def test_a_rank_without_room_ends_all_before_they_train(tmp_path, split):
    says = r"memory of rank 0 on .*: takes .* of the 100\.00 KiB that memory.limit allows\. Set memory\.limit=\dMiB"

    def work(ranks: Ranks) -> None:
        with pytest.raises(GnnrecError, match=says):
            run.train(config(LIGHTGCN, split, limit="100KiB"), tmp_path / "run", ranks=ranks)

    together(2, work)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("limit", "free", "bound", "remedy"),
    [
        (1 << 20, 8 << 20, "1.00 MiB that memory.limit allows", "Set memory.limit=4MiB, or start more ranks, "),
        (1 << 20, None, "1.00 MiB that memory.limit allows", "Set memory.limit=4MiB, or start more ranks, "),
        (8 << 20, 2 << 20, "2.00 MiB that are free for it", "Start ranks on more machines, or fewer on this one, "),
        (None, 2 << 20, "2.00 MiB that are free for it", "Start ranks on more machines, or fewer on this one, "),
        (1 << 20, 2 << 20, "1.00 MiB that memory.limit allows", "Start ranks on more machines, or fewer on this one, "),
    ],
)
def test_what_is_said_is_what_would_help(limit, free, bound, remedy):
    with pytest.raises(GnnrecError) as caught:
        Share(0, "host", limit, free, {"embedding": 4 << 20}).check("rows")
    assert f"of the {bound}. {remedy}or lower" in str(caught.value)


def test_without_a_bound_nothing_is_refused():
    share = Share(0, "host", None, None, {"embedding": 4 << 20})
    share.check("rows")
    assert Shares("rows", [share]).rows()[0]["may take"] == "unknown"


def test_more_ranks_take_less_each():
    made = config(LIGHTGCN, "rows")
    data = run.dataset.load(made.data)
    log = data.train

    def work(ranks: Ranks) -> int:
        graph = GraphRows(log.users, log.items, log.num_users, log.num_items, ranks)
        share = division.shares(made, graph, placing.held_out(made, data), None, ranks).ranks[ranks.rank]
        return sum(share.tensors[name] for name in ("embedding", "exp_avg", "exp_avg_sq", "graph"))

    two, four = (together(size, work) for size in (2, 4))
    assert max(four) < 0.65 * min(two)


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        ({"folder": "/tmp"}, "memory.folder: is '/tmp'"),
        ({"pin": {"graph": "dram"}}, "memory.pin: is"),
        ({"panel": 16}, "memory.panel: is 16"),
        ({"buffer": "1MiB"}, "memory.buffer: is '1MiB'"),
        ({"custom": CustomTierConfig(path="my.tiers:Tier")}, r"memory.custom.path: is 'my.tiers:Tier'"),
    ],
)
def test_a_plan_that_ranks_have_no_use_for_is_refused(memory, says):
    with pytest.raises(ConfigError, match=says):
        check_ranks(config(LIGHTGCN, "rows", **memory), 2)


@pytest.mark.parametrize(
    ("model", "memory", "says"),
    [(NGCF, "dram", "device.*: is 'cuda'.*must be cpu"), (LIGHTGCN, "auto", "memory.*: is 'auto'.*must be dram")],
)
def test_what_gpus_cannot_train_is_refused_on_all_ranks_before_data_are_read(monkeypatch, model, memory, says):
    """Known at once with device=cuda, with device=auto when ranks have found their devices."""
    made = replace(config(model, None), memory=MemoryConfig(name=memory))
    with pytest.raises(ConfigError, match=says):
        check_ranks(replace(made, device="cuda"), 2)
    check_ranks(replace(made, device="auto"), 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)

    def work(rank: Ranks) -> None:
        with pytest.raises(GnnrecError, match=says):
            agreed(rank, lambda: check_rank_device(made, "cuda"))
        assert agreed(rank, lambda: check_rank_device(made, "cpu")) == "cpu"

    together(2, work)
