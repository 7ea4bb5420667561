"""In the guest: makes the devices out of NVDIMMs, runs pytest, notes its exit code. See run.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

SYSTEM = {"proc": "/proc", "sysfs": "/sys", "devtmpfs": "/dev", "tmpfs": "/dev/shm"}
ND, DAX = Path("/sys/bus/nd"), Path("/sys/bus/dax")


def main(scratch: Path) -> None:
    """Do the job that run.py left in `scratch`; leaves pytest's exit code there."""
    started = time.monotonic()
    for kind, folder in SYSTEM.items():
        Path(folder).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", kind, kind, folder], check=True)
    job = json.loads((scratch / "job.json").read_text())
    hardware = devices()
    print(*(f"{name}={value}" for name, value in hardware.items()), flush=True)
    os.environ |= job["environment"] | hardware | {"TERM": "dumb"}
    tests = subprocess.run([sys.executable, "-m", "pytest", "-rs", "--timeout=0", *job["arguments"]], cwd=job["folder"])
    (scratch / "exit-code").write_text(str(tests.returncode))
    print(f"{time.monotonic() - started:.0f} s in the guest", flush=True)


def devices() -> dict[str, str]:
    """Make what run.py promises; returns the variables that tell tests of it."""
    regions = sorted((ND / "devices").glob("region*"), key=lambda region: int((region / "target_node").read_text()))
    files, mapping, memory = regions  # the last one is on a node of its own; the order of the others does not matter
    node = numa_node(mappable(memory, "dax", "dax_pmem"))
    device = mappable(mapping, "dax", "dax_pmem")
    folder = file_system(mappable(files, "pfn", "nd_pmem"))
    return {"GNNREC_TEST_FSDAX": folder, "GNNREC_TEST_DEVDAX": f"/dev/{device}", "GNNREC_TEST_NODE": node}


def mappable(region: Path, kind: str, driver: str) -> str:
    """Give an NVDIMM, so far a block device whose pages cannot be mapped, to a driver that maps them.

    Args:
        region: the NVDIMM's folder in sysfs.
        kind: pfn (for file systems) or dax (for a device that is mapped itself).
        driver: the one for `kind`.

    Returns:
        The new device's name. It is what `ndctl create-namespace --mode fsdax` or `devdax` gives.

    Source: drivers/nvdimm/pfn_devs.c and dax_devs.c of Linux.
    """
    namespace = region.name.replace("region", "namespace") + ".0"
    (ND / "drivers/nd_pmem/unbind").write_text(namespace)
    name = (region / f"{kind}_seed").read_text().strip()
    for attribute, value in {"mode": "ram", "uuid": str(uuid.uuid4()), "namespace": namespace}.items():
        (region / name / attribute).write_text(value)
    (ND / "drivers" / driver / "bind").write_text(name)
    return name


def file_system(device: str) -> str:
    """Make one on persistent memory and mount it without the page cache; returns its folder."""
    (block,) = (ND / "devices" / device / "block").iterdir()
    subprocess.run(["mkfs.ext4", "-q", f"/dev/{block.name}"], check=True)
    subprocess.run(["mount", "-o", "dax=always", f"/dev/{block.name}", "/mnt"], check=True)
    return "/mnt"


def numa_node(device: str) -> str:
    """Hand a dax device's memory to the kernel's allocator; returns the node it has joined."""
    (DAX / "drivers/device_dax/unbind").write_text(device)
    (DAX / "drivers/kmem/new_id").write_text(device)
    return (DAX / "devices" / device / "target_node").read_text().strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
