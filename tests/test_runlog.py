"""The run log, the facts about the machine, and progress."""

from __future__ import annotations

import importlib.metadata
import json
import math
import mmap
import os
import platform
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_cases import in_child
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.errors import CheckpointError, Interrupted, Pruned, StorageError
from gnnrec.training import runlog
from gnnrec.training.runlog import (
    Logger,
    RunLog,
    machine,
    memory_bytes,
    peak_rss_bytes,
    read_events,
    rss_bytes,
    versions,
    write_summary,
)


def strict(text: str) -> Any:
    """JSON by the standard: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def events_file(folder: Path) -> Path:
    return folder / "events.jsonl"


# --- events and summary -----------------------------------------------------------------------------------------------


def test_events_are_lines_of_json(tmp_path: Path) -> None:
    before = time.time()
    with RunLog(tmp_path / "new" / "run") as log:
        log.event("epoch", epoch=1, loss=0.25, name="Größe\nline\r\u2028")
        # Read while the log is open: nothing waits in a buffer.
        (event,) = read_events(tmp_path / "new" / "run" / "events.jsonl")
        log.event("end")
    assert before <= event.pop("time") <= time.time()
    assert event == {"event": "epoch", "epoch": 1, "loss": 0.25, "name": "Größe\nline\r\u2028"}
    lines = (tmp_path / "new" / "run" / "events.jsonl").read_text().split("\n")
    assert [strict(line)["event"] for line in lines[:-1]] == ["epoch", "end"]
    assert lines[-1] == ""


def test_values_that_json_does_not_know(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.event(
            "x",
            nan=math.nan,
            infinities=[math.inf, -np.inf],
            numpy=np.float32(0.5),
            numpy_nan=np.float32("nan"),
            numpy_int=np.int64(2**62),
            numpy_bool=np.True_,
            array=np.array([1.0, np.nan]),
            tensor=torch.tensor([[1, 2]]),
            bf16=torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True),
            path=Path("a/b"),
            nested={1: (math.nan, {"y": math.inf})},
        )
    record = strict(events_file(tmp_path).read_text())
    assert {key: value for key, value in record.items() if key not in ("event", "time")} == {
        "nan": None,
        "infinities": ["Infinity", "-Infinity"],
        "numpy": 0.5,
        "numpy_nan": None,
        "numpy_int": 2**62,
        "numpy_bool": True,
        "array": [1.0, None],
        "tensor": [[1, 2]],
        "bf16": 1.5,
        "path": "a/b",
        "nested": {"1": [None, {"y": "Infinity"}]},
    }


def test_a_value_that_cannot_be_written_writes_nothing(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log, pytest.raises(TypeError):
        log.event("x", value=object())
    assert read_events(events_file(tmp_path)) == []


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_000))
def test_a_torn_last_line_is_skipped_and_cut_on_reopening(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("run")
    with RunLog(folder) as log:
        for number in range(5):
            log.event("step", number=number, text="x" * number)
    path = events_file(folder)
    data = path.read_bytes()
    torn = data[: cut % (len(data) + 1)]
    path.write_bytes(torn)
    whole = torn.count(b"\n")
    assert [event["number"] for event in read_events(path)] == list(range(whole))
    with RunLog(folder) as log:
        log.event("again")
    assert [event["event"] for event in read_events(path)] == ["step"] * whole + ["again"]


def test_zeros_after_a_power_cut_are_cut(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.event("a")
    with open(events_file(tmp_path), "ab") as file:
        file.write(bytes(100))
    assert [event["event"] for event in read_events(events_file(tmp_path))] == ["a"]
    with RunLog(tmp_path) as log:
        log.event("b")
    assert [strict(line)["event"] for line in events_file(tmp_path).read_text().splitlines()] == ["a", "b"]


def test_killed_while_logging(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            log = RunLog(tmp_path)
            for number in range(10**9):
                log.event("step", number=number, text="x" * 10_000)
        finally:
            os._exit(1)
    path = tmp_path / "events.jsonl"
    while not path.exists() or path.stat().st_size < 1_000_000:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    numbers = [event["number"] for event in read_events(path)]
    assert len(numbers) > 90
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("line", ["{", "[]", "{}", "\x00", '"event"'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(f'{{"event": "a"}}\n{line}\n{{"event": "b"}}\n')
    with pytest.raises(CheckpointError, match="is not an event") as caught:
        read_events(path)
    assert caught.value.where == f"{path}, line 2"


def test_events_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_events(tmp_path / "events.jsonl")


def test_summary(tmp_path: Path) -> None:
    write_summary(tmp_path, {"metrics": {"test": {"recall@20": 0.5}}, "loss": math.nan})
    write_summary(tmp_path, {"metrics": {"test": {"recall@20": np.float64(0.25)}}, "loss": math.nan})
    assert strict((tmp_path / "summary.json").read_text()) == {"metrics": {"test": {"recall@20": 0.25}}, "loss": None}
    assert os.listdir(tmp_path) == ["summary.json"]


def test_disks_that_refuse(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="ENOTDIR"):
        RunLog(tmp_path / "file" / "run")

    def work() -> str:
        log = RunLog(tmp_path)
        log.event("small")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(StorageError) as caught:
            log.event("large", text="x" * 2000)
        log.close()  # has nothing left to write, and so does not fail
        return str(caught.value)

    status, text = in_child(work)
    assert status == 0
    assert text.startswith(f"{tmp_path / 'events.jsonl'}: cannot be written: File too large (EFBIG)")
    assert [event["event"] for event in read_events(tmp_path / "events.jsonl")] == ["small"]


# --- loggers ----------------------------------------------------------------------------------------------------------


class Told(Logger):
    """Keeps what it is told, in a list that others may share."""

    def __init__(self, told: list[Any], name: str = "a", fails: str = "") -> None:
        self.told, self.name, self.fails = told, name, fails

    def event(self, event: str, fields: Any) -> None:
        self.told.append((self.name, event, dict(fields)))
        if event == self.fails:
            raise StorageError("the first failure")

    def close(self, status: str) -> None:
        self.told.append((self.name, status))
        if self.fails == "close":
            raise StorageError("a failure on the way out")


def test_loggers_are_told_after_the_file_and_closed_before_it(tmp_path: Path) -> None:
    told: list[Any] = []
    with RunLog(tmp_path, [Told(told), Told(told, "b")]) as log:
        log.event("x", number=1)
    assert told == [("a", "x", {"number": 1}), ("b", "x", {"number": 1}), ("b", "finished"), ("a", "finished")]
    assert [event["event"] for event in read_events(events_file(tmp_path))] == ["x"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(143), "interrupted"),
        (Interrupted(signal.SIGINT, None), "interrupted"),
        (Pruned("given up after epoch 2"), "pruned"),
        (ZeroDivisionError(), "failed"),
    ],
)
def test_how_a_run_ended(error: BaseException, status: str) -> None:
    told: list[Any] = []
    with pytest.raises(type(error)), RunLog(loggers=[Told(told)]):
        raise error
    assert told == [("a", status)]


def test_a_logger_that_fails_keeps_none_from_being_closed(tmp_path: Path) -> None:
    told: list[Any] = []
    loggers = [Told(told), Told(told, "b", fails="x"), Told(told, "c", fails="close")]
    with pytest.raises(StorageError, match="the first failure"), RunLog(tmp_path, loggers) as log:
        log.event("x")
    assert told[-3:] == [("c", "failed"), ("b", "failed"), ("a", "failed")]
    assert [event["event"] for event in read_events(events_file(tmp_path))] == ["x"]
    with pytest.raises(StorageError, match="on the way out"), RunLog(loggers=[Told(told), loggers[2]]):
        pass
    assert told[-2:] == [("c", "finished"), ("a", "finished")]


def test_a_logger_leaves_out_what_it_has_no_use_for(tmp_path: Path) -> None:
    log = RunLog(loggers=[Logger()])
    log.start({}, tmp_path)
    log.phase("training")
    log.event("x")
    log.close()


# --- facts ------------------------------------------------------------------------------------------------------------


def test_machine() -> None:
    facts = machine()
    assert facts["cpu"]
    assert 1 <= facts["cores"] <= (os.cpu_count() or 1)
    assert facts["torch_threads"] == torch.get_num_threads()
    assert facts["threads"] >= 1
    assert facts["ram_bytes"] > 2**28
    assert facts["os"] == platform.platform()
    assert strict(json.dumps(facts)) == facts


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "checkout" / "gnnrec" / "training"
    package.mkdir(parents=True)
    (package / "runlog.py").write_text("")
    monkeypatch.setattr(runlog, "__file__", str(package / "runlog.py"))
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["gnnrec"] == importlib.metadata.version("gnnrec")
    assert set(found) == {"python", "gnnrec", "torch", "numpy", "numba", "hydra-core"}

    git(tmp_path, "init", "-q")  # a repository around the checkout is not the checkout
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "x")
    assert "commit" not in versions()

    checkout = tmp_path / "checkout"
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "x")
    git(checkout, "tag", "v1")
    commit = git(checkout, "rev-parse", "HEAD")
    assert versions()["commit"] == commit
    (package / "runlog.py").write_text("changed")
    assert versions()["commit"] == f"{commit}-dirty"

    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert "commit" not in versions()


def touch(block: mmap.mmap) -> None:
    block[:: mmap.PAGESIZE] = b"1" * -(-len(block) // mmap.PAGESIZE)


def test_peak_rss() -> None:
    before = peak_rss_bytes()
    assert before > 2**25  # Python with numpy and torch
    with mmap.mmap(-1, before + 2**26) as block:  # given back at once, unlike an allocator's
        touch(block)
        assert peak_rss_bytes() >= len(block)


def test_memory_now_and_at_most() -> None:
    before = rss_bytes()
    with mmap.mmap(-1, 2**26) as block:  # an allocator might take it from what it never gave back
        touch(block)
        assert before + len(block) // 2 < rss_bytes() <= memory_bytes() <= machine()["ram_bytes"]
