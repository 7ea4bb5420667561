"""A tier of a user's own package: the whole life of a run on it, and what is said where it fails."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up_tiers import disk, dram
from test_streamed import config, whole

from gnnrec import extensions, models, recommend
from gnnrec.cli.plan import plan, show
from gnnrec.config import LightGCNConfig, MemoryConfig, NGCFConfig, SimulateConfig, SoftmaxConfig, TrainerConfig
from gnnrec.config.memory import CustomTierConfig
from gnnrec.config.recipes import CONF
from gnnrec.errors import ConfigError, StorageError
from gnnrec.memtier import calibrate, discover, measure_custom
from gnnrec.memtier.account import Actual, account
from gnnrec.memtier.custom import CustomTier
from gnnrec.memtier.files import aligned
from gnnrec.memtier.planner import PlanError
from gnnrec.report.findings import findings
from gnnrec.report.records import read_runs
from gnnrec.training import checkpoint, placing, run
from gnnrec.training.trainer import Trainer

EXAMPLES = Path(__file__).parent.parent / "examples"
STRIPED = "my_package.tiers:Striped"
MIB = 1 << 20


@pytest.fixture
def tiers(monkeypatch):
    """The example's tiers, where they are found and may be run; measured in no more than what a plan needs."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(extensions, "_allowed", {"my_package"})
    monkeypatch.setattr(measure_custom, "SECONDS", 0.0)
    monkeypatch.setattr(measure_custom, "_WANTED", 16 * MIB)
    monkeypatch.setattr(measure_custom, "_RUN_SECONDS", 0.002)
    from my_package import tiers

    return tiers


@pytest.fixture
def machine(monkeypatch):
    """A machine with 16 GiB of DRAM, and a disk wherever a folder is named."""
    monkeypatch.setattr(placing, "discover", lambda folders: [dram(), *map(disk, folders)])
    monkeypatch.setattr(placing.calibrate, "calibrated", list)


def added(tiers, monkeypatch, made) -> str:
    """Put a class into the example's module; gives its path."""
    made.__module__ = tiers.__name__
    monkeypatch.setattr(tiers, made.__name__, made, raising=False)
    return f"{tiers.__name__}:{made.__name__}"


def stream(folder: Path, path: str = STRIPED, **changes) -> MemoryConfig:
    """A stream into two folders, in stripes much smaller than blocks."""
    options = {"folders": [str(folder / "a"), str(folder / "b")], "stripe": 8192}
    given = {"panel": 16, "buffer": "1MiB"} | changes
    return MemoryConfig("stream", custom=CustomTierConfig(path, options), **given)


@pytest.fixture(scope="module")
def resident(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resident") / "run"
    return *run.train(config(), folder), folder


def test_a_run_on_an_own_tier_is_that_in_memory(tiers, machine, resident, tmp_path, capsys):
    """Planned, trained, resumed, evaluated, recommended from; nothing stays in its folders."""
    expected, theirs, reference = resident
    one = replace(config().trainer, epochs=1)
    run.train(config(stream(tmp_path), trainer=one), tmp_path / "run")[0].places.close()
    done, summary = run.train(config(stream(tmp_path), resume=True), tmp_path / "run", on_plan=show)
    with done:
        assert torch.equal(whole(done.model.embedding), expected.model.embedding)
        for folder in (tmp_path / "a", tmp_path / "b"):
            assert {"embedding.bin", "exp_avg.bin", "exp_avg_sq.bin"} <= {path.name for path in folder.iterdir()}
            assert not (folder / "final.bin").exists()  # what is mapped lies in a file of gnnrec's
            assert not (folder / "calibration").exists()
            assert (folder / "embedding.bin").stat().st_size >= done.model.layout.file_bytes // 2
        assert [path.name for path in (tmp_path / "run/tier").glob("*.bin")] == ["final.bin"]
    for folder in (tmp_path / "a", tmp_path / "b", tmp_path / "run/tier"):
        assert [path.name for path in folder.iterdir()] == [".gnnrec-tier.lock"]
    assert summary["metrics"] == theirs["metrics"]
    saved, other = (checkpoint.load_latest(path / "checkpoints")[0] for path in (tmp_path / "run", reference))
    assert saved.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(saved.tensors[name], other.tensors[name]) for name in saved.tensors)

    said = capsys.readouterr().out
    assert f"measuring {STRIPED} for the plan" in said
    assert re.search(rf"embedding .*{STRIPED} .*stream", said)
    assert re.search(rf"{STRIPED} .*mixed .*measured", said)
    entries = {entry["tensor"]: entry for entry in summary["memory"]["tensors"]}
    for name in ("embedding", "exp_avg", "exp_avg_sq"):
        assert entries[name]["tier"] == STRIPED
        assert entries[name]["actual_bytes_per_step"] >= 0.9 * entries[name]["predicted_bytes_per_step"]
        assert entries[name]["actual_seconds_per_step"] > 0
    assert entries["final"]["tier"] == str(tmp_path / "run/tier")

    with run.open_run(tmp_path / "run") as opened:
        assert isinstance(opened.model, models.StreamedLightGCN)
        assert (tmp_path / "a/embedding.bin").exists()
        assert run.evaluate(opened, [20]) == theirs["metrics"]
        log = opened.data.train
        tables = recommend.embeddings(opened.model.scorer(), log.user_ids, log.item_ids)
        assert tables["items"].equals(
            recommend.embeddings(expected.model.scorer(), log.user_ids, log.item_ids)["items"]
        )
        with pytest.raises(StorageError, match="another run keeps its tensors in this folder"):
            run.open_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "streamed"),
    [
        ({"model": NGCFConfig(dim=32, layers=2, message_dropout=0.1)}, {"embedding", "exp_avg", "layers", "gradient"}),
        ({"model": LightGCNConfig(dim=16, layers=1), "loss": SoftmaxConfig()}, {"exp_avg", "exp_avg_sq"}),
    ],
    ids=["ngcf", "moments"],
)
def test_other_models_on_an_own_tier(tiers, machine, tmp_path, changes, streamed):
    panel = 16 if "embedding" in streamed else None
    here, theirs = run.train(config(**changes), tmp_path / "here")
    done, summary = run.train(config(stream(tmp_path, panel=panel), **changes), tmp_path / "run")
    with done:
        found = done.model.embedding
        assert torch.equal(whole(found) if panel else found, here.model.embedding)
    assert summary["metrics"] == theirs["metrics"]
    assert streamed <= {entry["tensor"] for entry in summary["memory"]["tensors"] if entry["tier"] == STRIPED}
    with run.open_run(tmp_path / "run") as opened:
        assert run.evaluate(opened, [20]) == summary["metrics"]


def test_what_a_killed_run_has_left_is_removed(tiers, machine, resident, tmp_path):
    with CustomTier(stream(tmp_path).custom, run="killed") as own:
        own.create("embedding.bin", 8192)
        left = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    for path, content in left.items():
        path.write_bytes(content)
    done, _ = run.train(config(stream(tmp_path)), tmp_path / "run")
    with done:
        assert torch.equal(whole(done.model.embedding), resident[0].model.embedding)


def test_rates_that_it_declares_are_taken_and_said(tiers, machine, tmp_path, monkeypatch, capsys):
    class Declared(tiers.Striped):
        read_gb_per_s, write_gb_per_s = 0.5, 0.25

    done, summary = run.train(
        config(stream(tmp_path, added(tiers, monkeypatch, Declared))), tmp_path / "run", on_plan=show
    )
    done.places.close()
    said = capsys.readouterr().out
    assert "measuring" not in said
    assert "declared, from read and write" in said
    kept = json.loads((tmp_path / "run/plan.json").read_text())
    assert kept["transfers"] == {"readers": 2, "writers": 2, "phased": False}
    (embedding,) = (tensor for tensor in kept["tensors"] if tensor["name"] == "embedding")
    numbers = 1100 * 48 * 4
    assert embedding["seconds_per_step"] == pytest.approx(numbers / 0.5e9 + numbers / 0.25e9)
    assert summary["memory"]["mode"] == "stream"
    # What is said of slow transfers is nothing that calibration, or memory.folder, would change.
    found, late = done.places.plan, 10 * done.places.plan.step_seconds
    cause = account(found, Actual(1, late, transferring=late, waiting=late))["likely_cause"]
    assert "an own tier's rates are those that it declares" in cause
    assert "calibrate" not in cause
    (kept,) = read_runs([str(tmp_path / "run")])
    (bound,) = (name for name in kept.plan.resources if name.endswith(" (stream)") and "Declared" in name)
    kept = replace(kept, plan=replace(kept.plan, binding=bound))
    (said,) = [find.helps for find in findings(kept) if "By its plan" in find.text]
    assert said.startswith("A faster disk (memory.folder) or tier of one's own (memory.custom) (")


def test_a_plan_without_training(tiers, machine, tmp_path, monkeypatch, capsys):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    monkeypatch.setattr(discover, "discover", lambda folders: [dram(), disk(tmp_path)])
    monkeypatch.setattr(calibrate, "calibrated", list)
    options = f"memory.custom.options={{folders: [{tmp_path / 'a'}, {tmp_path / 'b'}]}}"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = compose("plan", overrides=["memory=stream", f"memory.custom.path={STRIPED}", options])
    plan(OmegaConf.to_container(values, resolve=True), tmp_path, "")
    said = capsys.readouterr().out
    assert re.search(rf"exp_avg .*{STRIPED} .*stream", said)
    assert re.search(rf"final .*{re.escape(str(tmp_path))[:20]}", said)
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".gnnrec-tier.lock"]


def test_auto_takes_memory_first_and_leaves_it(tiers, machine, tmp_path):
    memory, loop = replace(stream(tmp_path, panel=None), name="auto"), TrainerConfig(epochs=1, batch_size=100)
    _, summary = run.train(config(memory, trainer=loop), tmp_path / "run")
    assert summary["memory"]["mode"] == "dram"
    with CustomTier(memory.custom):
        pass  # nobody has it any more
    needed = sum(entry["bytes"] for entry in summary["memory"]["tensors"])
    less = replace(memory, limit=f"{int(0.9 * needed)}", buffer="64KiB")
    done, summary = run.train(config(less, trainer=loop), tmp_path / "less")
    done.places.close()
    assert summary["memory"]["mode"] == "stream"
    assert STRIPED in {entry["tier"] for entry in summary["memory"]["tensors"]}


def test_the_plan_counts_the_room_it_has(tiers, machine, tmp_path, monkeypatch):
    class Full(tiers.Striped):
        free = 64 * MIB

    path = added(tiers, monkeypatch, Full)
    large = config(stream(tmp_path, path), model=LightGCNConfig(dim=4096, layers=1))
    with pytest.raises(PlanError, match=rf"no placement fits: {path} needs 68.75 MiB and has 64.00 MiB"):
        run.train(large, tmp_path / "run")
    Full.free = 63 * MIB
    with pytest.raises(StorageError, match=rf"{path}: has 63.00 MiB free, 64.00 MiB are needed to try it"):
        run.train(large, tmp_path / "run")
    pinned = stream(tmp_path, pin={"graph": STRIPED})
    with pytest.raises(ConfigError, match=rf"streams into {STRIPED}, against memory.pin.graph={STRIPED}"):
        run.train(config(pinned), tmp_path / "run")
    monkeypatch.setattr(placing, "discover", lambda folders: [dram()])
    with pytest.raises(ConfigError, match=r"memory.custom: there is no folder for files that are mapped"):
        run.train(config(stream(tmp_path)), tmp_path / "run")


# What goes wrong


@pytest.mark.parametrize(
    ("way", "what", "words"),
    [
        (
            "write",
            OSError(errno.EIO, "made up", "/a/b"),
            r"failed: Input/output error \(EIO\), /a/b\. The device failed",
        ),
        ("read", TimeoutError("no answer"), r"failed: no answer\. It is the tier"),
        ("read", 4096, r": 4096 of \d+ bytes were moved\. Its read must move all of a buffer, and return how many"),
        ("write", None, r": None of \d+ bytes were moved\. Its write must"),
    ],
    ids=["errno", "words", "short", "none"],
)
def test_a_failing_tier_leaves_the_last_checkpoint(tiers, machine, resident, tmp_path, monkeypatch, way, what, words):
    breaking, step = SimpleNamespace(now=False), Trainer._step

    class Breaking(tiers.Striped):
        def create(self, name, size):
            store = super().create(name, size)
            real = getattr(store, way)

            def transfer(offset, buffer):
                if not breaking.now:
                    return real(offset, buffer)
                if isinstance(what, Exception):
                    raise what
                return what

            monkeypatch.setattr(store, way, transfer)
            return store

    def broken(trainer, number):
        breaking.now = number == 12
        return step(trainer, number)

    monkeypatch.setattr(Trainer, "_step", broken)
    memory = stream(tmp_path, added(tiers, monkeypatch, Breaking))
    with pytest.raises(StorageError, match=rf"^my_package.tiers:Breaking, \w+\.bin: {way} at byte \d+ ?{words}"):
        run.train(config(memory), tmp_path / "run")
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".gnnrec-tier.lock"]
    monkeypatch.setattr(Trainer, "_step", step)
    breaking.now = False
    done, _ = run.train(config(memory, resume=True), tmp_path / "run")
    with done:
        assert torch.equal(whole(done.model.embedding), resident[0].model.embedding)


def test_a_tier_without_room_for_all_stores(tiers, machine, tmp_path, monkeypatch):
    class Small(tiers.Striped):
        def create(self, name, size):
            if name == "exp_avg_sq.bin":
                raise OSError(errno.ENOSPC, "made up")
            return super().create(name, size)

    words = r"Small, exp_avg_sq.bin: create of 221184 bytes failed: No space left on device \(ENOSPC\)"
    with pytest.raises(StorageError, match=words):
        run.train(config(stream(tmp_path, added(tiers, monkeypatch, Small))), tmp_path / "run")
    assert [path.name for path in (tmp_path / "b").iterdir()] == [".gnnrec-tier.lock"]


class Memory:
    """A tier in this process's memory that does all that it must."""

    alignment, capacity, free = 512, None, None

    def __init__(self, *, run: str) -> None:
        self.run = run

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def create(self, name, size):
        content = np.zeros(size, np.uint8)

        def read(offset, buffer):
            buffer[:] = content[offset : offset + len(buffer)]
            return len(buffer)

        def write(offset, buffer):
            content[offset : offset + len(buffer)] = buffer
            return len(buffer)

        return SimpleNamespace(read=read, write=write, flush=lambda: None, close=lambda: None)


def test_a_tier_that_is_nothing_but_what_it_must_be(tiers, machine, resident, tmp_path, monkeypatch):
    memory = MemoryConfig("stream", panel=48, custom=CustomTierConfig(added(tiers, monkeypatch, Memory)))
    done, _ = run.train(config(memory), tmp_path / "run")
    with done:
        assert torch.equal(whole(done.model.embedding), resident[0].model.embedding)


def forgetful(self, name, size):
    """Stores whose second half is their first."""
    store = Memory.create(self, name, size)
    return changed(store, read=lambda offset, buffer: store.read(offset % (size // 2), buffer))


def changed(store, **methods):
    return SimpleNamespace(**vars(store) | methods)


def write_behind(self, name, size):
    """Stores that show what was written once they are flushed."""
    store, behind = Memory.create(self, name, size), []

    def write(offset, buffer):
        behind.append((offset, buffer.copy()))
        return len(buffer)

    def flush():
        while behind:
            store.write(*behind.pop(0))

    return changed(store, write=write, flush=flush)


def keeping(self, name, size):
    """Stores that take what is in a buffer when it is read."""
    store, behind = Memory.create(self, name, size), []

    def write(offset, buffer):
        behind.append((offset, buffer))
        return len(buffer)

    def read(offset, buffer):
        for one in behind:
            store.write(*one)
        return store.read(offset, buffer)

    return changed(store, write=write, read=read)


def seeking(self, name, size):
    """Stores with one position, as of a file that several threads share."""
    store, at = Memory.create(self, name, size), SimpleNamespace()

    def positioned(move):
        def moved(offset, buffer):
            at.now = offset
            time.sleep(0.002)
            return move(at.now, buffer)

        return moved

    return changed(store, read=positioned(store.read), write=positioned(store.write))


def aliased(self, name, size):
    """Stores of four blocks, whose second halves lie in one place."""
    store, half = Memory.create(self, name, size), size // 8

    def halves(move):
        return lambda offset, buffer: move(offset, buffer[:half]) + move(half, buffer[half:])

    return changed(store, read=halves(store.read), write=halves(store.write))


def raising(self, *error):
    raise OSError(errno.EACCES, "made up")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"alignment": 0}, ConfigError, r"memory.custom.path: PATH has 0 for alignment. Let it be bytes, 1 to"),
        ({"alignment": 8 * MIB}, ConfigError, r"PATH has 8388608 for alignment. Let it be bytes, 1 to 4194304"),
        ({"alignment": "4k"}, ConfigError, r"PATH has '4k' for alignment"),
        ({"capacity": -1}, ConfigError, r"PATH has -1 for capacity. Let it be bytes, or None"),
        ({"free": 1e9}, ConfigError, r"PATH has 1000000000.0 for free"),
        (
            {"read_gb_per_s": 1.0},
            ConfigError,
            r"PATH has None for write_gb_per_s. Let it be above 0, as the other rate",
        ),
        ({"read_gb_per_s": 1.0, "write_gb_per_s": "2"}, ConfigError, r"PATH has '2' for write_gb_per_s"),
        (
            {"read_gb_per_s": inf, "write_gb_per_s": 1.0},
            ConfigError,
            r"PATH has inf for read_gb_per_s. Let it be above 0",
        ),
        ({"read_gb_per_s": nan, "write_gb_per_s": 1.0}, ConfigError, r"PATH has nan for read_gb_per_s"),
        (
            {"create": lambda self, name, size: SimpleNamespace(read=None, write=None)},
            ConfigError,
            r"create of PATH makes a SimpleNamespace without flush, close. See gnnrec/memtier/custom.py",
        ),
        *(
            ({"create": create}, StorageError, r"PATH, calibration: .* bytes at byte \d+ come back wrong")
            for create in (forgetful, write_behind, keeping, seeking, aliased)
        ),
        (
            {"__enter__": lambda self: None},
            ConfigError,
            r"__enter__ of PATH makes a NoneType without create, alignment",
        ),
        ({"__enter__": raising}, StorageError, r"PATH: open failed: Permission denied \(EACCES\)"),
        ({"__exit__": raising}, StorageError, r"PATH: close failed: Permission denied \(EACCES\)"),
        ({"__init__": lambda self, *, run, size: None}, ConfigError, r"memory.custom.options: PATH cannot be called"),
    ],
)
def test_a_tier_that_is_none(tiers, tmp_path, monkeypatch, changes, error, words):
    path = added(tiers, monkeypatch, type("Wrong", (Memory,), changes))
    expected = words.replace("PATH", path)
    with pytest.raises(error, match=expected), CustomTier(CustomTierConfig(path)) as own:
        measure_custom.measured(own, lambda words: None)


@pytest.mark.parametrize("name", ["alignment", "capacity", "free", "create"])
def test_what_a_tier_lacks_is_named(tiers, monkeypatch, name):
    content = {key: value for key, value in vars(Memory).items() if key not in (name, "__dict__", "__weakref__")}
    path = added(tiers, monkeypatch, type("Lacking", (), content))
    with (
        pytest.raises(ConfigError, match=rf"{path} makes a Lacking without {name}"),
        CustomTier(CustomTierConfig(path)),
    ):
        pass


def test_an_error_on_the_way_out_hides_none(tiers, monkeypatch):
    path = added(tiers, monkeypatch, type("Closing", (Memory,), {"__exit__": raising}))
    with pytest.raises(ZeroDivisionError), CustomTier(CustomTierConfig(path)):
        _ = 1 / 0

    def failing(self, name, size):
        def write(offset, buffer):
            raise OSError(errno.EIO, "made up", "/a/b")

        return changed(Memory.create(self, name, size), write=write, close=lambda: raising(self))

    path = added(tiers, monkeypatch, type("Failing", (Memory,), {"create": failing}))
    words = rf"{path}, calibration: write at byte 0 failed: Input/output error \(EIO\), /a/b\. The device failed"
    with pytest.raises(StorageError, match=words), CustomTier(CustomTierConfig(path)) as own:
        measure_custom.measured(own, lambda words: None)


def test_a_store_that_lacks_a_method_is_closed(tiers, monkeypatch):
    closed = []

    def create(self, name, size):
        return SimpleNamespace(read=None, write=None, close=lambda: closed.append(name))

    path = added(tiers, monkeypatch, type("Lacking", (Memory,), {"create": create}))
    with (
        pytest.raises(ConfigError, match=rf"create of {path} makes a SimpleNamespace without flush"),
        CustomTier(CustomTierConfig(path)) as own,
    ):
        own.create("embedding.bin", 8192)
    assert closed == ["embedding.bin"]


def test_what_a_tier_says_of_itself_may_come_from_a_library(tiers, monkeypatch):
    """Of a function with a yield, in numbers of numpy."""

    @contextmanager
    def opened(*, run, path, where):
        made = Memory(run=run)
        made.alignment, made.free, made.read_gb_per_s, made.write_gb_per_s = np.int64([512, 1 << 40, 3, 2])
        yield made

    path = added(tiers, monkeypatch, opened)
    # These options are names of gnnrec's own arguments, too.
    with CustomTier(CustomTierConfig(path, {"path": "/a", "where": "b"}), run="me") as own:
        tier = measure_custom.measured(own, lambda words: None)
    assert json.dumps([tier.granularity, tier.free, tier.capacity]) == f"[512, {1 << 40}, null]"
    assert [(rate.pattern, rate.gb_per_s) for rate in tier.rates] == [("read", 3.0), ("write", 2.0)]
    config = CustomTierConfig(path, {"path": "/a", "where": "b", "run": "mine"})
    with pytest.raises(ConfigError, match=r"memory.custom.options.run: is 'mine'. Leave it out"), CustomTier(config):
        pass


@pytest.mark.parametrize(("seconds", "blocks"), [(0.0, 4), (60.0, 12)])
def test_a_slow_tier_is_tried_with_what_the_time_allows(tiers, monkeypatch, seconds, blocks):
    moves = []

    def create(self, name, size):
        store = Memory.create(self, name, size)

        def counted(move, way):
            return lambda *block: moves.append(way) or move(*block)

        return changed(store, read=counted(store.read, "r"), write=counted(store.write, "w"))

    path = added(tiers, monkeypatch, type("Counted", (Memory,), {"create": create}))
    monkeypatch.setattr(measure_custom, "_WANTED", 12 * 4 * MIB)
    with CustomTier(CustomTierConfig(path)) as own:
        monkeypatch.setattr(measure_custom, "SECONDS", 0.0)
        monkeypatch.setattr(measure_custom, "_RUN_SECONDS", 0.0)
        tried = measure_custom.measured(own, lambda words: None)
        assert tried.facts["calibration"].startswith("3 figures, blocks of 4.00 MiB in 16.00 MiB")
        assert len(moves) == 4 + 4 + 3 * 6 * 4  # written, read back; figures of a block a thread
        moves.clear()
        own._made.read_gb_per_s = own._made.write_gb_per_s = 1.0
        monkeypatch.setattr(measure_custom, "SECONDS", seconds)
        measure_custom.measured(own, lambda words: None)
        assert (moves.count("w"), moves.count("r")) == (blocks, blocks)


def test_the_examples_stripes(tiers, tmp_path):
    folders = [str(tmp_path / name) for name in "abc"]
    with tiers.Striped(folders, stripe=4096, run="test") as striped:
        store = striped.create("x", 10 * 4096)
        content = np.random.default_rng(0).integers(0, 256, 40960, np.uint8)
        written, found = (aligned(40960) for _ in range(2))
        written[:] = content
        assert store.write(0, written) == 40960
        assert store.read(8192, found[:16384]) == 16384
        assert np.array_equal(found[:16384], content[8192:24576])
        store.flush()
        assert [file.size for file in store.files] == 3 * [4 * 4096]
        space = os.statvfs(tmp_path)
        assert striped.free <= space.f_blocks * space.f_frsize  # folders on one disk are not three disks
        store.close()
        assert not (tmp_path / "a/x").exists()
        striped.create("x", 4096).write(0, written[:4096])  # its name is free again, as its room is
    assert [path.name for path in (tmp_path / "a").iterdir()] == [".gnnrec-tier.lock"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"folders": []}, r"folders: is \[\]. Give a list of folders, none of them twice"),
        ({"folders": "ab"}, r"folders: is 'ab'"),
        ({"folders": [1]}, r"folders: is \[1\]"),
        ({"folders": ["a", "b/../a"]}, r"folders: is \['a', 'b/../a'\]"),
        ({"folders": ["a"], "stripe": "1MiB"}, "stripe: is '1MiB'. Give a number of bytes"),
        ({"folders": ["a"], "stripe": 4096.0}, "stripe: is 4096.0"),
        ({"folders": ["a"], "stripe": 0}, "stripe: is 0"),
        ({"folders": ["a"], "stripe": 5000}, "stripe: is 5000. Give a multiple of 4096 bytes"),
    ],
)
def test_stripes_that_cannot_be(tiers, tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(ConfigError, match=f"memory.custom.options.{words}"),
        CustomTier(CustomTierConfig(STRIPED, given)),
    ):
        pass
    assert not list(tmp_path.glob("[!a]*"))


# What may be run


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (MemoryConfig(custom=CustomTierConfig(STRIPED)), "memory.custom: has no effect with memory=dram"),
        (MemoryConfig("direct", custom=CustomTierConfig(STRIPED)), "memory.custom: has no effect with memory=direct"),
        (
            MemoryConfig("stream", custom=CustomTierConfig(options={"folders": []})),
            "memory.custom.options: has no effect without memory.custom.path",
        ),
        (
            MemoryConfig("stream", custom=CustomTierConfig(STRIPED, ["a"])),
            "memory.custom.options: is ['a']. Give options by their names",
        ),
        (
            MemoryConfig("stream", custom=CustomTierConfig(STRIPED), simulate=SimulateConfig(1.0, 1.0)),
            "memory.simulate: has no effect on memory.custom",
        ),
        (
            MemoryConfig("stream", custom=CustomTierConfig("other.tiers:Tier")),
            "memory.custom.path: is 'other.tiers:Tier', which would run code of other; allowed are my_package",
        ),
    ],
)
def test_options_that_cannot_be(tiers, memory, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        memory.validate()


FAULTY = """
from my_package.tiers import Striped


class Dying(Striped):
    def create(self, name, size):
        store, writes = super().create(name, size), iter(range(60))
        real = store.write

        def write(offset, buffer):
            if name == "exp_avg.bin" and next(writes, None) is None:
                raise OSError(5, "made up")
            return real(offset, buffer)

        store.write = write
        return store
"""


def test_the_command_line_allows_and_refuses(tmp_path):
    """A tier that dies: one message, exit code 2, the checkpoint stays. Its run's config allows itself nothing."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    paths = f"{tmp_path}:{EXAMPLES}:{os.environ.get('PYTHONPATH', '')}"
    data = "data.synthetic={num_users: 60, num_items: 40, num_interactions: 900, communities: 2}"
    options = f"memory.custom.options={{folders: [{tmp_path / 'a'}, {tmp_path / 'b'}]}}"
    rest = ["model.dim=32", "trainer.epochs=60", "trainer.batch_size=500", "trainer.checkpoint_every=1"]

    def gnnrec(*args, allowed):
        environment = {key: value for key, value in os.environ.items() if key != extensions.VARIABLE}
        environment |= {"PYTHONPATH": paths} | ({extensions.VARIABLE: allowed} if allowed else {})
        command = [sys.executable, "-m", "gnnrec", *args]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    train = ["train", data, "memory=stream", "memory.custom.path=faulty:Dying", options, *rest, "hydra.run.dir=run"]
    refused = gnnrec(*train, allowed="my_package")
    assert refused.returncode == 2
    assert "which would run code of faulty; allowed are my_package" in refused.stderr
    assert not (tmp_path / "run").exists()
    died = gnnrec(*train, allowed="faulty")
    assert died.returncode == 2, died.stderr
    assert re.search(r"^gnnrec: faulty:Dying, exp_avg\.bin: write at byte \d+ failed: .*EIO", died.stderr, re.M)
    assert "Traceback" not in died.stderr
    assert re.search(r"faulty:Dying .*measured", died.stdout)
    assert checkpoint.latest(tmp_path / "run/checkpoints") is not None
    evaluated = gnnrec("evaluate", "run=run", allowed="")
    assert evaluated.returncode == 2
    assert "memory.custom.path: is 'faulty:Dying', which would run code of faulty" in evaluated.stderr
    assert gnnrec("evaluate", "run=run", allowed="faulty").returncode == 0
