"""Runs tests in a virtual machine with memory that this one may lack: `make test-vm`, or `run.py [PYTEST ARGUMENTS]`.

QEMU emulates three NVDIMMs and the processor too: KVM may be there and not work where this machine is a virtual one
itself. In the guest they are

    a file system on persistent memory, mounted with `dax`, where MAP_SYNC succeeds   GNNREC_TEST_FSDAX=its folder
    persistent memory as a device to be mapped                                        GNNREC_TEST_DEVDAX=its path
    a NUMA node without processors, by the kernel's kmem driver and with an HMAT      GNNREC_TEST_NODE=its number

The guest runs Debian's kernel on the files of this machine, mounted read-only: checkout and environment are those that
run.py was started with, and what tests write stays in the guest's memory. `init` mounts them; `guest.py` makes the
devices, runs pytest and switches off. Packages that are not installed here are not installed: apt-get fetches them,
without privileges, and they are unpacked into $XDG_CACHE_HOME/gnnrec/vm (0.5 GiB), where the next run also finds what
numba has compiled for the guest.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "gnnrec" / "vm"
KERNELS = CACHE / "kernels"  # what numba has compiled for the guest's processor, for the next run
PACKAGES = ("qemu-system-x86", "linux-image-amd64", "busybox-static")
DRIVERS = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "nfit", "nd_pmem", "dax_pmem", "device_dax", "kmem", "ext4")
MODULES = (*DRIVERS, "crc32c_generic")  # the last for ext4, which does not say that it needs it
TESTS = ("tests/vm", "tests/test_discover.py", "tests/test_placement.py")
PASSED_ON = ("GNNREC_DATA", "HOME", "PATH", "XDG_CACHE_HOME")  # the rest may suit this processor and not the guest's
NVDIMMS = {"fsdax": 0, "devdax": 0, "kmem": 1}  # and their NUMA nodes; node 1 has nothing else
NVDIMM_BYTES = 1 << 30  # of a sparse file each, which takes room where the guest writes
HMAT = ((96, 69 << 30), (244, 48 << 30))  # what the firmware says of each node: ns of latency, bytes/s
MEMORY = "3G"
LIMIT_SECONDS = 3600


def main(arguments: list[str]) -> int:
    """Run pytest in the guest, its output on this terminal.

    Args:
        arguments: of pytest, with paths from the root of the checkout; none: the tests about tiers of memory.

    Returns:
        pytest's exit code; 1 where the guest did not get that far.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # an exception ends QEMU and removes the files
    packages = unpacked()
    KERNELS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gnnrec-vm-") as name:
        scratch = Path(name).resolve()
        environment = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
        environment["NUMBA_CACHE_DIR"] = str(KERNELS)
        job = {"arguments": arguments or TESTS, "folder": str(HERE.parent.parent), "environment": environment}
        (scratch / "job.json").write_text(json.dumps(job))
        try:
            subprocess.run(
                qemu(packages, scratch),
                env=os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, packages.glob("**/lib/x86_64-linux-gnu")))},
                stdin=subprocess.DEVNULL,
                timeout=LIMIT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            sys.exit(f"the virtual machine was ended after {LIMIT_SECONDS} s")
        code = scratch / "exit-code"
        return int(code.read_text()) if code.exists() else 1


def unpacked() -> Path:
    """The folder with the contents of PACKAGES and of what they need, less what is installed on this machine."""
    root = CACHE / "root"
    if root.exists():
        return root
    shutil.rmtree(CACHE, ignore_errors=True)
    archives, partly = CACHE / "archives", CACHE / "partly"
    (archives / "partial").mkdir(parents=True)
    options = {"Debug::NoLocking": 1, "APT::Sandbox::User": "", "Dir::Cache::archives": archives}
    command = ["apt-get", "--yes", "--quiet=2", "--download-only", "--no-install-recommends", "install", *PACKAGES]
    try:
        subprocess.run([*command, *(f"--option={name}={value}" for name, value in options.items())], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{error}\nNeeds Debian's packages {', '.join(PACKAGES)}: install them, or try after apt-get update")
    for archive in archives.glob("*.deb"):
        subprocess.run(["dpkg", "--extract", archive, partly], check=True)
    shutil.rmtree(archives)
    partly.rename(root)
    return root


def found(packages: Path, *patterns: str) -> Path:
    """The last file that matches a pattern among what was unpacked or, after that, installed."""
    for root in (packages, Path("/")):
        for pattern in patterns:
            if files := sorted(root.glob(pattern)):
                return files[-1]
    sys.exit(f"Neither {packages} nor this machine has {' or '.join(patterns)}: remove {packages}, it is made anew")


def qemu(packages: Path, scratch: Path) -> list[str]:
    """The command that starts the guest."""
    kernel = found(packages, "boot/vmlinuz-*-amd64")
    command = ["setpriv", "--pdeathsig", "KILL", str(found(packages, "usr/bin/qemu-system-x86_64"))]
    command += [part for folder in ("qemu", "seabios") for part in ("-L", str(packages / "usr/share" / folder))]
    command += ["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]
    command += ["-machine", "q35,nvdimm=on,hmat=on", "-accel", "tcg", "-cpu", "max", "-smp", "2"]
    command += ["-m", f"{MEMORY},slots={len(NVDIMMS)},maxmem=16G"]
    command += ["-object", f"memory-backend-ram,id=memory,size={MEMORY}"]
    command += ["-numa", "node,nodeid=0,cpus=0-1,memdev=memory", "-numa", "node,nodeid=1,initiator=0"]
    for node, (nanoseconds, bytes_per_s) in enumerate(HMAT):
        hmat = f"hmat-lb,initiator=0,target={node},hierarchy=memory"
        command += ["-numa", f"{hmat},data-type=access-latency,latency={nanoseconds}"]
        command += ["-numa", f"{hmat},data-type=access-bandwidth,bandwidth={bytes_per_s}"]
    for name, node in NVDIMMS.items():
        backend = f"memory-backend-file,id={name},share=on,size={NVDIMM_BYTES},mem-path={scratch / name}"
        command += ["-object", backend, "-device", f"nvdimm,memdev={name},node={node}"]
    for tag, shared in {"host": "/,readonly=on,multidevs=remap", "scratch": scratch, "kernels": KERNELS}.items():
        command += ["-virtfs", f"local,mount_tag={tag},security_model=none,path={shared}"]
    command += ["-kernel", str(kernel), "-initrd", str(initial_ram_disk(packages, kernel, scratch))]
    return [*command, "-append", "console=ttyS0 loglevel=3 panic=-1 memhp_default_state=online_movable"]


def initial_ram_disk(packages: Path, kernel: Path, scratch: Path) -> Path:
    """An archive of busybox, the kernel's MODULES and `init`."""
    tree, archive = scratch / "tree", scratch / "initrd"
    for folder in ("bin", "dev", "host", "modules", "root", "written"):
        (tree / folder).mkdir(parents=True)
    busybox = Path(shutil.copy(found(packages, "bin/busybox", "usr/bin/busybox"), tree / "bin/busybox"))
    shutil.copy(HERE / "init", tree)
    settings = {"PYTHON": sys.executable, "GUEST": HERE / "guest.py", "SCRATCH": scratch, "KERNELS": KERNELS}
    (tree / "settings").write_text("".join(f"{name}={shlex.quote(str(value))}\n" for name, value in settings.items()))

    version = kernel.name.removeprefix("vmlinuz-")
    index = found(packages, f"lib/modules/{version}/modules.builtin", f"usr/lib/modules/{version}/modules.builtin")
    modules = with_dependencies(index.parent)
    for name, content in modules.items():
        (tree / "modules" / name).write_bytes(content)
    (tree / "modules/order").write_text("".join(f"{name}\n" for name in modules))

    names = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
    with archive.open("wb") as file:
        subprocess.run([busybox, "cpio", "-o", "-H", "newc"], cwd=tree, input=names.encode(), stdout=file, check=True)
    return archive


def with_dependencies(folder: Path) -> dict[str, bytes]:
    """MODULES and the modules that these need, each after those it needs: name -> what is to be loaded."""

    def name_of(file: str) -> str:
        return Path(file).name.split(".ko")[0].replace("-", "_")

    files = {name_of(path.name): path for path in folder.rglob("*.ko*")}
    built_in = {name_of(line) for line in (folder / "modules.builtin").read_text().split()}
    modules: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in modules or name in built_in:
            return
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        needed = re.search(rb"\0depends=([^\0]+)", content)
        for other in needed[1].decode().split(",") if needed else ():
            add(name_of(other))
        modules[name] = content

    for name in MODULES:
        add(name)
    return modules


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
