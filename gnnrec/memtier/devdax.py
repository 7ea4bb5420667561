"""Device DAX: memory that a device file maps, and what memory stands behind a node without processors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gnnrec.memtier import sysfs
from gnnrec.memtier.tiers import Tier
from gnnrec.units import in_bytes

LINE = 64  # bytes that processors load and store at a time
_ORIGINS = {"ndbus": "NVDIMM", "dax_region": "CXL", "hmem": "memory that the firmware set aside (hmem)"}


@dataclass(frozen=True)
class _Device:
    """A device of the dax bus.

    Args:
        driver: kmem (its memory belongs to a node), device_dax (a file under /dev), or "".
        origin: what kind of memory it is, from its place among the devices.
    """

    name: str
    size: int | None
    align: int | None
    node: int | None
    driver: str
    origin: str
    folder: Path


def tiers(root: Path) -> list[Tier]:
    """The dax devices that are not a node's memory.

    Args:
        root: where /sys and /dev are found.
    """
    return [_tier(root, device) for device in _devices(root) if device.driver != "kmem"]


def behind(root: Path, node: int) -> str:
    """What memory a node without processors has, in words."""
    found = [
        f"{device.name} through {device.driver}: {device.origin}" for device in _devices(root) if device.node == node
    ]
    cards = sorted(root.glob("sys/bus/cxl/devices/mem[0-9]*"))
    found += [f"{card.name}: CXL" for card in cards if sysfs.number(card / "numa_node") == node]
    return ", ".join(found) or "unknown: no device on the dax or cxl bus names this node"


def _devices(root: Path) -> list[_Device]:
    found = []
    for folder in sorted(root.glob("sys/bus/dax/devices/dax*")):
        driver, parts = folder / "driver", folder.resolve().parts
        origins = [words for start, words in _ORIGINS.items() if any(part.startswith(start) for part in parts)]
        found.append(
            _Device(
                name=folder.name,
                size=sysfs.number(folder / "size"),
                align=sysfs.number(folder / "align"),
                node=sysfs.number(folder / "target_node"),
                driver=driver.resolve().name if driver.exists() else "",
                origin=origins[0] if origins else "unknown memory",
                folder=folder,
            )
        )
    return found


def _tier(root: Path, device: _Device) -> Tier:
    file = root / "dev" / device.name
    return Tier(
        name=device.name,
        kind="devdax",
        capacity=device.size,
        free=device.size,  # nothing keeps account: whoever opens the device has all of it
        granularity=LINE,
        persistent=device.origin == "NVDIMM",
        where=str(file),
        unavailable=_problem(file, device),
        facts={
            "memory": device.origin,
            "mappings": "alignment unknown" if device.align is None else f"multiples of {in_bytes(device.align)}",
            "node": "unknown" if device.node is None else str(device.node),
            "resource": sysfs.told(device.folder / "resource"),
            "driver": device.driver or "none",
        },
    )


def _problem(file: Path, device: _Device) -> str:
    """Why the device cannot be used."""
    if not device.driver:
        return f"no driver is bound to it. Run daxctl reconfigure-device --mode=devdax {device.name}"
    try:
        os.close(os.open(file, os.O_RDWR))
    except OSError as error:
        return f"{file} cannot be opened: {sysfs.why(error)}. Give this user, or this container, the device"
    return ""
