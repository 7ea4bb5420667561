"""Several processes, connected: by torchrun, and by its environment alone. Numbers of many ranks: test_columns.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import pytest
import torch
from pretend_ranks import together
from torch.distributed import TCPStore

from gnnrec import ranks
from gnnrec.device import DeviceError
from gnnrec.errors import GnnrecError
from gnnrec.training import checkpoint, run
from gnnrec.training.runlog import read_events

SMALL = [
    "data=synthetic",
    "data.synthetic.num_users=200",
    "data.synthetic.num_items=150",
    "data.synthetic.num_interactions=3000",
    "data.synthetic.communities=4",
    "model.dim=32",
    "model.layers=2",
    "trainer.batch_size=512",
    "trainer.eval_every=1",
    "device=cpu",
    "threads=1",
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SECONDS = 60  # a limit for what should take few


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of two processes under torchrun, and what it printed."""
    folder = tmp_path_factory.mktemp("torchrun")
    words = [*TORCHRUN, "-m", "gnnrec", "train", *SMALL, "trainer.epochs=2", f"hydra.run.dir={folder / 'run'}"]
    return folder / "run", subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=300)


@pytest.fixture
def started(tmp_path) -> Iterator[Callable[..., list[forked.Rank]]]:
    """Starts two ranks in a folder; ends what is left of them."""
    every: list[forked.Rank] = []

    def start(*args: str, **options: int) -> list[forked.Rank]:
        (tmp_path / "desk").mkdir(exist_ok=True)
        some = forked.ranks("train", *SMALL, *args, cwd=tmp_path / "desk", **options)
        every.extend(some)
        return some

    yield start
    for rank in every:
        rank.process.kill()
        rank.process.join()


@pytest.fixture
def store() -> Iterator[int]:
    """The port of a store that outlives ranks, as torchrun's does."""
    kept = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield kept.port
    del kept


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5 * SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(some: list[forked.Rank]) -> list[int]:
    """Their exit codes, soon."""
    for rank in some:
        rank.process.join(SECONDS)
    return [rank.process.exitcode for rank in some]


def test_two_processes_leave_one_run_and_print_once(finished):
    folder, process = finished
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("epoch 2/2") == 1
    assert process.stdout.count("recommendations for user") == 1
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints", "config.yaml", "data", "events.jsonl", "summary.json", ".lock"
    }  # fmt: skip
    assert [event["event"] for event in read_events(folder / "events.jsonl")].count("start") == 1
    newest = checkpoint.latest(folder / "checkpoints")
    assert {"model.0-16.safetensors", "model.16-32.safetensors"} < {path.name for path in newest.iterdir()}


def test_the_bytes_of_a_step_are_counted(finished):
    folder, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    exchanged, steps = summary["distributed"], summary["steps"]
    assert (exchanged["ranks"], exchanged["backend"]) == (2, "gloo")
    batches = summary["epochs"] * run.graph_of(run.open_run(folder).data.train).num_edges  # of all steps together
    assert exchanged["all_reduce_bytes_per_step"] == pytest.approx(4 * batches / steps + 12)


def test_one_process_reads_what_two_have_trained_and_goes_on(finished, tmp_path):
    folder, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert run.evaluate(run.open_run(folder), [20]) == summary["metrics"]
    alone = forked.gnnrec("train", *SMALL, "trainer.epochs=2", "hydra.run.dir=alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    expected = json.loads((tmp_path / "alone" / "summary.json").read_text())
    for part, metrics in expected["metrics"].items():
        assert summary["metrics"][part] == pytest.approx(metrics, rel=1e-3)
    events = [read_events(path / "events.jsonl") for path in (folder, tmp_path / "alone")]
    losses = [[event["loss"] for event in found if event["event"] == "epoch"] for found in events]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("model", ["lightgcn", "ngcf"])
def test_rows_of_two_processes_give_the_run_of_one_which_goes_on_with_it(started, tmp_path, model):
    options = f"model={model}", "trainer.epochs=2"
    every = started(*options, "distributed.split=rows", "hydra.run.dir=run")
    assert ended(every) == [0, 0], every[0].err.read_text()
    alone = forked.gnnrec("train", *SMALL, *options, "hydra.run.dir=alone", cwd=tmp_path / "desk")
    assert alone.returncode == 0, alone.stderr
    folders = [tmp_path / "desk" / name for name in ("run", "alone")]
    events = [read_events(path / "events.jsonl") for path in folders]
    losses = [[event["loss"] for event in found if event["event"] == "epoch"] for found in events]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    newest = checkpoint.latest(folders[0] / "checkpoints")
    assert any(path.name.startswith("model.rows-0-") for path in newest.iterdir())
    summaries = [json.loads((path / "summary.json").read_text()) for path in folders]
    assert summaries[0]["data"] == summaries[1]["data"]
    assert summaries[0]["distributed"]["all_gather_bytes_per_step"] > 350 * 32 * 4
    for part, metrics in summaries[1]["metrics"].items():
        assert summaries[0]["metrics"][part] == pytest.approx(metrics, rel=1e-3)
    again = forked.gnnrec(
        "train", *SMALL, options[0], "trainer.epochs=3", "resume=true", "hydra.run.dir=run", cwd=tmp_path / "desk"
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("\nepoch ") == 1


def test_a_mistake_is_printed_once(started):
    every = started("loss=softmax")
    assert ended(every) == [2, 2]
    says = [rank.err.read_text() for rank in every]
    assert "loss: is 'softmax', which several processes cannot train" in says[0]
    assert says[1] == ""


def test_a_run_of_others_is_refused_with_one_message_also_after_a_restart(started, finished, store):
    for restarts in range(2):
        every = started("trainer.epochs=3", f"hydra.run.dir={finished[0]}", restarts=restarts, store=store)
        assert ended(every) == [2, 2]
        says = [rank.err.read_text() for rank in every]
        assert sum("holds a run already" in text for text in says) == 1
        assert "" in says


def training(every: list[forked.Rank]) -> None:
    until(lambda: "epoch 3/" in every[0].out.read_text())


@pytest.mark.parametrize(
    ("signum", "rank", "split"),
    [
        (signal.SIGKILL, 1, "columns"),
        (signal.SIGKILL, 0, "columns"),
        (signal.SIGSTOP, 1, "columns"),
        (signal.SIGKILL, 1, "rows"),
        (signal.SIGSTOP, 1, "rows"),
    ],
)
def test_a_rank_that_is_killed_or_hangs_ends_the_others(started, tmp_path, signum, rank, split):
    options = "trainer.epochs=100000", "distributed.timeout_seconds=5", f"distributed.split={split}"
    every = started(*options, "hydra.run.dir=run")
    training(every)
    os.kill(every[rank].process.pid, signum)
    other = every[1 - rank]
    assert ended([other]) == [2]
    # torch adds lines of its own where the rank is gone that kept the addresses of all.
    (line,) = [line for line in other.err.read_text().splitlines() if line.startswith("gnnrec: ")]
    assert "a rank of 2 has ended, or did not answer within 5 s, at " in line
    assert "resume=true" in line
    assert checkpoint.load_latest(tmp_path / "desk" / "run" / "checkpoints")[1] == []


@pytest.mark.parametrize("split", ["columns", "rows"])
def test_an_interrupt_of_one_rank_stops_all_after_the_same_step_and_a_restart_goes_on(started, tmp_path, store, split):
    cut = f"distributed.split={split}"
    every = started("trainer.epochs=100000", "hydra.run.dir=run", cut, store=store)
    training(every)
    os.kill(every[1].process.pid, signal.SIGINT)
    assert ended(every) == [130, 130]
    says = "".join(rank.err.read_text() for rank in every)
    assert says.count("interrupted by SIGINT; the state is kept in") == 1
    found, warnings = checkpoint.load_latest(tmp_path / "desk" / "run" / "checkpoints")
    assert warnings == []
    assert found.tensors["model.embedding"].shape == (350, 32)
    last = found.state["epoch"] + 1
    again = started(f"trainer.epochs={last}", "hydra.run.dir=run", cut, restarts=1, store=store)
    assert ended(again) == [0, 0], again[0].err.read_text()
    assert again[0].out.read_text().count("\nepoch ") == 1


@pytest.fixture
def gpus(monkeypatch) -> list[int]:
    """Two GPUs; of each rank that takes one, its number."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(socket, "gethostname", lambda: "host")
    return taken


def chosen(devices: list[str], beside: int) -> list[str]:
    """What ranks choose of which each finds one of these devices, or none; so many share a machine."""

    def work(rank: ranks.Ranks) -> str:
        def device() -> str:
            if devices[rank.rank] == "none":
                raise DeviceError("torch sees no GPU", where="device=cuda", remedy="Use device=cpu")
            return devices[rank.rank]

        rank.local, rank.beside = rank.rank % beside, beside
        return ranks.agreed(rank, device)

    return together(len(devices), work)


def test_every_rank_takes_a_gpu_of_its_own(gpus):
    assert chosen(["cuda"] * 4, beside=2) == ["cuda"] * 4
    assert sorted(gpus) == [0, 0, 1, 1]
    assert chosen(["cpu"] * 3, beside=3) == ["cpu"] * 3
    assert len(gpus) == 4


@pytest.mark.parametrize(
    ("devices", "beside", "message"),
    [
        (
            ["cuda"] * 3,
            3,
            "device on host: is cuda, with 2 of the 3 GPUs that the processes need, one each. "
            "Start at most 2 on this machine, or use device=cpu",
        ),
        (["cuda", "none"], 1, "device=cuda on host: torch sees no GPU. Use device=cpu"),
        (
            ["cuda", "cpu"],
            2,
            "device: ranks would compute on different ones: cuda on host, cpu on host. "
            "Use device=cpu, or machines whose GPUs can all run the kernels",
        ),
    ],
)
def test_ranks_that_cannot_all_have_their_device_say_so_on_all(gpus, devices, beside, message):
    with pytest.raises(GnnrecError) as caught:
        chosen(devices, beside)
    assert str(caught.value) == message


def test_before_ranks_are_joined_one_on_each_machine_prints_its_error(monkeypatch, capsys):
    from gnnrec import cli

    for rank, local in ((2, 0), (3, 1)):  # on the second machine
        names = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "x"}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))
        assert cli.run("train", ["data=nowhere"]) == 2
        assert ("there is no data=nowhere" in capsys.readouterr().err) == (local == 0)


def test_other_apps_and_sweeps_are_for_a_single_process(monkeypatch, capsys):
    from gnnrec import cli

    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, str(value))
    assert ranks.count() == 2
    for words in (["evaluate", "run=x"], ["train", "-m", "seed=0,1"]):
        assert cli.run(words[0], words[1:]) == 2
        assert "several processes can only train, one run" in capsys.readouterr().err


LEAVING = """
import os, sys, time
from contextlib import suppress
from pathlib import Path
import torch
from gnnrec import ranks

def threads():
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has just ended
            policy = os.sched_getscheduler(int(task.name))
            found.setdefault((task / "comm").read_text().strip(), []).append(policy)
    return found

with ranks.joined(60, lambda: "cpu") as both:
    import torch._dynamo  # whose imports must not keep the group
    both.total(torch.ones(3))
    found = threads()
    assert set(found["gloo_tcp_loop"] + found["pt_gloo_runloop"]) == {os.SCHED_BATCH}, found
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
deadline = time.monotonic() + 10  # threads that have been joined may be listed for a moment
while any("gloo" in name for name in threads()):
    assert time.monotonic() < deadline, threads()
    time.sleep(0.01)
"""


def is_patient() -> bool:
    """Whether threads of this process can be told to wait, and are not yet."""
    try:
        usual = os.sched_getscheduler(0) == os.SCHED_OTHER
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except (AttributeError, OSError):
        return False
    return usual


@pytest.mark.skipif(not is_patient(), reason="this system does not let threads wait for a core")
def test_threads_of_the_network_interrupt_nobody_and_end_before_the_process(tmp_path):
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    done = subprocess.run([*TORCHRUN, str(script)], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not is_patient(), reason="this system does not let threads wait for a core")
@pytest.mark.parametrize("forbidden", ["sched_getscheduler", "sched_setscheduler"])
def test_where_threads_cannot_be_told_to_wait_they_are_not(monkeypatch, forbidden):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    policy = os.sched_getscheduler
    monkeypatch.setattr(os, forbidden, refuse)
    with ranks._patient_threads():
        assert policy(0) == os.SCHED_OTHER
    assert policy(0) == os.SCHED_OTHER
