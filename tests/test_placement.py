"""Tensors placed on a tier: whatever kind it is, operators give the same bits there as in ordinary memory."""

from __future__ import annotations

import errno
import gc
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from walk import assert_bit_equal, evaluate, sample

from gnnrec import ops
from gnnrec.errors import GnnrecError, StorageError
from gnnrec.memtier import placement
from gnnrec.memtier.files import MARKER, TierMemoryError, aligned
from gnnrec.memtier.placement import Arena, Ranges
from gnnrec.memtier.tiers import Tier

KINDS = ["dram", "node", "file", "devdax"]
MIB = 1 << 20
STEP = [op for op in ops.OPS if op.name in ("spmm", "lightgcn_propagate", "bpr_loss", "adam_step")]  # of LightGCN


def tier_of(kind: str, where: str | Path = "") -> Tier:
    return Tier("tier", kind, None, None, 64, where=str(where))


@pytest.fixture
def devdax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tier:
    """A file in the place of a device of 64 MiB, with old contents, and its facts in a made-up sysfs."""
    facts = tmp_path / "sys/dax7.0"
    facts.mkdir(parents=True)
    (facts / "size").write_text(str(64 * MIB))
    (facts / "align").write_text(str(2 * MIB))
    (tmp_path / "dax7.0").write_bytes(bytes([255]) * 64 * MIB)
    monkeypatch.setattr(placement, "_DAX", facts.parent)
    return tier_of("devdax", tmp_path / "dax7.0")


@pytest.fixture(params=KINDS)
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Tier:
    if request.param == "devdax":
        return request.getfixturevalue("devdax")
    if request.param == "file":
        return tier_of("file", tmp_path / "tier")
    return tier_of("dram", "node0") if request.param == "node" else tier_of("dram")


@pytest.fixture
def arena(tier: Tier) -> Iterator[Arena]:
    with Arena(tier) as opened:
        try:
            opened.allocate("probe", (1,), torch.uint8)
        except TierMemoryError as error:
            if "EPERM" in str(error) or "ENOSYS" in str(error):
                pytest.skip(str(error))
            raise
        yield opened


def test_tensors_are_zeros_of_any_dtype_and_shape(arena: Arena) -> None:
    for k, (shape, dtype) in enumerate(
        [((1000, 64), torch.float32), ((3, 5, 7), torch.bfloat16), ((), torch.float64), ((0, 4), torch.int32)]
    ):
        placed = arena.allocate(f"tensor{k}", shape, dtype)
        assert (placed.tensor.shape, placed.tensor.dtype) == (shape, dtype)
        assert placed.tensor.is_contiguous()
        assert placed.tensor.data_ptr() % 4096 == 0
        assert torch.equal(placed.tensor, torch.zeros(shape, dtype=dtype))
        assert placed.tier is arena.tier


@pytest.mark.parametrize("op", STEP, ids=lambda op: op.name)
def test_operators_give_the_same_bits_on_placed_tensors(op: Any, tmp_path: Path) -> None:
    case = sample(op, widths=(33,))[0]
    with Arena(tier_of("dram")) as memory, Arena(tier_of("file", tmp_path)) as file:
        expected = evaluate(op, op.function, case, torch.float32)
        for arena in (memory, file):
            names = iter(f"{arena.tier.kind}{k}" for k in range(100))
            assert_bit_equal(evaluate(op, op.function, case, torch.float32, layout=placed_in(arena, names)), expected)


def placed_in(arena: Arena, names: Iterator[str]) -> Callable[[torch.Tensor], torch.Tensor]:
    def place(x: torch.Tensor) -> torch.Tensor:
        tensor = arena.allocate(next(names), x.shape, x.dtype).tensor
        return tensor.copy_(x)

    return place


def test_a_step_of_adam_works_in_place(arena: Arena) -> None:
    def step(tensors: list[torch.Tensor]) -> None:
        for seed, x in enumerate(tensors):
            x.copy_(torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)))
        parameter, gradient, mean, square = tensors
        ops.adam_step(parameter, gradient, mean, square, lr=0.1, step=1)

    placed = [arena.allocate(name, (100, 64), torch.float32) for name in ("parameter", "gradient", "mean", "square")]
    addresses = [p.tensor.data_ptr() for p in placed]
    expected = [torch.empty(100, 64) for _ in placed]
    step(expected)
    step([p.tensor for p in placed])
    assert_bit_equal([p.tensor for p in placed], expected)
    assert [p.tensor.data_ptr() for p in placed] == addresses


def test_memory_lives_as_long_as_a_view(tier: Tier) -> None:
    with Arena(tier) as arena:
        try:
            view = arena.allocate("embedding", (1000, 64), torch.float32).tensor.fill_(3)[998:, :2]
        except TierMemoryError as error:
            pytest.skip(str(error))
    del arena
    gc.collect()
    assert view.tolist() == [[3, 3], [3, 3]]


def test_memory_goes_with_its_last_view() -> None:
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

    before = mapped()
    with Arena(tier_of("dram")) as arena:
        placed = arena.allocate("x", (256 * MIB,), torch.uint8)
        assert mapped() - before >= 256 * MIB
        del placed
        gc.collect()
        assert mapped() - before < 128 * MIB


@pytest.mark.parametrize("where", ["", "node0"])
def test_all_pages_lie_on_the_node_from_the_start(where: str) -> None:
    with Arena(tier_of("dram", where)) as arena:
        try:
            share = arena.allocate("x", (1000, 64), torch.float32).share()
        except TierMemoryError as error:
            pytest.skip(str(error))
    if share.fraction is None:
        pytest.skip(str(share))
    assert share.fraction == 1
    assert "node 0" in share.basis
    assert "move_pages" in share.basis


def test_pages_that_nobody_touched_or_that_lie_elsewhere_do_not_count() -> None:
    memory = aligned(10 * MIB)
    share = placement._share_on(memory, [0])
    if share.fraction is None:
        pytest.skip(str(share))
    assert share.fraction == 0
    memory[:] = 1
    assert placement._share_on(memory, list(range(64))).fraction == 1
    assert placement._share_on(memory, [1000]).fraction == 0


def test_many_pages_are_asked_for_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = aligned(MIB, huge=False)
    memory[:] = 1
    if placement._share_on(memory, [0]).fraction is None:
        pytest.skip("this kernel does not say where pages lie")
    monkeypatch.setattr(placement, "_PAGES_AT_A_TIME", 100)
    assert placement._share_on(memory, list(range(64))).fraction == 1


@pytest.mark.parametrize(("code", "remedy"), [(errno.EPERM, "SYS_NICE"), (errno.ENOSYS, "no NUMA"), (errno.EINVAL, "")])
def test_what_a_container_forbids_is_said(monkeypatch: pytest.MonkeyPatch, code: int, remedy: str) -> None:
    def refuse(name: str, *arguments: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(placement, "_system_call", refuse)
    with Arena(tier_of("numa", "node0")) as arena, pytest.raises(TierMemoryError) as caught:
        arena.allocate("embedding", (4, 4), torch.float32)
    for part in ("tier: embedding: cannot be bound to node 0", errno.errorcode[code], remedy):
        assert part in str(caught.value)
    with Arena(tier_of("dram")) as arena:
        share = arena.allocate("embedding", (4, 4), torch.float32).share()
    assert share.fraction is None
    assert str(share).startswith("unavailable: move_pages failed")
    assert remedy in str(share)


def test_a_processor_whose_system_calls_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with Arena(tier_of("dram")) as arena:
        share = arena.allocate("x", (4,), torch.float32).share()
    assert "number of move_pages on s390x" in str(share) or "ENOSYS" in str(share)


def test_a_node_that_is_not_there() -> None:
    with Arena(tier_of("numa", "node1000")) as arena, pytest.raises(TierMemoryError, match="node 1000"):
        arena.allocate("x", (4,), torch.float32)


def test_more_than_a_node_has() -> None:
    with Arena(tier_of("dram")) as arena, pytest.raises(TierMemoryError, match=r"1024.00 TiB|refused"):
        arena.allocate("x", (1 << 50,), torch.uint8)


def test_huge_pages() -> None:
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not mode.exists() or "[never]" in mode.read_text():
        pytest.skip("transparent huge pages are off on this machine")

    def huge_bytes(address: int) -> int:
        within = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            first, _, rest = line.partition(" ")
            if "-" in first:
                start, end = (int(bound, 16) for bound in first.split("-"))
                within = start <= address < end
            elif within and first == "AnonHugePages:":
                return int(rest.split()[0]) * 1024
        raise AssertionError(f"no mapping holds {address:#x}")

    with Arena(tier_of("dram"), huge=True) as arena:
        placed = arena.allocate("x", (64 * MIB,), torch.uint8)
        assert huge_bytes(placed.tensor.data_ptr() + 32 * MIB) > 0


def test_a_mapped_file_says_that_pages_are_in_the_page_cache(tmp_path: Path) -> None:
    with Arena(tier_of("file", tmp_path)) as arena:
        placed = arena.allocate("x", (4 * MIB,), torch.uint8)
        assert os.stat(tmp_path / "x").st_blocks * 512 >= 4 * MIB  # no store finds the disk full
        placed.tensor.fill_(1)
        share = placed.share()
        assert share.fraction is not None
        assert share.fraction < 0.5
        assert "page cache, in DRAM" in str(share)
        assert np.fromfile(tmp_path / "x", np.uint8).all()
    assert not (tmp_path / MARKER).exists()


def test_a_file_system_without_dax(tmp_path: Path) -> None:
    with (
        Arena(tier_of("pmem", tmp_path)) as arena,
        pytest.raises(TierMemoryError, match=r"x: MAP_SYNC is refused.*dax=always"),
    ):
        arena.allocate("x", (4,), torch.float32)
    assert not (tmp_path / "x").exists()


def test_files_are_kept_apart_from_other_runs(tmp_path: Path) -> None:
    with (
        Arena(tier_of("file", tmp_path)),
        pytest.raises(StorageError, match="another run keeps its tensors in this folder"),
        Arena(tier_of("file", tmp_path)),
    ):
        pass


def test_a_device_is_cleared_shared_out_and_kept_apart(devdax: Tier) -> None:
    with Arena(devdax) as arena:
        one, two = (arena.allocate(name, (5 * MIB,), torch.uint8) for name in "ab")
        assert not one.tensor.any()
        one.tensor.fill_(1)
        assert not two.tensor.any()
        assert str(one.share()) == f"100.0%, mapped from {devdax.where}"
        with pytest.raises(TierMemoryError, match=r"dax7.0: c: needs 54.00 MiB, 52.00 MiB of 64.00 MiB are free"):
            arena.allocate("c", (53 * MIB,), torch.uint8)
        with pytest.raises(StorageError, match=r"another run keeps its tensors in dax7.0"), Arena(devdax):
            pass
    content = np.fromfile(devdax.where, np.uint8)
    assert content[: 5 * MIB].all()
    assert not content[6 * MIB : 12 * MIB].any()
    assert content[12 * MIB :].min() == 255


@given(st.integers(1, 2**40), st.sampled_from([4096, 2 * MIB, 1 << 30]), st.lists(st.integers(1, 2**38), max_size=9))
def test_ranges_of_a_device_are_aligned_apart_and_within_it(size: int, alignment: int, wanted: list[int]) -> None:
    ranges, end = Ranges(size, alignment), 0
    for count in wanted:
        try:
            offset, length = ranges.take("dax0.0", count)
        except TierMemoryError:
            assert end + -(-count // alignment) * alignment > size
            continue
        assert offset % alignment == length % alignment == 0
        assert offset == end
        assert length >= count
        end = offset + length
        assert end <= size


def test_no_such_device(tmp_path: Path) -> None:
    with pytest.raises(TierMemoryError, match=r"dax9.9: is no device"), Arena(tier_of("devdax", "/dev/dax9.9")):
        pass
    assert not Path("/dev/dax9.9").exists()


def test_a_device_that_cannot_be_opened(devdax: Tier) -> None:
    Path(devdax.where).unlink()
    with pytest.raises(TierMemoryError, match=r"cannot be opened: .*ENOENT"), Arena(devdax):
        pass
    assert not Path(devdax.where).exists()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [("gpu", {}, "kind gpu is no memory"), ("file", {"huge": True}, "huge pages have no effect on kind file")],
)
def test_tiers_that_do_not_go_with_this(kind: str, options: dict[str, bool], message: str) -> None:
    with pytest.raises(GnnrecError, match=message):
        Arena(tier_of(kind), **options)


def test_a_tier_that_is_unavailable_says_why() -> None:
    forbidden = Tier("node1", "numa", None, None, 64, where="node1", unavailable="cpuset.mems allows nodes 0 only")
    with pytest.raises(TierMemoryError, match=r"node1: is unavailable: cpuset.mems allows nodes 0 only.*gnnrec tiers"):
        Arena(forbidden)
