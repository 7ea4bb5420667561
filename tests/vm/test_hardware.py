"""Direct placement on hardware that few machines have: `make test-vm` makes it up in a virtual machine.

Each kind is tested where a variable of the environment names one: GNNREC_TEST_FSDAX (a folder on a DAX file system),
GNNREC_TEST_NODE (a NUMA node without processors), GNNREC_TEST_DEVDAX (a device such as /dev/dax0.0).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from walk import assert_bit_equal, evaluate, sample

from gnnrec import ops
from gnnrec.memtier.files import TierMemoryError, aligned
from gnnrec.memtier.placement import Arena, _share_on
from gnnrec.memtier.tiers import Tier

VARIABLES = {"pmem": "GNNREC_TEST_FSDAX", "numa": "GNNREC_TEST_NODE", "devdax": "GNNREC_TEST_DEVDAX"}
BASIS = {"pmem": "MAP_SYNC", "numa": "move_pages", "devdax": "mapped from"}
OPS = [op for op in ops.OPS if op.name in ("spmm", "lightgcn_propagate", "bpr_loss", "adam_step")]


def named(kind: str) -> str:
    value = os.environ.get(VARIABLES[kind])
    if not value:
        pytest.skip(f"{VARIABLES[kind]} is not set: no {kind} to test on")
    return value


@pytest.fixture(params=VARIABLES)
def arena(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Arena]:
    value = named(request.param)
    where = {"pmem": f"{value}/tier", "numa": f"node{value}", "devdax": value}[request.param]
    with Arena(Tier(request.param, request.param, None, None, 64, where=where)) as opened:
        yield opened


def test_every_page_lies_on_the_tier(arena: Arena) -> None:
    placed = arena.allocate("embedding", (40_000, 64), torch.float32)
    assert not placed.tensor.any()
    placed.tensor.copy_(torch.arange(40_000.0)[:, None].expand(-1, 64))
    share = placed.share()
    assert share.fraction == 1, str(share)
    assert BASIS[arena.tier.kind] in str(share)
    assert placed.tensor.sum(dtype=torch.float64) == 64 * 40_000 * 39_999 / 2


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_operators_give_the_same_bits_as_in_dram(arena: Arena, op: Any) -> None:
    case = sample(op, widths=(64,))[0]
    count = iter(range(100))

    def place(x: torch.Tensor) -> torch.Tensor:
        return arena.allocate(f"tensor{next(count)}", x.shape, x.dtype).tensor.copy_(x)

    expected = evaluate(op, op.function, case, torch.float32)
    assert_bit_equal(evaluate(op, op.function, case, torch.float32, layout=place), expected)


def test_more_than_the_tier_has(arena: Arena) -> None:
    with pytest.raises((TierMemoryError, OSError), match=r"1\.00 TiB|1024\.00 GiB"):
        arena.allocate("x", (1 << 40,), torch.uint8)


def test_memory_of_other_nodes_is_told_apart() -> None:
    node = int(named("numa"))
    memory = aligned(1 << 20)
    memory[:] = 1  # beside the processors, which the node does not have
    assert _share_on(memory, [node]).fraction == 0


def test_stores_reach_the_file(tmp_path: Path) -> None:
    """What is mapped is the file itself, which reading it past the mapping shows."""
    folder = Path(named("pmem")) / "stores"
    with Arena(Tier("pmem", "pmem", None, None, 64, where=str(folder))) as arena:
        arena.allocate("x", (1000,), torch.int32).tensor.copy_(torch.arange(1000))
        assert (folder / "x").read_bytes()[:4000] == torch.arange(1000, dtype=torch.int32).numpy().tobytes()
