"""Calibration: what is measured is what is said, within the time, and what is kept is used only while it is valid.

Notes: agreement with other programs, on a virtual machine with 2 cores of a Zen 4 server (32 MiB of L3, shared with
other guests) and a virtio disk with ext4. Its cores were half busy, so the two sides of each pair took turns, in one
process but for fio; medians, GB/s, calibration first.

- Memory, 3 arrays of 256 MiB on huge pages, 1 and 2 threads, against C with AVX-512 loads and streaming stores (`gcc
  -O3 -ffast-math -march=native -fopenmp`): read 23.9 / 26.5 and 40.4 / 42.7 (sum of an array), write 21.8 / 25.1 and
  39.7 / 43.0, mixed 34.8 / 39.2 and 55.5 / 62.0 (copy), STREAM's triad 23.9 / 21.4 and 40.6 / 35.5, all within 15 %.
  A triad with ordinary stores, which read each line before they write it, shows 19.4 with 2 threads.
- File, against pread and pwrite of C threads on the same file and buffers: blocks of 8 MiB, 1 and 4 threads, read
  2.02 / 1.98 and 2.66 / 2.70, write through fdatasync 5.17 / 5.41 and 5.90 / 5.85; at random 128 KiB with 4 threads
  1.55 / 1.69, 4 KiB with 1 and 4 threads .067 / .061 and .161 / .148: within 10 %.
- File, against fio 3.33, with small pages on both sides since fio has no others without hugetlbfs (`fio --direct=1
  --ioengine=psync --iomem=malloc --thread --bs=8m --numjobs=N --rw=read|write --fallocate=posix --scramble_buffers=0
  --end_fsync=1 --size=2g/N --offset_increment=2g/N`): read .89 / .91 and .84 / .90, write 2.06 / 2.06 and 1.97 / 2.20
  with 1 and 4 threads, 128 KiB at random .83 / .95 with 4: within 13 %. Not so 4 KiB at random, .042 / .055 and
  .088 / .155 with 1 and 4 threads: to be repeated on an idle machine.
- Buffers on huge pages, as calibration and streaming have them, double what this disk gives: read 1.0 -> 2.4, write
  1.8 -> 4.2 with 1 thread. It writes faster than it reads: a cache of the host, which a guest cannot empty.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.cli.calibrate import calibrate as app
from gnnrec.config import HardwareConfig, fill, from_yaml
from gnnrec.config.recipes import CONF
from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.memtier import calibrate, conditions, kernels, measure_file, measure_gpu, measure_memory
from gnnrec.memtier.declared import declared, what_if
from gnnrec.memtier.files import TierFolder, aligned
from gnnrec.memtier.stopwatch import FOLDER, RUNS, Figure, Stopwatch
from gnnrec.memtier.tiers import PATTERNS, Rate, Tier

PRESETS = sorted(file.stem for file in (CONF / "hardware").glob("*.yaml"))
DRAM = Tier("dram", "dram", 1 << 34, 1 << 33, 64)
ROWS = measure_memory.ROWS


def preset(name: str) -> HardwareConfig:
    return fill(HardwareConfig, from_yaml(CONF / "hardware" / f"{name}.yaml"), "hardware")


def disk(folder: Path, **changes: Any) -> Tier:
    tier = Tier(str(folder), "file", 1 << 40, 1 << 39, 4096, persistent=True, where=str(folder), direct=False)
    return replace(tier, **changes)


def watch(seconds: float = 60) -> Stopwatch:
    return Stopwatch(time.perf_counter() + seconds, lambda words: None)


def figures(rates: Any) -> set[tuple[str, int, int, int]]:
    return {(rate.pattern, rate.row_bytes, rate.working_set, rate.threads) for rate in rates}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is moved: the figures mean nothing, the way to them is the same."""
    monkeypatch.setattr(conditions, "last_level_cache", lambda root=None: (1 << 20, "made up"))
    monkeypatch.setattr(measure_memory, "_MOVED", 1 << 20)
    monkeypatch.setattr(measure_memory, "_STEPS", 1000)
    monkeypatch.setattr(measure_file, "_LEAST", 16 << 20)
    monkeypatch.setattr(measure_file, "_WANTED", 16 << 20)
    monkeypatch.setattr(measure_file, "_WRITE_BACK", 1)
    monkeypatch.setattr(measure_file, "_RUN_SECONDS", 0.002)
    monkeypatch.setattr(measure_file, "_GATHERED", 1 << 20)


@pytest.fixture
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Presets


@pytest.mark.parametrize("name", PRESETS)
def test_every_rate_of_a_preset_has_a_source(name: str) -> None:
    hardware = preset(name)
    assert hardware.name == name
    tiers = declared(hardware)
    assert bool(tiers) == (name != "here")
    for tier in tiers:
        assert tier.provenance == "declared"
        assert tier.rates
        for rate in tier.rates:
            assert rate.gb_per_s > 0
            assert len(rate.source) > 20, rate
            assert (rate.row_bytes > 0) == (rate.pattern in ("gather", "scatter"))


def published(name: str, tier: str) -> dict[tuple[str, int, int], float]:
    tiers = {found.name: found for found in declared(preset(name))}
    return {(rate.pattern, rate.row_bytes, rate.threads): rate.gb_per_s for rate in tiers[tier].rates}


def test_presets_hold_the_published_figures() -> None:
    optane = published("optane_app_direct", "pmem0")
    assert [round(optane["gather", row, 16], 1) for row in (64, 128, 256)] == [9.7, 18.8, 33.6]
    writes = {key: rate for key, rate in optane.items() if key[0] == "write"}
    assert max(writes, key=lambda key: writes[key]) == ("write", 0, 4)  # and falls beyond
    assert writes["write", 0, 4] == 12.5
    one = published("optane_one_dimm", "pmem0")
    assert one["gather", 64, 4] / one["gather", 256, 4] == pytest.approx(1 / 4, rel=0.05)  # a line is 256 bytes
    tiers = {tier.name: tier for tier in declared(preset("cxl_card"))}
    assert (tiers["node1"].latency_ns, tiers["dram"].latency_ns) == (244, 96)
    assert published("cxl_card", "node1") == {("read", 0, 1): 48, ("write", 0, 1): 47}
    assert [published(name, "gpu0")["read", 0, 1] for name in ("a100", "h100", "h200")] == [2039, 3350, 4800]


def test_memory_mode_is_dram_within_its_cache_and_optane_beyond() -> None:
    (tier,) = declared(preset("optane_memory_mode"))
    far, near = (
        {
            rate.row_bytes: rate.gb_per_s
            for rate in tier.rates
            if rate.pattern == "gather" and bool(rate.working_set) == is_near
        }
        for is_near in (False, True)
    )
    assert not tier.persistent
    assert far[64] == published("optane_app_direct", "pmem0")["gather", 64, 16]
    assert near[64] == published("optane_app_direct", "dram")["gather", 64, 24]


def test_a_preset_is_a_machine_or_a_part() -> None:
    found = [DRAM, disk(Path("/data"))]
    assert what_if(found, preset("here")) == found
    assert [tier.name for tier in what_if(found, preset("nvme_gen4"))] == ["dram", "nvme0"]
    assert [tier.provenance for tier in what_if(found, preset("cxl_card"))] == ["declared", "declared"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("kind", "flash", r"tiers\[0\].kind: is 'flash'"),
        ("capacity", "much", r"tiers\[0\].capacity: is 'much'"),
        ("latency_ns", -1.0, r"tiers\[0\].latency_ns: is -1"),
        ("granularity", 0, r"tiers\[0\].granularity: is 0"),
        ("rates", [{"pattern": "red", "gb_per_s": 1.0, "source": "a"}], r"rates\[0\].pattern: is 'red'.*read"),
        ("rates", [{"pattern": "read", "gb_per_s": 0.0, "source": "a"}], r"rates\[0\].gb_per_s: is 0"),
        ("rates", [{"pattern": "read", "gb_per_s": 1.0, "source": "b"}], r"rates\[0\].source: is 'b'"),
        ("rates", [{"pattern": "read", "gb_per_s": 1.0, "source": "a", "working_set": "x"}], "working_set: is 'x'"),
    ],
)
def test_what_is_wrong_in_a_preset_is_named(key: str, value: Any, words: str) -> None:
    tier = {"name": "t", "kind": "file", "capacity": "1GiB", "granularity": 4096, "rates": []} | {key: value}
    with pytest.raises(ConfigError, match=words):
        declared(fill(HardwareConfig, {"name": "mine", "tiers": [tier], "sources": {"a": "a page"}}, "hardware"))


# Kernels


def test_kernels_do_what_they_are_timed_for() -> None:
    memory = aligned(3 << 20).view(np.float32)
    kernels.fill(memory.view(np.uint32), np.uint32(1))
    assert 1 <= memory.min() < memory.max() < 2
    assert len(np.unique(memory)) > 0.9 * len(memory)
    a, b, c = memory.reshape(3, -1, kernels.WIDE)
    sums = np.empty((kernels.SHARES, kernels.WIDE), np.float32)
    kernels.reader()(a, sums)
    np.testing.assert_allclose(sums.sum(0), a.sum(0), rtol=1e-5)
    kernels.copier()(a, b)
    np.testing.assert_array_equal(a, b)
    kernels.triad()(*(array.reshape(-1, kernels.LINE) for array in (a, b, c)))
    np.testing.assert_allclose(c, 4 * a, rtol=1e-6)
    kernels.writer()(c)
    np.testing.assert_array_equal(c, np.repeat(np.arange(len(c), dtype=np.float32), kernels.WIDE).reshape(c.shape))


@pytest.mark.parametrize("row_bytes", ROWS)
def test_rows_at_random_are_read_and_written(row_bytes: int) -> None:
    width = row_bytes // 4
    rows = aligned(1 << 20).view(np.float32).reshape(-1, width)
    kernels.fill(rows.reshape(-1).view(np.uint32), np.uint32(2))
    indices = np.random.default_rng(0).integers(0, len(rows), 1001, dtype=np.int32)
    sums = np.empty((kernels.SHARES, width), np.float32)
    kernels.gatherer(width)(rows, indices, sums)
    np.testing.assert_allclose(sums.sum(0), rows[indices].sum(0), rtol=1e-5)
    places = np.random.default_rng(0).permutation(len(rows))[:500].astype(np.int32)
    expected = rows.copy()
    expected[places] = np.arange(500, dtype=np.float32)[:, None]
    kernels.scatterer(width)(rows, places)
    np.testing.assert_array_equal(rows, expected)


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
@settings(max_examples=30)
def test_the_pointer_chase_visits_every_line_once(lines: int, seed: int) -> None:
    words = np.zeros(8 * lines, np.int64)
    kernels.make_cycle(words, np.uint64(seed))
    visited = [kernels.chase(words, 0, steps) for steps in range(lines)]
    assert sorted(visited) == [8 * line for line in range(lines)]
    assert kernels.chase(words, 0, lines) == 0


# Conditions


def cpu_tree(root: Path, caches: dict[tuple[int, str], tuple[str, str, str]]) -> Path:
    """`caches`: (core, index) -> level, size, cores that share it."""
    for (core, index), (level, size, shared) in caches.items():
        folder = root / f"sys/devices/system/cpu/cpu{core}/cache/{index}"
        folder.mkdir(parents=True)
        contents = {"level": level, "size": size, "shared_cpu_list": shared, "type": "Unified"}
        for name, content in contents.items():
            (folder / name).write_text(content + "\n")
    return root


def test_last_level_caches_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    caches = {(core, "index2"): ("2", "1024K", str(core)) for core in range(4)}
    caches |= {(core, "index3"): ("3", "32768K", "0-1" if core < 2 else "2-3") for core in range(4)}
    assert conditions.last_level_cache(cpu_tree(tmp_path, caches)) == (64 << 20, "sysfs")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    assert conditions.last_level_cache(tmp_path) == (32 << 20, "sysfs")


def test_an_unknown_cache_is_assumed_and_said_so(tmp_path: Path) -> None:
    size, known = conditions.last_level_cache(tmp_path)
    assert size == 32 << 20
    assert "assumed" in known


def test_changes_are_said_in_words() -> None:
    now = conditions.machine()
    assert conditions.differences(now, now) == []
    assert conditions.differences(now | {"cores": 999}, now) == [f"calibrated with cores 999, now {now['cores']}"]


def mountinfo(root: Path, *lines: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text("\n".join(lines) + "\n")
    return root


def test_folders_of_one_file_system_share_their_conditions(tmp_path: Path) -> None:
    root = mountinfo(
        tmp_path,
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
        "2 1 259:0 / /mnt/fast rw,noatime - xfs /dev/nvme0n1 rw",
    )
    a, b, other = (conditions.of_tier(disk(Path(folder)), root) for folder in ("/mnt/fast/a", "/mnt/fast/b", "/home"))
    assert a == b
    assert a["device"] == "259:0 /dev/nvme0n1"
    assert (a["file_system"], a["mount_options"]) == ("xfs", "noatime,rw")
    assert other["device"] == "8:1 /dev/sda1"


# The stopwatch


class Clock:
    """A clock that runs moves on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("gnnrec.memtier.stopwatch.time.perf_counter", clock)
    return clock


def test_the_median_counts_and_the_first_run_does_not(clock: Clock) -> None:
    times = iter([99.0, 1.0, 2.0, 4.0, 8.0, 2.0])

    def run() -> int:
        clock.now += next(times)
        return 8 * 10**9

    def before() -> None:
        clock.now += 1000  # is not timed

    (rate,), missing = Stopwatch(1e9, lambda words: None).rates([Figure("read", run, threads=2, before=before)])
    assert (rate.pattern, rate.threads, rate.count, missing) == ("read", 2, RUNS, "")
    assert rate.gb_per_s == 4.0
    assert rate.spread == (8 - 1) / 4


def test_when_the_time_is_up_the_rest_is_named(clock: Clock) -> None:
    def run() -> int:
        clock.now += 1
        return 10**9

    told: list[str] = []
    wanted = [Figure("read", run), Figure("gather", run, 2, 64, 1 << 21), Figure("gather", run, 2, 64, 1 << 21)]
    rates, missing = Stopwatch(7.0, told.append).rates(wanted)
    assert len(rates) == 2
    assert told == ["read, 1 thread", "gather of 64-byte rows in 2.00 MiB, 2 threads"]
    assert "the time was up before gather of 64-byte rows in 2.00 MiB, 2 threads" in missing


# Memory


@pytest.mark.usefixtures("small")
def test_dram_is_measured_in_all_its_patterns() -> None:
    rates, latency, notes = measure_memory.measure(DRAM, watch())
    threads = measure_memory.thread_counts()
    assert threads[-1] == 1
    expected = {(pattern, 0, 0, t) for pattern in ("read", "write", "mixed") for t in threads}
    expected |= {("scatter", row, 0, t) for row in ROWS for t in threads}
    sets = (0, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
    expected |= {("gather", row, within, t) for row in ROWS for within in sets for t in threads}
    assert figures(rates) == expected
    assert len(rates) == len(expected)
    assert all(rate.gb_per_s > 0.01 and rate.count >= 5 and rate.spread >= 0 for rate in rates)
    assert latency is not None
    assert 0.5 < latency < 1e5
    said = "; ".join(notes)
    for words in ("buffer 32.00 MiB", "huge pages", "last-level cache 1.00 MiB (made up)", "STREAM triad"):
        assert words in said


@pytest.mark.usefixtures("small")
def test_a_rate_of_each_pattern_is_measured_whatever_the_time() -> None:
    rates, _, notes = measure_memory.measure(DRAM, Stopwatch(0.0, lambda words: None))
    assert [rate.pattern for rate in rates] == ["read", "write", "mixed", "gather", "scatter"]
    assert "the time was up before" in "; ".join(notes)


@pytest.mark.usefixtures("small")
def test_the_buffer_takes_a_quarter_of_the_memory_at_most() -> None:
    assert measure_memory.buffer_size(DRAM, 1 << 20) == 32 << 20
    assert measure_memory.buffer_size(replace(DRAM, free=40 << 20), 1 << 20) == 10 << 20
    with pytest.raises(GnnrecError, match=r"dram: has 8\.00 MiB free, and a buffer of 4\.00 MiB"):
        measure_memory.buffer_size(replace(DRAM, free=8 << 20), 1 << 20)


@pytest.mark.usefixtures("small")
def test_a_folder_that_is_no_persistent_memory_is_left_as_it_was(tmp_path: Path) -> None:
    tier = disk(tmp_path, kind="pmem", direct=True)
    with pytest.raises(GnnrecError, match="MAP_SYNC is refused"):
        measure_memory.measure(tier, watch())
    assert list(tmp_path.iterdir()) == []


# Files


@pytest.mark.usefixtures("small")
def test_a_file_is_measured_and_removed(tmp_path: Path) -> None:
    rates, latency, notes = measure_file.measure(disk(tmp_path), watch())
    threads = measure_file.THREADS
    expected = {(pattern, 0, 0, t) for pattern in ("read", "write", "mixed") for t in threads}
    expected |= {(way, block, 0, t) for way in ("gather", "scatter") for block in measure_file.BLOCKS for t in threads}
    assert figures(rates) == expected | {("toll", 0, 0, 4)}
    page = next(rate for rate in rates if (rate.pattern, rate.row_bytes, rate.threads) == ("gather", 4096, 1))
    assert latency == pytest.approx(4096 / page.gb_per_s)
    assert "file of 16.00 MiB" in notes[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_what_is_moved_is_written_data_through_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    for name in ("preadv", "pwritev"):
        real = getattr(os, name)

        def spy(descriptor: int, buffers: Any, offset: int, real: Any = real, name: str = name) -> Any:
            calls.append((name, offset))
            return real(descriptor, buffers, offset)

        monkeypatch.setattr(os, name, spy)
    real_sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (calls.append(("sync", 0)), real_sync(descriptor))[1])
    with TierFolder(tmp_path / "tier") as folder:
        file = folder.create("blocks", 16 << 20)
        blocks = measure_file.Blocks(file, measure_file._fill(file, time.perf_counter() + 60))
        assert calls == [("pwritev", 0), ("pwritev", 8 << 20), ("sync", 0)]
        content = np.frombuffer(file.path.read_bytes(), np.uint8).reshape(-1, 4096)
        assert len(np.unique(content, axis=0)) == len(content)  # no page is like another
        assert content.std() > 70  # random
        calls.clear()
        assert blocks.run("rw", 1 << 20, 6, 1, shuffled=False) == 6 << 20
        assert [name for name, _ in calls] == ["preadv", "pwritev"] * 3 + ["sync"]
        calls.clear()
        blocks.run("r", 1 << 20, 12, 1, shuffled=False)  # goes on where the last stopped, then from the start
        assert [offset >> 20 for _, offset in calls] == [*range(6, 16), 0, 1]
        calls.clear()
        blocks.run("r", 1 << 20, 40, 4, shuffled=True)
        assert len({offset for _, offset in calls}) > 8


@pytest.mark.usefixtures("small")
def test_a_file_that_caches_hold_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_file, "_PATIENCE", -60)  # of the time that there is
    with pytest.raises(GnnrecError, match=r"0 bytes were written in the time there was, 16\.00 MiB are needed"):
        measure_file.measure(disk(tmp_path), watch())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_on_a_busy_machine_it_goes_on_with_what_no_plan_can_do_without(tmp_path: Path) -> None:
    rates, _, notes = measure_file.measure(disk(tmp_path), watch(-5))  # the tiers before have taken all the time
    assert [(rate.pattern, rate.threads) for rate in rates[:3]] == [(way, 8) for way in ("read", "write", "mixed")]
    assert [rate.pattern for rate in rates[3:]] == ["toll"]
    assert notes[-1].startswith("the time was up before read, 4 threads")


@pytest.mark.usefixtures("small")
def test_an_interruption_beside_transfers_ends_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = kernels.gatherer, []

    def gatherer(width: int) -> Any:
        def gather(*arrays: Any) -> None:
            calls.append(width)
            if len(calls) > 2:  # one compiles, one is alone
                raise KeyboardInterrupt
            real(width)(*arrays)

        return gather

    monkeypatch.setattr(kernels, "gatherer", gatherer)
    monkeypatch.setattr(measure_file, "_RUN_SECONDS", 1e-9)
    with pytest.raises(KeyboardInterrupt):
        measure_file.measure(disk(tmp_path), watch())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_an_interruption_leaves_no_file(tmp_path: Path) -> None:
    def interrupted(words: str) -> None:
        assert (tmp_path / FOLDER / "blocks").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_file.measure(disk(tmp_path), Stopwatch(time.perf_counter() + 60, interrupted))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_a_second_calibration_of_a_folder_leaves_the_first_alone(tmp_path: Path) -> None:
    with TierFolder(tmp_path / FOLDER) as folder:
        file = folder.create("blocks", 1 << 20)
        with pytest.raises(GnnrecError, match="another run keeps its tensors in this folder"):
            measure_file.measure(disk(tmp_path), watch())
        assert file.path.exists()


@pytest.mark.usefixtures("small")
def test_reads_from_the_page_cache_are_no_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("there is no tmpfs to write to, whose pages never leave DRAM")
    folder = memory / f"gnnrec-test-{os.getpid()}"
    folder.mkdir()
    try:
        with pytest.raises(GnnrecError, match="cached: 100% of the file stay in the page cache"):
            measure_file.measure(disk(folder), watch())
        assert list(folder.iterdir()) == []
    finally:
        folder.rmdir()


def test_the_page_cache_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    with path.open("r+b") as file:
        assert measure_file.cached_share(file.fileno(), 1 << 20) == 1.0


def test_a_disk_is_never_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Space:
        f_bavail, f_frsize = 3 << 20, 1024

    monkeypatch.setattr(os, "statvfs", lambda path: Space)
    (tier,) = calibrate.measure([disk(tmp_path)])
    assert tier.rates == ()
    assert "unavailable" in tier.facts["calibration"]
    assert "has 3.00 GiB free, and a file of 1.00 GiB must take no more than a quarter" in tier.facts["calibration"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    (tier,) = calibrate.measure([disk(tmp_path / "gone")])
    assert "No such file or directory (ENOENT)" in tier.facts["calibration"]


# GPUs


def test_figures_of_a_gpu_on_a_cpu() -> None:
    rates, missing = watch().rates(measure_gpu.figures(torch.device("cpu"), 1 << 20))
    assert missing == ""
    expected = {(pattern, 0, 0, 1) for pattern in ("to_gpu", "from_gpu", "read", "write", "mixed")}
    expected |= {(pattern, row, 0, 1) for pattern in ("gather", "scatter") for row in ROWS}
    assert figures(rates) == expected


def test_without_a_gpu_its_tier_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tier,) = calibrate.measure([Tier("gpu0", "gpu", 1 << 36, 1 << 36, 32)])
    assert tier.rates == ()
    assert "unavailable: device=cuda: torch sees no GPU" in tier.facts["calibration"]


# All together


@pytest.mark.usefixtures("small")
def test_tiers_share_the_time(tmp_path: Path) -> None:
    gone = Tier("node1", "numa", None, None, 64, unavailable="cpuset.mems forbids it")
    start = time.perf_counter()
    measured = calibrate.measure([DRAM, gone, disk(tmp_path)], seconds=1.0)
    assert time.perf_counter() - start < 20  # the figure that has begun is finished; so is what is compiled
    assert [tier.name for tier in measured] == ["dram", "node1", str(tmp_path)]
    assert measured[1].facts["calibration"] == "unavailable: cpuset.mems forbids it"
    for tier in (measured[0], measured[2]):
        assert tier.provenance == "measured"
        assert "load" in tier.facts["calibration"]


RATES = st.builds(
    Rate,
    pattern=st.sampled_from(PATTERNS),
    gb_per_s=st.floats(1e-6, 1e6),
    row_bytes=st.integers(0, 1 << 30),
    threads=st.integers(1, 512),
    working_set=st.integers(0, 1 << 50),
    spread=st.floats(0, 10),
    count=st.integers(5, 100),
)


def measured_dram(*rates: Rate, latency_ns: float | None = 100.0) -> Tier:
    return replace(DRAM, provenance="measured", rates=rates, latency_ns=latency_ns, facts={"calibration": "today"})


@given(rates=st.lists(RATES, max_size=5), latency=st.none() | st.floats(1, 1e9))
@settings(max_examples=20)
def test_what_is_kept_is_found(rates: list[Rate], latency: float | None, tmp_path_factory: Any) -> None:
    file = tmp_path_factory.mktemp("kept") / "a" / "calibration.json"
    tier = measured_dram(*rates, latency_ns=latency)
    assert calibrate.keep([tier], file) == file
    assert calibrate.calibrated([DRAM], file) == [tier]


READ = Rate("read", 10.0, spread=0.1, count=5)


@pytest.mark.usefixtures("cache_folder")
def test_every_number_in_the_file_has_its_unit(cache_folder: Path, tmp_path: Path) -> None:
    calibrate.keep([measured_dram(READ)])
    text = (cache_folder / "gnnrec/calibration.json").read_text()

    def numbers(value: Any, key: str = "") -> Iterator[str]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from numbers(inner, name)
        elif isinstance(value, list):
            for inner in value:
                yield from numbers(inner, key)
        elif isinstance(value, int | float):
            yield key

    units = ("_bytes", "_ns", "_count", "_ratio", "gb_per_s", "cores", "version")
    assert all(name.endswith(units) for name in numbers(json.loads(text)))


@pytest.mark.usefixtures("cache_folder")
def test_a_change_of_the_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calibrate.calibrated([DRAM])[0].facts["calibration"] == "none yet: run gnnrec calibrate"
    calibrate.keep([measured_dram(READ)])
    here = conditions.machine()
    monkeypatch.setattr(conditions, "machine", lambda: here | {"cores": 1000, "kernel": "0.1"})
    (tier,) = calibrate.calibrated([DRAM])
    assert tier.rates == ()
    assert tier.provenance == "prior"
    said = tier.facts["calibration"]
    assert f"calibrated with cores {here['cores']}, now 1000" in said
    assert f"calibrated with kernel {here['kernel']}, now 0.1" in said
    calibrate.keep([measured_dram(replace(READ, gb_per_s=20.0))])
    assert calibrate.calibrated([DRAM])[0].rates[0].gb_per_s == 20
    monkeypatch.setattr(conditions, "machine", lambda: here)  # both are kept
    assert calibrate.calibrated([DRAM])[0].rates[0].gb_per_s == 10


@pytest.mark.usefixtures("cache_folder")
def test_a_change_of_the_mount_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tier = replace(disk(tmp_path), provenance="measured", rates=(READ,), facts={"calibration": "today"})
    calibrate.keep([measured_dram(READ), tier])
    elsewhere = disk(tmp_path / "run" / "tier")  # on the same file system
    assert calibrate.calibrated([elsewhere])[0].rates == (READ,)
    real = conditions.of_tier
    monkeypatch.setattr(conditions, "of_tier", lambda tier: real(tier) | {"mount_options": "ro"})
    (found,) = calibrate.calibrated([elsewhere])
    assert found.rates == ()
    assert "calibrated with mount options" in found.facts["calibration"]
    assert f"gnnrec calibrate folders=[{elsewhere.where}]" in found.facts["calibration"]


@pytest.mark.usefixtures("cache_folder")
def test_a_second_calibration_replaces_its_own_tiers_alone(tmp_path: Path) -> None:
    tier = replace(disk(tmp_path), provenance="measured", rates=(READ,), facts={"calibration": "today"})
    calibrate.keep([measured_dram(READ), tier])
    calibrate.keep([measured_dram(replace(READ, gb_per_s=11.0)), DRAM])  # the last was not measured
    dram, file = calibrate.calibrated([DRAM, disk(tmp_path)])
    assert (dram.rates[0].gb_per_s, file.rates[0].gb_per_s) == (11, 10)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "gnnrec-calibration", "version": 99, "calibrations": []}']
)
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"calibration\.json: is (damaged|of another version).*Remove it"):
        calibrate.calibrated([DRAM], file)


@pytest.mark.usefixtures("small", "cache_folder")
def test_the_command_prints_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.setattr(conditions, "load_per_core", lambda: 0.75)
    app({"folders": [str(folder)], "seconds": 2.0, "out": str(tmp_path / "mine.json")}, tmp_path, "")
    out, err = capsys.readouterr()
    assert "warning: load 0.75 a core" in err
    assert f"kept in {tmp_path / 'mine.json'}" in out
    for words in (
        "(dram), measured, latency",
        "pattern",
        "row",
        "within",
        "threads",
        "GB/s",
        "spread",
        "count",
        "in order",
    ):
        assert words in out
    machine = json.loads((tmp_path / "mine.json").read_text())["calibrations"][0]
    assert str(folder) in [tier["name"] for tier in machine["tiers"]]
    with pytest.raises(ConfigError, match="seconds: is 0"):
        app({"folders": [], "seconds": 0.0, "out": None}, tmp_path, "")


def test_a_checkout_that_is_not_installed_has_conditions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "gnnrec":
            raise importlib.metadata.PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(conditions, "version", version)
    assert conditions.machine()["gnnrec_version"] == "not installed"
