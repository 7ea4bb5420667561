"""Jobs of a sweep at the same time: cores of their own, memory for all of them, a process that dies."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from gnnrec.cli import workers
from gnnrec.cli.jobs import Task
from gnnrec.cli.sweep import Sweep
from gnnrec.config.recipes import CONF
from gnnrec.errors import ConfigError

GiB = 1 << 30
SMALL = (
    "data.synthetic.num_users=60",
    "data.synthetic.num_items=120",
    "data.synthetic.num_interactions=900",
    "data.synthetic.communities=3",
    "trainer.epochs=1",
)
# A launcher as Hydra documents them, which needs nothing but the standard library. Its processes die at seed 13.
LAUNCHER = """
import multiprocessing, os
from concurrent.futures import ProcessPoolExecutor
from hydra.core.config_store import ConfigStore
from hydra.core.utils import run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict


class Processes(Launcher):
    def __init__(self, n_jobs):
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context, task_function, config):
        self.given = hydra_context, task_function, config

    def launch(self, job_overrides, initial_job_idx):
        with ProcessPoolExecutor(self.n_jobs, multiprocessing.get_context("spawn")) as pool:
            futures = [
                pool.submit(execute, *self.given, list(overrides), initial_job_idx + number)
                for number, overrides in enumerate(job_overrides)
            ]
            return [future.result() for future in futures]


def execute(context, task, config, overrides, number):
    setup_globals()
    if "seed=13" in overrides and number not in task.ended:
        os.makedirs(f"{config.hydra.sweep.dir}/{number}", exist_ok=True)
        from gnnrec import sweeps
        sweeps.Job(sweeps.Path(config.hydra.sweep.dir, str(number)), overrides)
        os._exit(9)
    job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.id = job.hydra.job.num = number
    returned = run_job(
        hydra_context=context,
        task_function=task,
        config=job,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    with open(f"{config.hydra.sweep.dir}/{number}/cores", "w") as file:
        print(sorted(os.sched_getaffinity(0)), file=file)
    return returned


TARGET = "hydra_plugins.processes.Processes"
ConfigStore.instance().store(group="hydra/launcher", name="processes", node={"_target_": TARGET, "n_jobs": -1})
"""
INSTALLED = {distribution.name for distribution in importlib.metadata.distributions()}
needs_joblib = pytest.mark.skipif(
    "hydra-joblib-launcher" not in INSTALLED, reason="hydra-joblib-launcher is not installed"
)
needs_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this process may use one core alone")


def sweep(cwd: Path, *args: str) -> Any:
    """A sweep in a process of its own, which finds the launcher above."""
    (cwd / "plugins" / "hydra_plugins").mkdir(parents=True)
    (cwd / "plugins" / "hydra_plugins" / "processes.py").write_text(LAUNCHER)
    environment = os.environ | {"PYTHONPATH": f"{cwd / 'plugins'}:{os.environ.get('PYTHONPATH', '')}"}
    code = "from gnnrec.cli import main; main()"
    command = [sys.executable, "-c", code, "train", *SMALL, "-m", "hydra.sweep.dir=sweep", *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@needs_cores
@pytest.mark.parametrize("launcher", ["processes", pytest.param("joblib", marks=needs_joblib)])
def test_jobs_at_the_same_time_have_cores_of_their_own(launcher, tmp_path):
    result = sweep(tmp_path, f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=2", "seed=0,-1")
    assert result.returncode == 2
    assert "2 of 2 jobs at a time" in result.stdout
    assert "job 0 (seed=0): done\n" in result.stdout
    assert "recommendations for user" not in result.stdout  # lines of several jobs would mix
    assert "recommendations for user" in (tmp_path / "sweep" / "0" / "output.txt").read_text()
    assert pd.read_csv(tmp_path / "sweep" / "sweep.csv")["status"].tolist() == ["done", "failed"]
    first, last = result.stderr.splitlines()
    assert first.startswith("gnnrec: job 1 (seed=-1): seed: is -1")
    assert last.startswith("gnnrec: sweep: 1 of 2 jobs failed: 1.")
    share = len(os.sched_getaffinity(0)) // 2
    machine = json.loads((tmp_path / "sweep" / "0" / "summary.json").read_text())["machine"]
    assert (machine["cores"], machine["threads"], machine["torch_threads"]) == (share, share, share)
    if launcher == "processes":
        for job in "01":
            assert len(json.loads((tmp_path / "sweep" / job / "cores").read_text())) == share


@needs_cores
@needs_joblib
def test_without_a_number_as_many_jobs_run_as_there_is_room_for(tmp_path):
    result = sweep(tmp_path, "hydra/launcher=joblib", "seed=-1,-2")
    assert "2 of 2 jobs at a time" in result.stdout
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert [message[:11] for message in table["message"]] == ["seed: is -1", "seed: is -2"]


@needs_cores
def test_one_job_of_a_launcher_that_may_run_several_has_all_cores(tmp_path):
    result = sweep(tmp_path, "hydra/launcher=processes", "hydra.launcher.n_jobs=2", "seed=-1")
    assert "1 of 1 jobs at a time" in result.stdout
    cores = sorted(os.sched_getaffinity(0))
    assert json.loads((tmp_path / "sweep" / "0" / "cores").read_text()) == cores


@needs_cores
def test_a_process_that_dies_takes_no_other_job_along(tmp_path):
    result = sweep(tmp_path, "hydra/launcher=processes", "hydra.launcher.n_jobs=2", "seed=13,-1")
    assert result.returncode == 2
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert table["status"].tolist() == ["failed", "failed"]
    assert table["message"][0] == "its process was killed, as by the system for want of memory"
    assert table["message"][1].startswith("seed: is -1")
    assert result.stderr.splitlines()[-1].startswith("gnnrec: sweep: 2 of 2 jobs failed: 0, 1.")


def test_shares_of_cores_are_disjoint_and_equal():
    assert workers.shares([0, 1, 4, 5, 6], 2) == [[0, 1], [4, 5]]
    assert workers.shares([3, 7], 2) == [[3], [7]]


def test_a_process_takes_the_first_place_that_is_free(tmp_path, monkeypatch):
    pinned = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: pinned.append(list(cores)))
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(workers, "PATIENCE", 0.0)
    take = workers.take_place.__wrapped__
    with workers._held:
        assert [take(tmp_path, 2), take(tmp_path, 2)] == [2, 2]
        assert pinned == [[0, 1], [2, 3]]
        with pytest.raises(workers.StorageError, match="another process of this sweep has these cores"):
            take(tmp_path, 2)
        for places in (-1, 0, 5):
            with pytest.raises(ValueError, match=f"{places} places on 4 cores"):
                take(tmp_path, places)


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("train", overrides=["device=cpu", *overrides]), resolve=True)


@pytest.mark.parametrize(
    ("options", "bytes_of_tensors"),
    [
        ((*SMALL, "model.dim=64"), 20 * 180 * 64 + 20 * 900),
        (("data=gowalla", "model.dim=64"), 20 * (29858 + 40981) * 64 + 20 * (810128 + 217242)),
        ((*SMALL, "model=ngcf", "model.layers=2"), 20 * 180 * 64 * 3 + 20 * 900),
        (("data=files", "data.log=log.csv"), 0),  # nobody knows before it is read
        ((*SMALL, "seed=-1"), 0),  # the job says that it cannot be
    ],
)
def test_tensors_in_dram_are_summed_too(options, bytes_of_tensors):
    assert workers.needed(composed(*options)) == workers.INTERPRETER_BYTES + bytes_of_tensors


def test_limits_are_summed_against_the_memory_that_is_free():
    streamed = {"name": "stream", "limit": "2GiB"}
    assert workers.needed({"memory": streamed, "device": "cpu"}) == 2 * GiB + workers.INTERPRETER_BYTES
    assert workers.needed({"memory": {"name": "auto"}, "device": "cpu"}) is None
    # Of a config that only the job can resolve.
    assert workers.needed({"memory": {"name": "dram"}, "device": "cpu"}) == workers.INTERPRETER_BYTES
    assert workers.needed({"memory": streamed, "device": "cuda"}) == workers.INTERPRETER_BYTES  # the limit is the GPU's
    assert workers.at_a_time(-1, [GiB] * 9, cores=4, free=100 * GiB) == 4
    assert workers.at_a_time(-1, [GiB] * 3, cores=4, free=100 * GiB) == 3
    assert workers.at_a_time(-1, [GiB, 3 * GiB, GiB, GiB], cores=4, free=5 * GiB) == 3
    assert workers.at_a_time(-1, [8 * GiB] * 2, cores=4, free=5 * GiB) == 1
    assert workers.at_a_time(3, [None], cores=4, free=5 * GiB) == 1
    assert workers.at_a_time(2, [GiB] * 9, cores=4, free=None) == 2


@pytest.mark.parametrize(
    ("asked", "needs", "says"),
    [
        (5, [GiB], r"n_jobs: is 5, but this process may use 4 cores. Lower it to 4"),
        (3, [2 * GiB] * 3, r"n_jobs: is 3, but 3 jobs .* 6.00 GiB of 5.00 GiB that are free. Lower it to 2, or lower"),
        (-1, [GiB, None], r"memory.limit: is not set, and each of 2 jobs .* Set memory.limit=2048MiB, or hydra"),
    ],
)
def test_more_than_there_is_room_for_is_refused(asked, needs, says):
    with pytest.raises(ConfigError, match=says):
        workers.at_a_time(asked, needs, cores=4, free=5 * GiB)


class Noted(Launcher):
    """Notes how many jobs it may run at a time, and runs none."""

    told: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.places = task_function.places

    def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
        self.told.append((self.n_jobs, self.places))
        return []


def test_batches_of_a_search_are_as_wide_as_was_asked_for(tmp_path, monkeypatch):
    """Processes that a launcher keeps have their cores for all batches, also where the first of these is small."""
    target = "hydra_plugins.noted.Noted"
    job = {"memory": {"name": "dram"}, "device": "cpu"}
    config = {"hydra": {"launcher": {"_target_": target, "n_jobs": -1}, "sweep": {"dir": str(tmp_path)}}}
    loader = SimpleNamespace(load_sweep_config=lambda config, overrides: OmegaConf.create(job))
    monkeypatch.setitem(Plugins.instance().class_name_to_class, target, Noted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    search, task = Sweep(), Task("train", "")
    monkeypatch.setattr(search, "validate_batch_is_legal", lambda jobs: None)
    context: Any = SimpleNamespace(config_loader=loader)
    search.setup(hydra_context=context, task_function=task, config=OmegaConf.create(config))
    search.jobs = {}
    for batch in ([0], [1, 2, 3], [4, 5]):
        search.launch({number: [f"seed={number}"] for number in batch}, width=3)
    assert Noted.told == [(1, 3), (3, 3), (2, 3)]
    assert search.asked == -1
    assert search.config.hydra.launcher.n_jobs == -1
