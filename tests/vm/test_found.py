"""What is found on hardware that few machines have. The variables are those of test_hardware.py."""

from __future__ import annotations

from pathlib import Path

from test_hardware import named

from gnnrec.memtier.discover import discover
from gnnrec.memtier.tiers import Tier


def the_tier(kind: str, where: str) -> Tier:
    (found,) = [tier for tier in discover() if (tier.kind, tier.where) == (kind, where)]
    assert not found.unavailable
    assert found.capacity
    return found


def test_a_mount_with_dax() -> None:
    assert the_tier("pmem", named("pmem")).persistent


def test_a_dax_device() -> None:
    assert the_tier("devdax", named("devdax")).persistent


def test_a_node_without_processors() -> None:
    node = f"node{named('numa')}"
    total = Path(f"/sys/devices/system/node/{node}/meminfo").read_text().split("MemTotal:")[1].split()[0]
    assert the_tier("numa", node).capacity == int(total) * 1024


def test_rates_of_the_firmware() -> None:
    tier = the_tier("numa", f"node{named('numa')}")
    assert tier.provenance == "prior"
    assert {rate.pattern for rate in tier.rates} == {"read", "write"}
    assert all(rate.source.startswith("HMAT") for rate in tier.rates)
    assert tier.latency_ns
