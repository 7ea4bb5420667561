"""Folders as tiers: fsdax, where a probe finds it, else files on block devices, network or memory file systems."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gnnrec.errors import ConfigError
from gnnrec.memtier import probes, sysfs
from gnnrec.memtier.files import BLOCK
from gnnrec.memtier.sysfs import Mount
from gnnrec.memtier.tiers import Tier
from gnnrec.storage import storage_errors

LINE = 64  # bytes that processors load and store at a time

_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
_OVER_NETWORK: tuple[str, ...] = (
    *("nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "beegfs", "gpfs", "afs", "glusterfs"),
    *("fuse.glusterfs", "fuse.sshfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse"),
)
_OF_A_HOST = ("9p", "virtiofs", "vboxsf", "fuse.vmhgfs-fuse")
_DEVICES = {
    "nvme": "NVMe",
    "pmem": "persistent memory",
    "vd": "virtual disk, virtio",
    "xvd": "virtual disk, Xen",
    "sd": "SCSI or SATA disk",
    "mmcblk": "eMMC or SD card",
    "loop": "loop device",
    "dm-": "device mapper",
    "md": "software RAID",
    "nbd": "network block device",
    "rbd": "network block device, Ceph",
    "zram": "compressed DRAM",
    "ram": "RAM disk",
}
_RAM_DISKS = ("zram", "ram")


def tiers(folders: Sequence[str | Path], root: Path) -> list[Tier]:
    """The folders given, else the current one and TMPDIR; and every fsdax mount, as pmem0, pmem1, ...

    Of what was not asked for, each device is listed once.

    Args:
        root: where /sys and /proc are found. Folders are looked for, and probed, where they are.

    Raises:
        ConfigError: a folder that does not exist, or is none.
    """
    mounts = sysfs.mounts(root)
    asked = list(dict.fromkeys(Path(os.path.abspath(folder)) for folder in folders))
    for folder in asked:
        _check(folder)
    found = [_tier(folder, mounts, root) for folder in asked]
    devices, count = {_device(folder, mounts) for folder in asked}, 0
    for folder in [*(() if asked else _usual()), *_fsdax(mounts)]:
        if (device := _device(folder, mounts)) not in devices:
            devices.add(device)
            tier = _tier(folder, mounts, root)
            if tier.kind == "pmem":
                tier, count = replace(tier, name=f"pmem{count}"), count + 1
            found.append(tier)
    return found


def _usual() -> list[Path]:
    folders = Path.cwd(), Path(os.path.abspath(os.environ.get("TMPDIR") or "/tmp"))
    return [folder for folder in folders if os.path.isdir(folder)]


def _fsdax(mounts: Sequence[Mount]) -> list[Path]:
    """Where file systems are mounted with direct access; containers mount single files too."""
    points = [Path(mount.point) for mount in mounts if _is_fsdax(mount)]
    return [point for point in points if not os.path.isfile(point)]


def _check(folder: Path) -> None:
    try:
        if folder.is_dir():
            return
        exists = folder.exists()
    except OSError:  # one that may not be looked at: its tier says so
        return
    found, remedy = ("is no folder", "Give the folder it is in") if exists else ("does not exist", "Create it first")
    raise ConfigError(found, where=f"folders: {folder}", remedy=f"{remedy}, or correct the path")


def _device(folder: Path, mounts: Sequence[Mount]) -> str:
    """What tells devices apart: major:minor, or the folder itself where the mounts are unknown."""
    mount = sysfs.mount_of(Path(os.path.realpath(folder)), mounts)
    return mount.device if mount else folder.as_posix()


def _is_fsdax(mount: Mount) -> bool:
    return bool({"dax", "dax=always"} & set(mount.options))


def _tier(folder: Path, mounts: Sequence[Mount], root: Path) -> Tier:
    mount = sysfs.mount_of(Path(os.path.realpath(folder)), mounts)
    device = _block_device(mount, root) if mount else None
    facts = _file_system(mount) if mount else {"file system": sysfs.told(root / "proc/self/mountinfo")}
    facts |= _block_facts(device) if device else {}
    capacity = free = None
    unavailable, mapped, align = _in_dram(mount, device), False, None
    try:
        with storage_errors(folder):
            space = os.statvfs(folder)
            if space.f_blocks:  # some file systems keep no account
                capacity, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
            if not unavailable:
                mapped, align, tried = _probe(folder, device, dax=mount is not None and _is_fsdax(mount))
                facts |= tried
    except OSError as error:
        unavailable = sysfs.why(error)
    return Tier(
        name=folder.as_posix(),
        kind="pmem" if mapped else "file",
        capacity=capacity,
        free=free,
        granularity=LINE if mapped else max(align or 0, BLOCK),
        persistent=mount is None or mount.kind not in _IN_MEMORY,
        where=folder.as_posix(),
        direct=mapped,
        unavailable=unavailable,
        facts=facts,
    )


def _probe(folder: Path, device: Path | None, *, dax: bool) -> tuple[bool, int | None, dict[str, str]]:
    """Try a small file that has no name, so that nothing stays behind whatever happens.

    Returns:
        Whether it is mapped with MAP_SYNC; the alignment of O_DIRECT in bytes, None where it is refused; facts.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.truncate(mmap.PAGESIZE)
        if (refused := probes.map_sync(file.fileno())) == 0:
            return True, None, {"MAP_SYNC": "accepted", "line": "64 bytes; Optane DIMMs move 256 at a time"}
        facts = {"page cache": f"MAP_SYNC refused: {sysfs.error_text(refused)}"} if dax else {}
        align = probes.direct_alignment(file.fileno())
        refused = probes.direct_io(file.fileno()) if align != 0 else errno.EINVAL
        if refused:
            return False, None, facts | {"O_DIRECT": f"refused: {sysfs.error_text(refused)}. Through the page cache"}
        source = "statx"
        if align is None:
            align, source = (sysfs.number(device / "queue/logical_block_size") if device else None), "logical block"
        if align is None:
            align, source = BLOCK, "the system does not say"
        return False, align, facts | {"O_DIRECT": f"multiples of {align} bytes ({source})"}


def _file_system(mount: Mount) -> dict[str, str]:
    note = ", over the network" if mount.kind in _OVER_NETWORK else ", shared by the host" * (mount.kind in _OF_A_HOST)
    facts = {"file system": f"{mount.kind} of {mount.source} on {mount.point}{note}"}
    if mount.kind == "overlay":
        upper = [option for option in mount.options if option.startswith("upperdir=")]
        facts["block device"] = f"unavailable: overlay hides it ({', '.join(upper) or 'read-only'})"
    return facts


def _block_device(mount: Mount, root: Path) -> Path | None:
    """The whole device in sysfs, of a partition too. File systems such as btrfs have a number that is no device's."""
    for link in (root / "sys/dev/block" / mount.device, root / "sys/class/block" / Path(mount.source).name):
        if mount.source != "none" and link.exists():
            folder = link.resolve()
            return folder.parent if (folder / "partition").exists() else folder
    return None


def _block_facts(device: Path) -> dict[str, str]:
    kind = next((words for start, words in _DEVICES.items() if device.name.startswith(start)), "unknown kind")
    logical, physical = (sysfs.told(device / f"queue/{name}_block_size") for name in ("logical", "physical"))
    facts = {"block device": f"{device.name} ({kind})", "blocks": f"{logical} bytes logical, {physical} physical"}
    if members := sorted(member.name for member in device.glob("slaves/*")):
        facts["block device"] += f" on {', '.join(members)}"
    if backing := sysfs.text(device / "loop/backing_file"):
        facts["block device"] += f" on {backing}"
    if model := sysfs.text(device / "device/model"):
        facts["model"] = model
    rotational = {"0": "no", "1": "yes, says the device"}
    said = sysfs.told(device / "queue/rotational")
    return facts | {"rotational": rotational.get(said, said)}


def _in_dram(mount: Mount | None, device: Path | None) -> str:
    """Why a folder is no slower tier."""
    what = mount.kind if mount and mount.kind in _IN_MEMORY else ""
    if device and device.name.startswith(_RAM_DISKS):
        what = device.name
    return f"{what} lies in DRAM, so it is no slower tier. Give a folder on a disk" if what else ""
