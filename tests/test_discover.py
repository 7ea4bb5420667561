"""Discovery of memory tiers on made-up trees of /sys, /proc and /dev, and on this machine as it is."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnrec.errors import ConfigError
from gnnrec.memtier import cgroup, devdax, directories, gpus, nodes, probes, sysfs
from gnnrec.memtier.discover import discover
from gnnrec.memtier.tiers import KINDS, Rate, Tier

GNNREC = str(Path(sys.executable).with_name("gnnrec"))
GIB = 2**30
NODES = "sys/devices/system/node"
V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
STATUS = "Name:\tpython\nVmSize:\t  1048576 kB\nVmData:\t  524288 kB\nMems_allowed_list:\t0-7\n"
LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max data size             unlimited            unlimited            bytes
Max locked memory         8388608              8388608              bytes
Max address space         unlimited            unlimited            bytes
"""


def write(root: Path, files: dict[str, str]) -> Path:
    """A tree with these files."""
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def link(root: Path, name: str, target: str) -> None:
    """A link within the tree, which need not have its target yet."""
    (root / target).mkdir(parents=True, exist_ok=True)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(root / target)


def proc(*, total: float = 32, available: float = 24, **files: str) -> dict[str, str]:
    """What /proc of a machine without limits says (GiB); `files` are those of /proc/self that differ."""
    meminfo = f"MemTotal:  {int(total * 2**20)} kB\nMemFree:  1 kB\nMemAvailable:  {int(available * 2**20)} kB\n"
    own = {"status": STATUS, "limits": LIMITS, "cgroup": "0::/\n", "mountinfo": V2} | files
    return {"proc/meminfo": meminfo} | {f"proc/self/{name}": text for name, text in own.items()}


def node(number: int, *, cpus: str = "", total: int = 16, free: int = 8, cache: int = 1) -> dict[str, str]:
    """What /sys says of a node (GiB)."""
    sizes = {"MemTotal": total, "MemFree": free, "Active(file)": cache, "Inactive(file)": 0}
    lines = [f"Node {number} {name}:  {size << 20} kB\n" for name, size in sizes.items()]
    files = {"meminfo": "".join(lines), "cpulist": f"{cpus}\n", "distance": "10 21 14\n"}
    return {f"{NODES}/node{number}/{name}": text for name, text in files.items()} | {f"{NODES}/online": "0-2\n"}


def hmat(number: int, access: int, **values: int) -> dict[str, str]:
    return {f"{NODES}/node{number}/access{access}/initiators/{name}": f"{value}\n" for name, value in values.items()}


def mount(point: object, *, kind: str = "ext4", device: str = "259:1", options: str = "rw", source: str = "") -> str:
    escaped = str(point).replace(" ", r"\040")
    return f"99 1 {device} / {escaped} rw,relatime shared:1 - {kind} {source or f'/dev/{kind}0'} {options}\n"


# Nodes


def test_a_machine_without_nodes(tmp_path: Path) -> None:
    (tier,) = nodes.tiers(write(tmp_path, proc(total=32, available=24)))
    assert (tier.name, tier.kind, tier.capacity, tier.free) == ("dram", "dram", 32 * GIB, 24 * GIB)
    assert (tier.granularity, tier.direct, tier.persistent, tier.unavailable) == (64, True, False, "")
    assert tier.facts["free is bound by"] == "available memory, 24.00 GiB"
    assert tier.facts["limits"] == "none"
    assert tier.facts["locked memory"] == "8.00 MiB (RLIMIT_MEMLOCK)"


def test_one_node_is_all_memory(tmp_path: Path) -> None:
    """A host may add memory on demand, of which the node has only what it has now."""
    (tier,) = nodes.tiers(write(tmp_path, proc(total=32, available=24) | node(0, cpus="0-1", total=8)))
    assert (tier.name, tier.capacity, tier.free) == ("dram", 32 * GIB, 24 * GIB)


def test_sockets_and_a_node_without_processors(tmp_path: Path) -> None:
    tree = proc(total=96, available=80) | node(0, cpus="0-3") | node(1, cpus="4-7", free=3) | node(2, total=64, free=60)
    tree |= hmat(0, 0, read_bandwidth=9, read_latency=9) | hmat(0, 1, read_bandwidth=69_000, read_latency=96)
    tree |= hmat(2, 0, read_bandwidth=48_000, write_bandwidth=0, read_latency=244)
    tree["sys/devices/system/cpu/cpu0/cache/index0/coherency_line_size"] = "128\n"
    tiers = nodes.tiers(write(tmp_path, tree))
    assert [(tier.name, tier.kind, tier.where) for tier in tiers] == [
        ("dram0", "dram", "node0"),
        ("dram1", "dram", "node1"),
        ("node2", "numa", "node2"),
    ]
    assert [(tier.capacity, tier.free) for tier in tiers] == [
        (16 * GIB, 9 * GIB),
        (16 * GIB, 4 * GIB),
        (64 * GIB, 61 * GIB),
    ]
    assert {tier.granularity for tier in tiers} == {128}
    assert {tier.provenance for tier in tiers} == {"prior"}
    assert tiers[0].rates == (Rate("read", 69.0, source="HMAT, access1"),)
    assert (tiers[0].latency_ns, tiers[1].latency_ns, tiers[2].latency_ns) == (96, None, 244)
    assert tiers[1].rates == ()
    assert tiers[2].rates == (Rate("read", 48.0, source="HMAT, access0"),)
    assert "write bandwidth unknown" in tiers[2].facts["HMAT, access0"]
    assert tiers[2].facts["distance"] == "10 21 14 to nodes 0-2"
    assert tiers[2].facts["behind it"].startswith("unknown: ")


def test_one_socket_with_a_node_without_processors(tmp_path: Path) -> None:
    tiers = nodes.tiers(write(tmp_path, proc() | node(0, cpus="0-3") | node(1)))
    assert [tier.name for tier in tiers] == ["dram", "node1"]


def test_a_node_without_memory_is_no_tier(tmp_path: Path) -> None:
    tiers = nodes.tiers(write(tmp_path, proc() | node(0, cpus="0-3") | node(1, cpus="4-7", total=0)))
    assert [tier.name for tier in tiers] == ["dram"]


def test_cpuset_forbids_a_node(tmp_path: Path) -> None:
    status = STATUS.replace("0-7", "0")
    dram, numa = nodes.tiers(write(tmp_path, proc(status=status) | node(0, cpus="0-3") | node(1)))
    assert dram.unavailable == ""
    assert numa.unavailable == "cpuset.mems allows nodes 0 only. Add 1 to it"


def test_huge_pages(tmp_path: Path) -> None:
    tree = proc() | node(0, cpus="0")
    for size, count, free in (("1048576", 2, 1), ("2048", 512, 0)):
        tree[f"{NODES}/node0/hugepages/hugepages-{size}kB/nr_hugepages"] = f"{count}\n"
        tree[f"{NODES}/node0/hugepages/hugepages-{size}kB/free_hugepages"] = f"{free}\n"
    tree["sys/kernel/mm/transparent_hugepage/enabled"] = "always [madvise] never\n"
    (tier,) = nodes.tiers(write(tmp_path, tree))
    assert tier.facts["huge page pools"] == "2.00 MiB: 0 of 512 free; 1.00 GiB: 1 of 2 free"
    assert tier.facts["transparent huge pages"] == "madvise"


def test_what_cannot_be_read_is_no_zero(tmp_path: Path) -> None:
    (tier,) = nodes.tiers(tmp_path)
    assert (tier.capacity, tier.free) == (None, None)
    unreadable = {name for name, fact in tier.facts.items() if "unavailable: No such file" in fact}
    assert unreadable == {"memory", "transparent huge pages", "locked memory"}
    assert tier.facts["limits"] == "control groups unavailable: /proc is not mounted"


@pytest.mark.parametrize(
    ("words", "limit", "bound", "left"),
    [
        ("Max address space", 5 * GIB, "RLIMIT_AS", 4 * GIB),
        ("Max data size", 3 * GIB, "RLIMIT_DATA", 5 * GIB // 2),
        ("Max data size", GIB // 4, "RLIMIT_DATA", 0),  # lowered beneath what is in use
        ("Max data size", 99 * GIB, "available memory", 24 * GIB),
    ],
)
def test_limits_of_the_process(tmp_path: Path, words: str, limit: int, bound: str, left: int) -> None:
    limits = re.sub(f"{words} .*", f"{words}  {limit}  {limit}  bytes", LIMITS)
    (tier,) = nodes.tiers(write(tmp_path, proc(limits=limits)))
    assert tier.free == left
    assert tier.facts["free is bound by"].startswith(bound)
    assert "RLIMIT" in tier.facts["limits"]


@given(st.sets(st.integers(0, 40)))
def test_lists_of_numbers(numbers: set[int]) -> None:
    assert sysfs.id_list(",".join(map(str, sorted(numbers)))) == numbers


def test_ranges_of_numbers() -> None:
    assert sysfs.id_list("0-2,5,7-8") == {0, 1, 2, 5, 7, 8}


def test_mounts(tmp_path: Path) -> None:
    lines = (
        mount("/") + mount("/a b", kind="xfs") + "7 1 0:7 /in /a\\134 ro master:1 - tmpfs  rw,size=4k\n" + mount("/a b")
    )
    found = sysfs.mounts(write(tmp_path, proc(mountinfo=lines)))
    assert [entry.point for entry in found] == ["/", "/a b", "/a\\", "/a b"]
    assert found[2] == sysfs.Mount("0:7", "/in", "/a\\", ("ro", "rw", "size=4k"), "tmpfs", "")
    assert sysfs.mount_of(Path("/a b/c"), found) == found[3]  # mounted over the other
    assert sysfs.mount_of(Path("/a"), found) == found[0]
    assert sysfs.mount_of(Path("/a"), []) is None


# Control groups


@pytest.mark.parametrize(
    ("membership", "mounted", "files", "limit"),
    [
        ("0::/a/b\n", V2, {"a/b/memory.max": "max\n", "a/memory.max": "5000\n"}, 5000),
        ("0::/a/b\n", V2, {"a/b/memory.max": "3000\n", "a/memory.max": "5000\n"}, 3000),
        ("0::/a\n", V2, {"a/memory.max": "5000\n", "a/memory.high": "4000\n"}, 4000),
        ("0::/\n", V2, {"memory.max": "7000\n"}, 7000),
        ("0::/../outside\n", V2, {"memory.max": "7000\n"}, 7000),
        ("0::/a\n", V2, {"a/memory.max": "max\n", "../memory.max": "1\n"}, None),
        ("0::/a\n", V2, {}, None),
        ("0::/gone\n", V2, {"memory.max": "7000\n"}, 7000),
        ("4:cpu,memory:/d\n2:cpu:/\n", V1, {"memory/d/memory.limit_in_bytes": "900\n", "memory.max": "1\n"}, 900),
        ("4:memory:/gone\n", V1, {"memory/memory.limit_in_bytes": "800\n"}, 800),
        ("4:memory:/\n", V1, {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        # Both versions, memory belongs to one of them.
        ("4:memory:/d\n0::/\n", HYBRID, {"memory/d/memory.limit_in_bytes": "700\n"}, 700),
        ("4:cpu:/d\n0::/u\n", HYBRID, {"unified/u/memory.max": "600\n"}, 600),
        # A container that sees its own group at the top, under the name that the host has for it.
        ("0::/host/c\n", V2.replace(" / /sys", " /host/c /sys"), {"memory.max": "500\n"}, 500),
        ("0::/host/c/in\n", V2.replace(" / /sys", " /host/c /sys"), {"in/memory.max": "400\n"}, 400),
        ("0::/elsewhere\n", V2.replace(" / /sys", " /host/c /sys"), {"memory.max": "300\n"}, 300),
    ],
)
def test_limit_of_the_control_group(
    tmp_path: Path, membership: str, mounted: str, files: dict[str, str], limit: int | None
) -> None:
    tree = proc(cgroup=membership, mountinfo=mounted) | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert cgroup.memory_limit(write(tmp_path, tree)) == limit


def test_the_group_with_the_least_left_binds(tmp_path: Path) -> None:
    """A group above may be fuller than its limit suggests. Page cache is dropped before memory runs out."""
    group = "sys/fs/cgroup/pod"
    tree = {
        f"{group}/memory.max": str(10 * GIB),
        f"{group}/memory.current": str(9 * GIB),
        f"{group}/memory.stat": f"anon {5 * GIB}\ninactive_file {2 * GIB}\nactive_file {GIB}\n",
        f"{group}/me/memory.max": str(6 * GIB),
        f"{group}/me/memory.current": str(GIB),
    }
    (tier,) = nodes.tiers(write(tmp_path, proc(cgroup="0::/pod/me\n") | tree))
    assert tier.free == 4 * GIB
    assert tier.facts["free is bound by"] == "memory.max of /pod, 4.00 GiB"
    assert tier.facts["limits"] == (
        "memory.max of /pod/me 6.00 GiB, 1.00 GiB used; memory.max of /pod 10.00 GiB, 6.00 GiB used"
    )


def test_a_limit_bounds_every_node(tmp_path: Path) -> None:
    tree = proc(cgroup="0::/c\n") | node(0, cpus="0") | node(1) | {"sys/fs/cgroup/c/memory.max": str(2 * GIB)}
    assert [tier.free for tier in nodes.tiers(write(tmp_path, tree))] == [2 * GIB, 2 * GIB]
    assert nodes.room(tmp_path) == 2 * GIB


def test_room_is_that_of_all_nodes_that_may_be_used(tmp_path: Path) -> None:
    tree = node(0, cpus="0-3") | node(1, cpus="4-7", free=3) | node(2, free=60)
    assert nodes.room(write(tmp_path / "all", proc() | tree)) == (9 + 4) * GIB
    status = STATUS.replace("0-7", "0")
    assert nodes.room(write(tmp_path / "one", proc(status=status) | tree)) == 9 * GIB
    limits = re.sub("Max data size .*", f"Max data size  {5 * GIB}  {5 * GIB}  bytes", LIMITS)
    assert nodes.room(write(tmp_path / "limited", proc(limits=limits) | tree)) == 9 * GIB // 2


def test_room_without_free_memory_is_the_capacity_if_that_is_known(tmp_path: Path) -> None:
    assert nodes.room(tmp_path) is None
    assert nodes.room(write(tmp_path, {"proc/meminfo": f"MemTotal:  {2**20} kB\n"})) == GIB


def test_groups_that_cannot_be_read(tmp_path: Path) -> None:
    root = write(tmp_path, proc(cgroup="0::/c\n"))
    (root / "sys/fs/cgroup/c/memory.max").mkdir(parents=True)  # reading it fails, for the superuser too
    (tier,) = nodes.tiers(root)
    assert tier.facts["limits"] == "memory.max of /c unavailable: Is a directory (EISDIR)"
    assert tier.free == 24 * GIB


def test_use_that_cannot_be_read(tmp_path: Path) -> None:
    (tier,) = nodes.tiers(write(tmp_path, proc() | {"sys/fs/cgroup/memory.max": str(GIB)}))
    assert tier.free == GIB
    assert "memory.max of / 1.00 GiB, use unavailable: No such file or directory (ENOENT)" in tier.facts["limits"]


def test_groups_that_are_not_mounted(tmp_path: Path) -> None:
    (limit,) = cgroup.limits(write(tmp_path, proc(mountinfo="")))
    assert str(limit).startswith("control groups unavailable: not mounted")
    assert limit.left is None


def test_a_kernel_without_control_groups(tmp_path: Path) -> None:
    assert cgroup.limits(write(tmp_path, {"proc/self/status": STATUS})) == []
    assert cgroup.memory_limit(tmp_path) is None


# dax devices


def dax(root: Path, place: str, *, driver: str, target: int = 1, name: str = "dax0.0") -> None:
    folder = f"sys/devices/{place}/{name}"
    write(root, {f"{folder}/size": f"{GIB}\n", f"{folder}/align": f"{2**21}\n", f"{folder}/target_node": f"{target}\n"})
    link(root, f"sys/bus/dax/devices/{name}", folder)
    if driver:
        link(root, f"{folder}/driver", f"sys/bus/dax/drivers/{driver}")


def test_a_dax_device(tmp_path: Path) -> None:
    dax(tmp_path, "ACPI0012:00/ndbus0/region0", driver="device_dax")
    write(tmp_path, {"dev/dax0.0": ""})
    (tier,) = devdax.tiers(tmp_path)
    assert (tier.name, tier.kind, tier.capacity, tier.free) == ("dax0.0", "devdax", GIB, GIB)
    assert (tier.persistent, tier.direct, tier.unavailable) == (True, True, "")
    assert tier.where == str(tmp_path / "dev/dax0.0")
    assert (tier.facts["memory"], tier.facts["mappings"]) == ("NVDIMM", "multiples of 2.00 MiB")


def test_a_dax_device_that_the_container_has_no_file_of(tmp_path: Path) -> None:
    dax(tmp_path, "platform/ACPI0017:00/root0/region0/dax_region0", driver="device_dax")
    (tier,) = devdax.tiers(tmp_path)
    assert tier.unavailable.startswith(f"{tmp_path}/dev/dax0.0 cannot be opened: No such file or directory (ENOENT). ")
    assert (tier.capacity, tier.persistent, tier.facts["memory"]) == (GIB, False, "CXL")


def test_a_dax_device_without_a_driver(tmp_path: Path) -> None:
    dax(tmp_path, "platform/hmem.0", driver="")
    (tier,) = devdax.tiers(tmp_path)
    assert tier.unavailable.startswith("no driver is bound to it. ")


def test_a_dax_device_through_kmem_is_a_node(tmp_path: Path) -> None:
    dax(tmp_path, "ACPI0012:00/ndbus0/region0", driver="kmem", target=1)
    write(tmp_path, proc() | node(0, cpus="0") | node(1) | node(2))
    assert devdax.tiers(tmp_path) == []
    _, behind, other = nodes.tiers(tmp_path)
    assert behind.facts["behind it"] == "dax0.0 through kmem: NVDIMM"
    assert other.facts["behind it"].startswith("unknown: ")


def test_a_cxl_card_that_the_firmware_made_a_node(tmp_path: Path) -> None:
    write(tmp_path, proc() | node(0, cpus="0") | node(1) | {"sys/bus/cxl/devices/mem0/numa_node": "1\n"})
    assert nodes.tiers(tmp_path)[1].facts["behind it"] == "mem0: CXL"


# Folders


def only(folder: Path, root: Path) -> Tier:
    (tier,) = directories.tiers([folder], root)
    return tier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that is looked at, its name with a space."""
    made = tmp_path / "a tier"
    made.mkdir()
    return made


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without direct access."""
    monkeypatch.setattr(probes, "map_sync", lambda descriptor: errno.EOPNOTSUPP)


@pytest.fixture
def on_disk(refused: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on a disk, wherever tests have their folder."""
    monkeypatch.setattr(probes, "direct_io", lambda descriptor: 0)
    monkeypatch.setattr(probes, "direct_alignment", lambda descriptor: 512)


def test_a_folder_on_a_partition(tmp_path: Path, folder: Path, on_disk: None) -> None:
    disk = "sys/devices/pci0/nvme/nvme0/nvme0n1"
    values = {"queue/rotational": "0\n", "queue/logical_block_size": "512\n", "queue/physical_block_size": "4096\n"}
    values |= {"nvme0n1p2/partition": "2\n"}
    write(tmp_path, {f"{disk}/{name}": text for name, text in values.items()})
    write(tmp_path, proc(mountinfo=mount("/") + mount(folder, kind="xfs", device="259:2", source="/dev/nvme0n1p2")))
    link(tmp_path, "sys/dev/block/259:2", f"{disk}/nvme0n1p2")
    link(tmp_path, f"{disk}/device", "sys/devices/pci0/nvme/nvme0")
    write(tmp_path, {"sys/devices/pci0/nvme/nvme0/model": "Fast Disk   \n"})
    tier, space = only(folder, tmp_path), os.statvfs(folder)
    assert (tier.name, tier.kind, tier.where, tier.unavailable) == (str(folder), "file", str(folder), "")
    assert tier.capacity == space.f_blocks * space.f_frsize
    assert tier.free is not None
    assert abs(tier.free - space.f_bavail * space.f_frsize) < GIB  # others write, too
    assert (tier.granularity, tier.persistent, tier.direct) == (4096, True, False)
    assert tier.facts == {
        "file system": f"xfs of /dev/nvme0n1p2 on {folder}",
        "block device": "nvme0n1 (NVMe)",
        "blocks": "512 bytes logical, 4096 physical",
        "model": "Fast Disk",
        "rotational": "no",
        "O_DIRECT": "multiples of 512 bytes (statx)",
    }
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "files", "words"),
    [
        ("dm-0", {"slaves/sda2/x": "", "slaves/sdb2/x": ""}, "dm-0 (device mapper) on sda2, sdb2"),
        ("loop3", {"loop/backing_file": "/images/x.img\n"}, "loop3 (loop device) on /images/x.img"),
        ("vda", {}, "vda (virtual disk, virtio)"),
        ("strange1", {}, "strange1 (unknown kind)"),
    ],
)
def test_block_devices(
    tmp_path: Path, folder: Path, on_disk: None, device: str, files: dict[str, str], words: str
) -> None:
    """btrfs has a number that is no device's: the name of its source finds the device."""
    write(tmp_path, proc(mountinfo=mount(folder, kind="btrfs", device="0:40", source=f"/dev/{device}")))
    write(tmp_path, {f"sys/class/block/{device}/{name}": text for name, text in ({"x": ""} | files).items()})
    tier = only(folder, tmp_path)
    assert tier.facts["block device"] == words
    assert tier.facts["rotational"].startswith("unavailable: No such file or directory (ENOENT): ")


@pytest.mark.parametrize(
    ("said", "logical", "align", "source"),
    [(8192, "512", 8192, "statx"), (None, "16384", 16384, "logical block"), (None, "", 4096, "does not say")],
)
def test_alignment_of_direct_io(
    tmp_path: Path, folder: Path, on_disk: None, monkeypatch: Any, said: Any, logical: str, align: int, source: str
) -> None:
    monkeypatch.setattr(probes, "direct_alignment", lambda descriptor: said)
    write(tmp_path, proc(mountinfo=mount(folder)) | {"sys/dev/block/259:1/queue/logical_block_size": logical})
    tier = only(folder, tmp_path)
    assert tier.granularity == align
    assert f"multiples of {align} bytes" in tier.facts["O_DIRECT"]
    assert source in tier.facts["O_DIRECT"]


@pytest.mark.parametrize(("wrote", "said"), [(errno.EINVAL, None), (0, 0)])
def test_no_direct_io(tmp_path: Path, folder: Path, refused: None, monkeypatch: Any, wrote: int, said: Any) -> None:
    monkeypatch.setattr(probes, "direct_io", lambda descriptor: wrote)
    monkeypatch.setattr(probes, "direct_alignment", lambda descriptor: said)
    tier = only(folder, write(tmp_path, proc(mountinfo=mount(folder))))
    assert tier.facts["O_DIRECT"] == "refused: Invalid argument (EINVAL). Through the page cache"
    assert (tier.granularity, tier.unavailable) == (4096, "")


@pytest.mark.parametrize("options", ["rw,dax=always", "rw,dax"])
def test_fsdax_mounts(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    monkeypatch.setattr(probes, "map_sync", lambda descriptor: 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "resolv.conf").write_text("")
    dax_mounts = mount(folder, options=options) + mount(tmp_path / "resolv.conf", device="259:2", options=options)
    write(tmp_path, proc(mountinfo=mount(tmp_path, kind="tmpfs", device="0:5") + dax_mounts))
    here, tier = directories.tiers([], tmp_path)
    assert (here.name, here.kind) == (str(tmp_path), "file")
    assert (tier.name, tier.kind, tier.where, tier.granularity) == ("pmem0", "pmem", str(folder), 64)
    assert (tier.persistent, tier.direct, tier.unavailable) == (True, True, "")
    assert tier.facts["MAP_SYNC"] == "accepted"
    asked = only(folder, tmp_path)  # is this mount: not listed twice
    assert (asked.name, asked.kind) == (str(folder), "pmem")


def test_fsdax_without_map_sync_is_a_file(tmp_path: Path, folder: Path, on_disk: None) -> None:
    write(tmp_path, proc(mountinfo=mount(folder, options="rw,dax=always")))
    *_, tier = directories.tiers([], tmp_path)
    assert (tier.name, tier.kind, tier.direct) == (str(folder), "file", False)
    assert tier.facts["page cache"] == "MAP_SYNC refused: Operation not supported (EOPNOTSUPP)"


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_what_lies_in_dram(tmp_path: Path, folder: Path, kind: str) -> None:
    tier = only(folder, write(tmp_path, proc(mountinfo=mount(folder, kind=kind, device="0:9", source="none"))))
    assert tier.unavailable == f"{kind} lies in DRAM, so it is no slower tier. Give a folder on a disk"
    assert (tier.persistent, tier.capacity is None) == (False, False)


def test_a_ram_disk_lies_in_dram(tmp_path: Path, folder: Path) -> None:
    write(tmp_path, proc(mountinfo=mount(folder, source="/dev/zram0")) | {"sys/class/block/zram0/x": ""})
    assert only(folder, tmp_path).unavailable.startswith("zram0 lies in DRAM")


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("nfs4", "server:/export", "nfs4 of server:/export on {folder}, over the network"),
        ("virtiofs", "share", "virtiofs of share on {folder}, shared by the host"),
        ("ext4", "/dev/sda1", "ext4 of /dev/sda1 on {folder}"),
    ],
)
def test_file_systems(tmp_path: Path, folder: Path, on_disk: None, kind: str, source: str, words: str) -> None:
    tier = only(folder, write(tmp_path, proc(mountinfo=mount(folder, kind=kind, source=source))))
    assert tier.facts["file system"] == words.format(folder=folder)


def test_overlay(tmp_path: Path, folder: Path, on_disk: None) -> None:
    layers = "rw,lowerdir=/l,upperdir=/u,workdir=/w"
    write(tmp_path, proc(mountinfo=mount(folder, kind="overlay", device="0:50", options=layers, source="overlay")))
    assert only(folder, tmp_path).facts["block device"] == "unavailable: overlay hides it (upperdir=/u)"


def test_no_mounts_to_read(tmp_path: Path, folder: Path, on_disk: None) -> None:
    tier = only(folder, tmp_path)
    assert tier.facts["file system"].startswith("unavailable: No such file or directory (ENOENT): ")
    assert tier.unavailable == ""


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.ESTALE])
def test_a_folder_that_may_not_be_written(tmp_path: Path, folder: Path, monkeypatch: Any, number: int) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    tier = only(folder, write(tmp_path, proc(mountinfo=mount(folder))))
    assert errno.errorcode[number] in tier.unavailable
    assert os.strerror(number) in tier.unavailable
    assert tier.capacity is not None


def test_a_folder_of_somebody_else(folder: Path) -> None:
    """Asked by a user who owns nothing, where it is the superuser who runs the tests."""
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        folder.parent.chmod(0o755)
        os.seteuid(65534)
    try:
        found = [tier.unavailable for tier in directories.tiers([folder], Path("/")) if tier.where == str(folder)]
    finally:
        os.seteuid(user)
    assert len(found) == 1  # of other folders, this machine may have persistent memory
    assert "Permission denied (EACCES). Give this user permission" in found[0]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"folders: .*/gone: does not exist. Create it first"):
        discover([tmp_path / "gone"])
    with pytest.raises(ConfigError, match=r"folders: .*/file: is no folder"):
        discover([tmp_path / "file"])


def test_the_probes_on_a_real_file(tmp_path: Path) -> None:
    with tempfile.TemporaryFile(dir=tmp_path, buffering=0) as file:
        file.truncate(4096)
        synced, written, align = (
            probe(file.fileno()) for probe in (probes.map_sync, probes.direct_io, probes.direct_alignment)
        )
        assert synced in (0, errno.EOPNOTSUPP, errno.EINVAL)
        assert written in (0, errno.EINVAL, errno.EOPNOTSUPP)
        assert align is None or align % 2 == 0
        file.seek(0)
        assert file.write(b"odd") == 3  # the flag is taken back: O_DIRECT allows no three bytes
    with open(os.devnull, "r+b", buffering=0) as null:
        assert probes.map_sync(null.fileno()) != 0


# GPUs


class NVMLError(Exception):
    pass


class Library:
    """A made-up pynvml with GPUs of 80 GiB."""

    NVMLError = NVMLError

    def __init__(self, count: int = 2, *, fails: str = "") -> None:
        self.count, self.fails, self.open = count, fails, False

    def nvmlInit(self) -> None:
        self._may("nvmlInit")
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{'abc'[handle]}1"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self._may("nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(total=80 * GIB, free=(70 + handle) * GIB)

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "Some GPU"

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        return SimpleNamespace(busId=f"0000:0{handle}:00.0")

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: int) -> int:
        self._may("nvmlDeviceGetMaxPcieLinkGeneration")
        return 5

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: int) -> int:
        return 16

    def _may(self, name: str) -> None:
        if name == self.fails:
            raise NVMLError("Insufficient Permissions")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither GPUs of this machine nor their library."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library := Library())
    first, second = gpus.tiers(tmp_path)
    assert (first.name, first.kind, first.capacity, first.free) == ("gpu0", "gpu", 80 * GIB, 70 * GIB)
    assert (second.name, second.where, second.free) == ("gpu1", "0000:01:00.0", 71 * GIB)
    assert first.facts == {"name": "Some GPU", "PCIe": "generation 5, 16 lanes"}
    assert not library.open


@pytest.mark.parametrize(
    ("asked", "free"),
    [("1", [71]), ("1,0", [71, 70]), ("", []), ("GPU-c", [72]), ("0,9,1", [70]), ("-1", None), ("MIG-x", None)],
)
def test_gpus_that_torch_may_see(tmp_path: Path, monkeypatch: Any, asked: str, free: list[int] | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Library(3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    found = gpus.tiers(tmp_path)
    if free is None:
        assert found[0].unavailable == f"CUDA_VISIBLE_DEVICES={asked} names none of the 3 GPUs. Correct it"
    else:
        assert [tier.free for tier in found] == [count * GIB for count in free]
        assert [tier.name for tier in found] == [f"gpu{index}" for index in range(len(free))]


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetMemoryInfo"])
def test_a_driver_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    write(tmp_path, {"dev/nvidia0": "", "dev/nvidiactl": ""})
    monkeypatch.setitem(sys.modules, "pynvml", Library(1, fails=fails))
    (tier,) = gpus.tiers(tmp_path)
    assert (tier.name, tier.capacity) == ("gpu0", None)
    assert tier.unavailable == "NVIDIA's driver says: Insufficient Permissions"


def test_a_link_that_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Library(1, fails="nvmlDeviceGetMaxPcieLinkGeneration"))
    (tier,) = gpus.tiers(tmp_path)
    assert (tier.unavailable, tier.facts["PCIe"]) == ("", "unavailable: Insufficient Permissions")


def test_a_library_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Library(fails="nvmlInit"))
    assert gpus.tiers(tmp_path) == []


def test_torch_is_not_imported_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # to import it would fail
    assert gpus.tiers(tmp_path) == []


def test_gpus_through_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(index: int) -> tuple[int, int]:
        if index:
            raise RuntimeError("CUDA error: device busy\nmore")
        return 70 * GIB, 80 * GIB

    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, mem_get_info=memory)
    cuda.get_device_name = lambda index: "Some GPU"
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    first, second = gpus.tiers(write(tmp_path, {"dev/nvidia0": "", "dev/nvidia1": ""}))
    assert (first.capacity, first.free, first.where) == (80 * GIB, 70 * GIB, "cuda:0")
    assert second.unavailable == "torch says: CUDA error: device busy"
    cuda.is_available = lambda: False
    assert [tier.unavailable[:17] for tier in gpus.tiers(tmp_path)] == ["torch sees no GPU"] * 2


# All of it


def test_this_machine(tmp_path: Path) -> None:
    found = discover([tmp_path])
    assert all(tier.kind in KINDS for tier in found)
    assert len({tier.name for tier in found}) == len(found)
    dram = next(tier for tier in found if tier.kind == "dram")
    assert dram.capacity is not None
    assert dram.free is not None
    assert 0 < dram.free <= dram.capacity
    assert any(tier.where == str(tmp_path) for tier in found)
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    arguments = [GNNREC, "tiers", "folders=[here]", "out=tiers.json"]
    uncalibrated = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "none")}
    done = subprocess.run(arguments, cwd=tmp_path, text=True, capture_output=True, timeout=60, env=uncalibrated)
    assert (done.returncode, done.stderr) == (0, "")
    assert "free is bound by:" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"here", "tiers.json"}
    tiers = {tier["name"]: tier for tier in json.loads((tmp_path / "tiers.json").read_text())["tiers"]}
    assert tiers[str(tmp_path / "here")]["capacity_bytes"] > 0
    dram = next(tier for tier in tiers.values() if tier["kind"] == "dram")
    assert {"free_bytes", "granularity_bytes", "latency_ns", "rates", "unavailable"} <= set(dram)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("folders=[gone]", "gone: does not exist. Create it first, or correct the path"),
        ("out=tiers.txt", "out: is 'tiers.txt'. Give a name that ends in .json"),
    ],
)
def test_what_a_user_gets_wrong(tmp_path: Path, argument: str, message: str) -> None:
    done = subprocess.run([GNNREC, "tiers", argument], cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith(message)
