"""profile=on: where the time and the bytes of steps go."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up_tiers import disk, dram

from gnnrec import ops, profiler
from gnnrec.config import (
    BPRConfig,
    DataConfig,
    GFCFConfig,
    LightGCNConfig,
    MemoryConfig,
    NGCFConfig,
    OptimizerConfig,
    SyntheticConfig,
    TrainConfig,
    TrainerConfig,
)
from gnnrec.errors import ConfigError
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.memtier import calibrate
from gnnrec.memtier.account import hidden
from gnnrec.memtier.tiers import Rate
from gnnrec.ops._operator import Case
from gnnrec.ops.adam import reference as adam
from gnnrec.training import placing, recording, run, trace
from gnnrec.training import profile as profiles
from gnnrec.training.op_costs import Call, cost
from gnnrec.training.resident import Resident
from gnnrec.training.runlog import read_events, rss_bytes
from gnnrec.training.trainer import Interrupted

DIM, LAYERS = 16, 2
MODELS = {"lightgcn": LightGCNConfig(dim=DIM, layers=LAYERS), "ngcf": NGCFConfig(dim=DIM, layers=LAYERS)}


@pytest.fixture(autouse=True, scope="module")
def no_calibration(tmp_path_factory):
    """Whatever this machine's user has measured, and however fast it is."""
    file = tmp_path_factory.mktemp("calibration") / "calibration.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "user_file", lambda: file)
        patch.setattr(profiles, "product_flops", lambda dtype: 1e11)
        yield


def config(model: str = "lightgcn", **changes) -> TrainConfig:
    """An epoch is one step, of all interactions."""
    small = SyntheticConfig(num_users=200, num_items=150, num_interactions=3000, communities=4)
    return replace(
        TrainConfig(
            data=DataConfig(source="synthetic", name="synthetic", synthetic=small),
            model=MODELS[model],
            loss=BPRConfig(reg=1e-3),
            optimizer=OptimizerConfig(),
            trainer=TrainerConfig(epochs=6, batch_size=10_000, eval_every=3, checkpoint_every=3),
            profile="on",
        ),
        **changes,
    )


def content(folder: Path) -> dict:
    return json.loads((folder / "profile.json").read_bytes())


def rows(profile: dict) -> dict:
    return {(row["operator"].removeprefix("gnnrec::"), row["direction"]): row for row in profile["operators"]}


@pytest.fixture(scope="module", params=MODELS)
def profiled(request, tmp_path_factory):
    """A run with its directory, and the seconds of every step by another clock."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    trained, seconds = trained_by_another_clock(config(request.param), folder)
    return request.param, trained, folder, seconds


def trained_by_another_clock(settings, folder):
    """A run, and the seconds of every step."""
    seconds, real = [], Resident.step

    def timed(self, step, lr):
        started = time.perf_counter()
        loss = real(self, step, lr)
        seconds.append(time.perf_counter() - started)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resident, "step", timed)
        trained, _ = run.train(settings, folder)
    return trained, seconds


def test_rows_sum_up_to_the_time_of_the_steps(profiled):
    _, _, folder, seconds = profiled
    profile = content(folder)
    first, steps = profile["first_step"], profile["steps"]
    assert (first, steps) == (profiles.SKIPPED, 3)
    together = sum(row["seconds"] for row in profile["operators"])
    assert all(row["seconds"] >= 0 for row in profile["operators"])
    assert together == pytest.approx(profile["steps_seconds"], rel=1e-6)
    assert sum(row["share_ratio"] for row in profile["operators"]) == pytest.approx(1, rel=1e-6)
    assert together >= 0.95 * sum(seconds[first : first + steps])
    assert profile["seconds_per_step"] == profile["steps_seconds"] / steps


def test_every_operator_has_its_class_direction_and_calls(profiled):
    model, _, folder, _ = profiled
    found = {key: (row["class"], row["calls_per_step"]) for key, row in rows(content(folder)).items()}
    expected = {
        ("bpr_loss", "forward"): ("loss", 1),
        ("bpr_loss_backward", "backward"): ("loss", 1),
        ("gnnrec sampling", None): ("sampling", 1),
        ("python / other", None): ("other", 0),
    }
    if model == "lightgcn":
        expected |= {("lightgcn_propagate", way): ("SpMM", 1) for way in ("forward", "backward")}
        expected[("adam_step", None)] = ("optimizer", 1)
    else:
        expected[("ngcf_layer", "forward")] = ("SpMM + GEMM", LAYERS)
        expected[("ngcf_layer_backward", "backward")] = ("SpMM + GEMM", LAYERS)
        expected[("adam_step", None)] = ("optimizer", 1 + 4 * LAYERS)
    assert found | expected == found


def test_layers_that_are_calls_of_their_own_are_told_apart(profiled):
    model, _, folder, _ = profiled
    profile = content(folder)
    expected = [(way, number) for way in ("forward", "backward") for number in range(1, LAYERS + 1)]
    layers = [(layer["direction"], layer["layer"]) for layer in profile["layers"]]
    assert layers == (expected if model == "ngcf" else [])
    for way in ("forward", "backward") if model == "ngcf" else ():
        seconds = sum(layer["seconds_per_step"] for layer in profile["layers"] if layer["direction"] == way)
        name = "ngcf_layer" if way == "forward" else "ngcf_layer_backward"
        assert seconds > (1 - 1e-6) * rows(profile)[name, way]["seconds_per_step"]


def test_bytes_agree_with_a_count_by_hand(profiled):
    _, trained, folder, _ = profiled
    check_bytes(trained, folder, trained.data.train.users.size)


def check_bytes(trained, folder, batch):
    """The bytes of the operators of a step with so many triples, beside a count by hand."""
    matrix, model, dim = trained.graph.norm_adjacency(), trained.config.model.name, trained.config.model.dim
    nodes, entries, depth = matrix.shape[0], matrix.nnz, trained.config.model.layers
    numbers, row = nodes * dim * 4, dim * 4
    # Pointers, columns, the scale of a column for every entry and of every row; a row of x for every entry.
    gather = 8 * nodes + 4 * entries + 4 * entries + 4 * nodes + entries * row
    if model == "lightgcn":
        final, trained_numbers = numbers, numbers
        layers = 2 * depth * (gather + 2 * numbers)  # forward and backward: the first input again, and the result
    else:
        final, trained_numbers = (depth + 1) * numbers, numbers + depth * (2 * dim * dim + 2 * dim) * 4
        weights = (2 * dim * dim + 2 * dim) * 4
        forward = gather + 2 * numbers + 4 * nodes + weights  # the rows themselves, the result, its norms
        # Again; x, the result and its gradient read; gradients of aggregates and rows written, the latter changed.
        backward = 2 * gather + 3 * numbers + 4 * numbers + 4 * nodes + 2 * weights
        layers = depth * (forward + backward)
    final_row = final // nodes
    loss = batch * (24 + 3 * final_row + 3 * row)
    loss += batch * (24 + 3 * final_row + 4 * final_row) + final + min(nodes, 3 * batch) * row + numbers
    by_hand = layers + loss + 7 * trained_numbers
    profile = content(folder)
    counted = sum(row["bytes"] for row in profile["operators"] if row["operator"].startswith("gnnrec::"))
    assert counted / profile["steps"] == pytest.approx(by_hand, rel=0.1)


@pytest.mark.parametrize("model", MODELS)
def test_of_gowalla_too_rows_sum_up_and_bytes_agree_with_a_count_by_hand(model, data_root, tmp_path):
    batch, data = 2**17, DataConfig(source="catalog", name="gowalla", root=str(data_root), valid_ratio=0.0)
    sizes = replace(MODELS[model], dim=64, layers=3)
    settings = replace(config(model), data=data, model=sizes, trainer=TrainerConfig(epochs=1, batch_size=batch))
    trained, seconds = trained_by_another_clock(settings, tmp_path)
    assert (trained.graph.num_users, trained.graph.num_items, len(trained.data.train)) == (29_858, 40_981, 810_128)
    check_bytes(trained, tmp_path, batch)
    profile = content(tmp_path)
    first, steps = profile["first_step"], profile["steps"]
    assert (first, steps) == (profiles.SKIPPED, 4)
    named = sum(row["seconds"] for row in profile["operators"] if row["operator"] != trace.REST)
    assert named >= 0.95 * profile["steps_seconds"]
    assert profile["steps_seconds"] >= 0.95 * sum(seconds[first : first + steps])


def test_rates_follow_from_bytes_and_operations(profiled):
    model, trained, folder, _ = profiled
    found, matrix = rows(content(folder)), trained.graph.norm_adjacency()
    if model == "lightgcn":
        row = found["lightgcn_propagate", "forward"]
        assert row["flop"] == row["calls"] * 2 * LAYERS * (matrix.nnz + matrix.shape[0]) * DIM
    else:
        row = found["ngcf_layer", "forward"]
        assert row["flop"] == row["calls"] * (2 * matrix.nnz * DIM + 4 * matrix.shape[0] * DIM * DIM)
    assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["seconds"] / 1e9)
    assert row["gflop_per_s"] == pytest.approx(row["flop"] / row["seconds"] / 1e9)
    assert found["python / other", None]["gb_per_s"] is None


def test_a_trace_and_the_memory_of_the_run(profiled):
    _, _, folder, _ = profiled
    profile = content(folder)
    events = json.loads((folder / "trace.json").read_bytes())["traceEvents"]
    assert sum(event["name"] == trace.STEP for event in events) == profile["steps"]
    memory = profile["memory"]
    assert len(memory["timeline"]) >= 2 + 6  # begin, end, and every epoch
    assert all(0 < sample["rss_bytes"] <= memory["peak_rss_bytes"] for sample in memory["timeline"])
    times = [sample["seconds"] for sample in memory["timeline"]]
    assert times == sorted(times)
    assert [tier["read_gb_per_s"] for tier in profile["ceilings"]] == [None]  # nothing was calibrated
    assert not [path for path in folder.iterdir() if path.name.startswith(".tmp")]


def test_off_leaves_no_files_and_the_same_bits(profiled, tmp_path):
    model, trained, folder, _ = profiled
    plain, _ = run.train(config(model, profile="off"), tmp_path / "off")
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, plain.model.state_dict()[name])
    losses = [
        [event["loss"] for event in read_events(path / "events.jsonl") if event["event"] == "epoch"]
        for path in (folder, tmp_path / "off")
    ]
    assert losses[0] == losses[1]
    left = {path.name for path in folder.iterdir()} - {path.name for path in (tmp_path / "off").iterdir()}
    assert left == {"profile.json", "trace.json"}


def test_a_run_of_one_step_has_it_recorded(tmp_path):
    run.train(config(trainer=TrainerConfig(epochs=1, batch_size=10_000)), tmp_path / "one")
    profile = content(tmp_path / "one")
    assert (profile["steps"], profile["first_step"]) == (1, 0)


def test_a_finished_run_that_is_resumed_has_nothing_to_record(tmp_path):
    run.train(config(profile="off"), tmp_path / "run")
    run.train(config(resume=True), tmp_path / "run")
    profile = content(tmp_path / "run")
    assert (profile["steps"], profile["operators"]) == (0, [])


def test_a_large_trace_is_compressed(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "LARGEST", 10.0)
    run.train(config(), tmp_path / "run")
    assert content(tmp_path / "run")["trace"] == "trace.json.gz"
    assert (tmp_path / "run" / "trace.json.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert not (tmp_path / "run" / "trace.json").exists()


def nothing_is_recorded():
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert isinstance(profiler.kernel("gnnrec::nothing"), nullcontext)
    assert gc.get_freeze_count() == 0


def test_an_interrupted_training_leaves_no_profiler_behind(tmp_path, monkeypatch):
    real = Resident.step

    def fails(self, step, lr):
        if step == 4:
            raise RuntimeError("in the middle")
        return real(self, step, lr)

    monkeypatch.setattr(Resident, "step", fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        run.train(config(), tmp_path / "run")
    nothing_is_recorded()


def test_an_interrupted_training_keeps_what_was_recorded(tmp_path, monkeypatch):
    real = Resident.step

    def interrupted(self, step, lr):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step, lr)

    monkeypatch.setattr(Resident, "step", interrupted)
    with pytest.raises(Interrupted):
        run.train(config(), tmp_path / "run")
    profile = content(tmp_path / "run")
    assert (profile["steps"], profile["first_step"]) == (2, profiles.SKIPPED)
    assert sum(row["seconds"] for row in profile["operators"]) == pytest.approx(profile["steps_seconds"], rel=1e-6)
    assert len(profile["memory"]["timeline"]) >= 2
    nothing_is_recorded()


@pytest.fixture
def streaming(tmp_path, monkeypatch):
    """Settings of memory that stream everything from a disk."""
    monkeypatch.setattr(placing, "discover", lambda folders: [dram(), *map(disk, folders)])
    monkeypatch.setattr(placing.calibrate, "calibrated", lambda tiers: list(tiers))
    (tmp_path / "slow").mkdir()
    return MemoryConfig(name="stream", folder=str(tmp_path / "slow"), panel=16, buffer="1MiB")


def test_streamed_files_and_waiting(streaming, tmp_path):
    run.train(config(model="lightgcn", memory=streaming), tmp_path / "run")
    profile = content(tmp_path / "run")
    files = {file["file"]: file for file in profile["transfers"]["files"]}
    assert set(files) == {"embedding", "exp_avg", "exp_avg_sq"}
    for file in files.values():  # whole numbers of blocks, once each way in a step
        assert file["read_bytes"] == file["write_bytes"] >= profile["steps"] * 350 * DIM * 4
    together = sum(row["seconds"] for row in profile["operators"])
    assert together == pytest.approx(profile["steps_seconds"], rel=1e-6)
    (waiting,) = (row for row in profile["operators"] if row["class"] == "I/O")
    assert waiting["calls"] == profile["steps"]  # a block a panel, and one panel
    assert waiting["seconds"] >= profile["transfers"]["waiting_seconds"] > 0  # and what asking for a block takes
    assert 0 <= profile["transfers"]["hidden_share"] <= 1
    assert {row["direction"] for row in profile["operators"]} == {None}


def test_waits_that_are_longer_than_transfers_hide_nothing():
    assert hidden(1.0, 0.1, 0.2) == 0
    assert hidden(1.0, 0.2, 0.1) == pytest.approx(0.5)


@pytest.mark.parametrize("in_file", [False, True])
def test_streamed_kernels_have_rows_and_bytes_like_operators(streaming, tmp_path, in_file):
    if in_file:
        streaming = replace(streaming, pin={"graph": streaming.folder})
    trained, _ = run.train(config(model="lightgcn", memory=streaming), tmp_path / "run")
    profile, matrix = content(tmp_path / "run"), trained.graph.norm_adjacency()
    found, nodes, batch = rows(profile), matrix.shape[0], trained.data.train.users.size
    expected = {"lightgcn_propagate": "SpMM", "spmm": "SpMM", "select_rows": "row selection"}
    expected |= {"adam_step": "optimizer", "bpr_loss": "loss", "bpr_batch": "loss"}
    assert {name: found[name, None]["class"] for name in expected} == expected
    # A layer whole, and the last one of blocks of rows, or of a batch's: backward, and forward for the next step.
    gather = 8 * (nodes + 1) + 4 * matrix.nnz + 4 * matrix.nnz + 4 * nodes + matrix.nnz * 4 * DIM
    layers = profile["steps"] * 2 * (gather + 2 * nodes * 4 * DIM)
    assert found["lightgcn_propagate", None]["bytes"] == layers
    assert found["spmm", None]["bytes"] == pytest.approx(layers, rel=0.02)
    assert found["bpr_loss", None]["bytes"] == profile["steps"] * batch * (24 + 2 * 3 * 4 * DIM)
    assert found["lightgcn_propagate", None]["flop"] == profile["steps"] * 2 * 2 * (matrix.nnz + nodes) * DIM


def test_rows_of_a_streamed_ngcf_count_what_its_layers_count(streaming, tmp_path):
    trained, _ = run.train(config(model="ngcf", memory=streaming), tmp_path / "run")
    profile = content(tmp_path / "run")
    found, matrix = rows(profile), trained.graph.norm_adjacency()
    classes = {name: found[name, None]["class"] for name in ("ngcf_aggregate", "ngcf_dense", "ngcf_dense_backward")}
    assert classes == {"ngcf_aggregate": "SpMM", "ngcf_dense": "GEMM", "ngcf_dense_backward": "GEMM"}
    # The last layer is of the batch's rows alone, which are almost all.
    aggregations = 2 * LAYERS * 2 * matrix.nnz * DIM
    products = LAYERS * 4 * matrix.shape[0] * DIM * DIM
    assert found["ngcf_aggregate", None]["flop"] / profile["steps"] == pytest.approx(aggregations, rel=0.02)
    assert found["ngcf_dense", None]["flop"] / profile["steps"] == pytest.approx(products, rel=0.02)
    assert found["ngcf_dense_backward", None]["flop"] == 2 * found["ngcf_dense", None]["flop"]
    assert found["ngcf_dense", None]["gb_per_s"] > 0


def test_recorded_steps_leave_memory_as_it_is(data_root, tmp_path):
    """torch's profiler made each of them 17 to 70 MB larger."""
    data = DataConfig(source="catalog", name="gowalla", root=str(data_root), valid_ratio=0.0)
    trainer = TrainerConfig(epochs=3, batch_size=2**16, eval_every=3, checkpoint_every=3)  # 13 steps an epoch
    settings = replace(config(), data=data, model=LightGCNConfig(dim=64, layers=3), trainer=trainer)
    resident, real = [], profiles.StepProfile.step

    def watched(self, learner, step, lr):
        loss = real(self, learner, step, lr)
        resident.append(rss_bytes())
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles.StepProfile, "step", watched)
        run.train(settings, tmp_path / "run")
    steps = content(tmp_path / "run")["steps"]
    assert steps > 5
    assert resident[profiles.SKIPPED + steps - 1] - resident[profiles.SKIPPED - 1] < 10e6 * steps


@pytest.mark.parametrize("value", ["yes", "of", "true", ""])
def test_another_value_is_refused(value):
    with pytest.raises(ConfigError, match=rf"profile: is '{value}'"):
        config(profile=value).validate()


def test_a_model_without_steps_has_no_profile():
    closed = config(model="lightgcn", loss=None, optimizer=None, trainer=None)
    with pytest.raises(ConfigError, match="profile: is 'on', but model=gfcf is computed in closed form"):
        replace(closed, model=GFCFConfig()).validate()


def test_off_imports_nothing():
    words = "import sys, gnnrec.training.run; sys.exit('gnnrec.training.profile' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0


def test_ceilings_are_what_was_measured(tmp_path, monkeypatch):
    rates = (Rate("read", 20.0, threads=2), Rate("gather", 8.0, row_bytes=64, threads=2))
    measured = replace(dram(), provenance="measured", rates=rates, facts={calibrate.FACT: "today"})
    monkeypatch.setattr(profiles, "discover", lambda: [measured])
    monkeypatch.setattr(calibrate, "calibrated", lambda tiers: tiers)
    profile = profiles.StepProfile(tmp_path, row_bytes=64)
    profile.sample()
    profile.write()
    (ceiling,) = content(tmp_path)["ceilings"]
    assert [ceiling["read_gb_per_s"], ceiling["gather_gb_per_s"]] == pytest.approx([20, 8])
    assert (ceiling["gather_row_bytes"], ceiling["calibration"]) == (64, "today")
    (tier,) = content(tmp_path)["bandwidths"]
    assert [(rate["pattern"], rate["gb_per_s"]) for rate in tier["rates"]] == [("read", 20), ("gather", 8)]
    assert (tier["tier"], tier["latency_ns"], tier["calibration"]) == ("dram", 100, "today")


def test_the_rate_of_dense_products_is_measured_and_leaves_random_numbers_alone(tmp_path, monkeypatch):
    def measured(dtype):
        return 1e9 * torch.rand(1, dtype=dtype).item() + 1e10

    monkeypatch.setattr(profiles, "product_flops", measured)
    state = torch.get_rng_state()
    profile = profiles.StepProfile(tmp_path, row_bytes=64, precision=torch.bfloat16)
    profile.sample()
    profile.write()
    assert torch.equal(torch.get_rng_state(), state)
    products = content(tmp_path)["products"]
    assert products["dtype"] == "bfloat16"
    assert 10 <= products["gflop_per_s"] <= 11


# Of traces that were made up.


def event(name, ts, dur, *, cat="cpu_op", tid=1, **args):
    return {"ph": "X", "name": name, "ts": ts, "dur": dur, "cat": cat, "tid": tid, "args": args}


def step(ts, dur):
    return event(trace.STEP, ts, dur, cat="user_annotation")


def seconds_of(found):
    return {(key.operator, key.direction, key.kind): round(row.seconds * 1e6, 6) for key, row in found.rows.items()}


def test_seconds_count_once_and_for_the_innermost_operator():
    events = [
        event("aten::mm", 0, 50),  # before the step
        step(100, 100),
        event("gnnrec::lightgcn_propagate", 110, 40),
        event("GeneratedBackwardFor_gnnrec_lightgcn_propagate_default", 111, 38),
        event("aten::empty", 112, 3),
        event("gnnrec::spmm", 120, 10),
        event("aten::linear", 155, 10),
        event("aten::mm", 157, 6),
        event("Optimizer.step#Adam.step", 170, 20, cat="user_annotation"),
        event("gnnrec::adam_step", 172, 10),
        event("aten::add_", 184, 2),
        event("autograd::engine::evaluate_function: X", 192, 6),
        event("aten::add", 193, 4),
    ]
    found = trace.rows_of(events)
    assert (found.steps, found.seconds) == (1, 1e-4)
    assert seconds_of(found) == {
        ("gnnrec::lightgcn_propagate", "forward", "SpMM"): 30,
        ("gnnrec::spmm", "forward", "SpMM"): 10,
        ("aten::linear", "forward", "element-wise"): 4,
        ("aten::mm", "forward", "GEMM"): 6,
        ("Optimizer.step", None, "optimizer"): 8,
        ("gnnrec::adam_step", None, "optimizer"): 10,
        ("aten::add_", None, "optimizer"): 2,
        ("autograd engine", "backward", "other"): 2,
        ("aten::add", "backward", "element-wise"): 4,
        ("python / other", None, "other"): 24,
    }


def test_layers_go_by_the_order_of_calls_and_backwards_in_the_backward_pass():
    calls = [event("gnnrec::ngcf_layer", 0, 5)]  # before the step
    for begin, forward, backward in ((100, (10, 20), (40, 30)), (300, (1, 2), (4, 3))):
        calls.append(step(begin, 150))
        calls += [event("gnnrec::ngcf_layer", begin + 5 + 20 * k, time) for k, time in enumerate(forward)]
        calls += [event("gnnrec::ngcf_layer_backward", begin + 50 + 45 * k, time) for k, time in enumerate(backward)]
    calls.append(event("gnnrec::spmm", 106, 4))  # within a layer
    found = trace.rows_of(calls).layers
    assert {key: round(seconds * 1e6, 6) for key, seconds in found.items()} == {
        ("gnnrec::ngcf_layer", 1): 11,
        ("gnnrec::ngcf_layer", 2): 22,
        ("gnnrec::ngcf_layer_backward", 1): 33,
        ("gnnrec::ngcf_layer_backward", 2): 44,
    }


def test_on_a_gpu_the_time_is_that_of_kernels():
    kernel = {"cat": "kernel", "tid": 7}
    events = [
        step(0, 100),
        event("gnnrec::spmm", 5, 5, **{"External id": 3}),
        event("_spmm_kernel", 20, 30, **kernel, **{"External id": 3}),
        event("autograd::engine::evaluate_function: X", 10, 20, tid=2),
        event("gnnrec::spmm", 12, 5, tid=2, **{"External id": 4}),
        event("_spmm_kernel", 50, 25, **kernel, **{"External id": 4}),
        event("_adam_kernel", 80, 10, **kernel),  # of a graph
        event("_late_kernel", 120, 10, **kernel),  # after the step
        event("waiting for transfers", 90, 5),  # without a kernel
    ]
    found = seconds_of(trace.rows_of(events))
    assert ("waiting for transfers", None, "I/O") not in found
    assert {key: seconds for key, seconds in found.items() if seconds} == {
        ("gnnrec::spmm", "forward", "SpMM"): 30,
        ("gnnrec::spmm", "backward", "SpMM"): 25,
        ("_adam_kernel", None, "other"): 10,
        ("no kernel", None, "other"): 35,
    }


def test_what_computes_with_no_numbers_is_not_element_wise():
    names = ("_local_scalar_dense", "_unsafe_view", "_unique2", "arange", "t", "tanh", "add", "of_a_user")
    calls = [event(f"aten::{name}", 10 * k, 5) for k, name in enumerate(names[:-1])] + [event("mine::of_a_user", 80, 5)]
    kinds = {key.operator.partition("::")[2]: key.kind for key in trace.rows_of([step(0, 100), *calls]).rows}
    assert [kinds[name] for name in names] == ["other"] * 5 + ["element-wise"] * 2 + ["other"]


def test_waiting_within_a_kernel_is_taken_from_it():
    calls = [event("gnnrec::lightgcn_propagate", 0, 40), event("waiting for transfers", 10, 25)]
    assert seconds_of(trace.rows_of([step(0, 100), *calls, event("waiting for transfers", 50, 10)])) == {
        ("gnnrec::lightgcn_propagate", None, "SpMM"): 15,
        ("python / other", None, "other"): 50,
        ("waiting for transfers", None, "I/O"): 35,
    }


def test_a_recording_names_what_is_called_and_what_calls_it():
    x = torch.ones(3, 4, requires_grad=True)
    recorded = recording.begin(torch.device("cpu"), Path())
    try:
        with recorded.step():
            with torch.profiler.record_function("a range"):
                loss = (x @ x.T).sum()
            loss.backward()
            with profiler.kernel("gnnrec::of_a_test", [x, x], x, [0.5, 0.5], None):
                pass
    finally:
        events = json.loads(recorded.end())["traceEvents"]
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    named = {event["name"]: event for event in events}
    product, around = named["aten::mm"], named["a range"]
    assert around["ts"] <= min(event["ts"] for event in events if event["name"] == "aten::mm")
    assert (around["cat"], product["cat"], named[trace.STEP]["cat"]) == ("user_annotation", "cpu_op", "user_annotation")
    assert named["gnnrec::of_a_test"]["args"] == {
        "Input Dims": [[[3, 4], [3, 4]], [3, 4], [], []],
        "Input type": ["TensorList", "float", "ScalarList", ""],
        "Concrete Inputs": ["", "", "[0.5, 0.5]", ""],
    }
    found = trace.rows_of(events).rows
    assert {key.direction for key in found if key.operator == "aten::mm"} == {"forward", "backward"}
    assert sum(row.calls for key, row in found.items() if key.operator == "aten::mm") == 3  # 2 of them backward
    assert found[trace.Key("aten::mm", "forward", "GEMM")].flop == 2 * 3 * 4 * 3
    assert trace.Key("autograd engine", "backward", "other") in found


def test_an_operator_that_others_call_has_a_row_beside_them():
    indptr, indices = torch.tensor([0, 2, 3, 4]), torch.tensor([1, 2, 0, 0], dtype=torch.int32)
    matrix, x = SparseMatrix(indptr, indices, (3, 3), symmetric=True), torch.ones(3, 16, requires_grad=True)
    recorded = recording.begin(torch.device("cpu"), Path())
    with recorded.step():
        ops.lightgcn_propagate(matrix, x, num_layers=2, rows=torch.tensor([1])).sum().backward()
    found = trace.rows_of(json.loads(recorded.end())["traceEvents"]).rows
    rows = {(key.operator.removeprefix("gnnrec::"), key.direction): row for key, row in found.items()}
    names = "lightgcn_propagate_rows", "lightgcn_propagate", "propagate_some"
    assert [rows[name, "forward"].calls for name in names] == [1, 1, 1]
    assert rows["lightgcn_propagate_rows_backward", "backward"].calls == 1
    row = 16 * 4
    # Pointers and places; the entry's column, scale and row; the row's scale; what is added, and the result.
    assert rows["propagate_some", "forward"].bytes == 8 * 4 + 4 * 3 + 1 * (8 + row) + 4 + 2 * row
    assert rows["propagate_some", "forward"].flop == 2 * (1 + 1) * 16
    each = 8 * 4 + 2 * 4 * 3 + (1 + 3) * row  # of a layer: pointers, places, scales; what is added, and the result
    assert rows["propagate_some", "backward"].bytes == 2 * each + 4 * 8 + (4 + row) + 4 * (8 + row)
    assert rows["propagate_some", "backward"].flop == 2 * (1 + 4 + 2 * 1) * 16
    expected = ops.lightgcn_propagate(matrix, torch.eye(3)[:, 1:2].expand(3, 16), num_layers=2)
    assert torch.equal(x.grad, expected)


def test_a_step_that_fails_leaves_no_recording_behind():
    recorded = recording.begin(torch.device("cpu"), Path())
    with pytest.raises(RuntimeError, match="in the middle"), recorded.step():
        raise RuntimeError("in the middle")
    recorded.end()
    nothing_is_recorded()
    assert json.loads(recorded.end())["traceEvents"] == []


def test_bytes_and_operations_of_a_call():
    graph, none = [[6], [9], [5], [7], [1], [0, 3], [0, 3], [0]], []
    spmm = Call("gnnrec::spmm", [graph, none, [7, 4], *[none] * 6], ["TensorList", "", "float", *[""] * 6], [""] * 9)
    assert cost(spmm) == (8 * 6 + 4 * 9 + 4 * 5 + 4 * 9 + (9 + 5) * 4 * 4, 2 * 9 * 4)
    sddmm = Call("gnnrec::sddmm", [graph, none, [5, 4], [7, 4], none], ["", "", "double", "double", ""], [""] * 5)
    assert cost(sddmm) == (8 * 6 + 4 * 9 + 4 * 5 + 4 * 9 + (5 + 9) * 4 * 8 + 9 * 8, 2 * 9 * 4)
    assert cost(Call("aten::mm", [[3, 5], [5, 2]], ["float", "float"], ["", ""])) == (4 * (15 + 10 + 6), 60)
    assert cost(Call("aten::bmm", [[2, 3, 5], [2, 5, 2]], ["c10::Half"] * 2, ["", ""])) == (2 * 2 * 31, 120)
    assert cost(Call("aten::exp", [[3]], ["float"], [""])) == (None, None)


def test_operations_of_losses():
    final, triples = [9, 4], [4, 3]  # two negatives, three triples
    settings, types = ["", "", "", "0.1", "False"], ["float", "float", "long int", "", ""]
    assert cost(Call("gnnrec::bpr_loss", [final, final, triples, [], []], types, settings)).flop == 3 * 3 * 8
    backward = Call(
        "gnnrec::bpr_loss_backward", [[], final, final, triples, [], []], ["float", *types], ["", *settings]
    )
    assert cost(backward).flop == 3 * 3 * 8 + 3 * 2 * 3 * 8  # a row of every pair to either
    dims = [[4], [7], [10, 8], [20, 8], [], [], [], []]  # three users against all 20 items
    types, settings = ["long int", "int", "float", "float", "", "", "", ""], ["", "", "", "", "10", "", "", ""]
    softmax = Call("gnnrec::softmax_loss", dims, types, settings)
    pointers_and_columns, row = 8 * 4 + 4 * 7, 4 * 8
    assert cost(softmax) == (pointers_and_columns + (2 * 3 + 2 * 20 + 4 * 7) * row, 3 * 2 * 3 * 20 * 8)
    together = softmax._replace(dims=[*dims[:2], [30, 8], [], *dims[4:]], types=[*types[:3], "", *types[4:]])
    assert cost(together) == cost(softmax)
    shared = softmax._replace(dims=[*dims[:6], [9], [6]], types=[*types[:6], "long int", "long int"])
    assert cost(shared) == (pointers_and_columns + (2 * 3 + 2 * 9 + 2 * 6 + 4 * 7) * row, 3 * 2 * 3 * 6 * 8)
    dims = [[], [[3, 8], [9, 8]], [[3], [9]], [], []]
    types, settings = ["float", "TensorList", "TensorList", "ScalarList", ""], ["", "", "", "[10, 20]", ""]
    assert cost(Call("gnnrec::softmax_loss_backward", dims, types, settings)).bytes == (3 + 9 + 10 + 20) * row


def test_bytes_of_adam_with_tensors_of_several_types():
    plain = Call("gnnrec::adam_step", [[10, 4]] * 4 + [[]] * 6, ["float"] * 4 + [""] * 6, [""] * 10)
    assert cost(plain).flop == 12 * 40
    assert cost(plain).bytes == adam.bytes_moved(Case("", {"parameter": (10, 4)}, {}), 4)
    half = Call("gnnrec::adam_step", [[10, 4]] * 5 + [[]] * 5, ["c10::BFloat16"] * 4 + ["float"] + [""] * 5, [""] * 10)
    assert cost(half).bytes == 40 * (2 + 2 + 2 * 2 + 2 * 2 + 2 * 4)
