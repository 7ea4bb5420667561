"""GPUs as tiers, through NVIDIA's management library where Python has it, else through torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gnnrec.memtier.tiers import Tier

_SECTOR = 32  # bytes: "the device coalesces ... into 32-byte transactions", CUDA C++ Best Practices Guide, 10.2.1


def tiers(root: Path) -> list[Tier]:
    """The GPUs, numbered as CUDA_VISIBLE_DEVICES lets torch see them; none without a GPU or without its device files.

    Args:
        root: where /dev is found.
    """
    count = len(list(root.glob("dev/nvidia[0-9]*")))
    try:
        library: Any = import_module("pynvml")
    except ImportError:
        return _by_torch(count) if count else []  # no import of torch, which takes seconds, to learn that there is none
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        return [_unavailable(index, f"NVIDIA's driver says: {error}") for index in range(count)]
    try:
        return _by_library(library)
    finally:
        library.nvmlShutdown()


def _by_library(library: Any) -> list[Tier]:
    handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = handles
    if asked is not None:
        visible = _visible(asked, handles, [library.nvmlDeviceGetUUID(handle) for handle in handles])
        if asked and handles and not visible:
            return [_unavailable(0, f"CUDA_VISIBLE_DEVICES={asked} names none of the {len(handles)} GPUs. Correct it")]
    return [_tier(library, index, handle) for index, handle in enumerate(visible)]


def _visible(asked: str, handles: Sequence[Any], uuids: Sequence[str]) -> list[Any]:
    """The devices that CUDA_VISIBLE_DEVICES names, up to the first that is none, as the CUDA programming guide says."""
    found = []
    for word in (word.strip() for word in asked.split(",")):
        named = [
            handle
            for index, (handle, uuid) in enumerate(zip(handles, uuids))
            if word == str(index) or (word.startswith("GPU-") and uuid.startswith(word))
        ]
        if len(named) != 1:
            break
        found += named
    return found


def _tier(library: Any, index: int, handle: Any) -> Tier:
    try:
        memory = library.nvmlDeviceGetMemoryInfo(handle)
        name, bus = library.nvmlDeviceGetName(handle), library.nvmlDeviceGetPciInfo(handle).busId
    except library.NVMLError as error:
        return _unavailable(index, f"NVIDIA's driver says: {error}")
    facts = {"name": str(name), "PCIe": _link(library, handle)}
    return _gpu(index, memory.total, memory.free, str(bus), facts)


def _link(library: Any, handle: Any) -> str:
    try:
        generation = library.nvmlDeviceGetMaxPcieLinkGeneration(handle)
        return f"generation {generation}, {library.nvmlDeviceGetMaxPcieLinkWidth(handle)} lanes"
    except library.NVMLError as error:
        return f"unavailable: {error}"


def _by_torch(count: int) -> list[Tier]:
    import torch

    if not torch.cuda.is_available():
        problem = "torch sees no GPU. Install a build of torch for this GPU's CUDA version"
        return [_unavailable(index, problem) for index in range(count)]
    found = []
    for index in range(torch.cuda.device_count()):
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:  # CUDA's errors have no type of their own in every version of torch
            found.append(_unavailable(index, f"torch says: {str(error).splitlines()[0]}"))
            continue
        facts = {"name": torch.cuda.get_device_name(index)}
        facts["PCIe"] = "unavailable: nvidia-ml-py is not installed"
        found.append(_gpu(index, total, free, f"cuda:{index}", facts))
    return found


def _gpu(index: int, capacity: int, free: int, where: str, facts: dict[str, str]) -> Tier:
    return Tier(f"gpu{index}", "gpu", capacity, free, _SECTOR, where=where, facts=facts)


def _unavailable(index: int, problem: str) -> Tier:
    return Tier(f"gpu{index}", "gpu", None, None, _SECTOR, unavailable=problem)
