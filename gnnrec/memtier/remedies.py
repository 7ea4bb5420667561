"""What would make a plan possible where nothing fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import ceil

from gnnrec.config.memory import CustomTierConfig, MemoryConfig
from gnnrec.memtier.choices import Choices
from gnnrec.memtier.costs import calibrate
from gnnrec.memtier.workload import GROUP, Workload
from gnnrec.units import in_bytes


def remedies(
    choices: Choices, shortfalls: Mapping[str, tuple[int, int]], fits: Callable[[Workload, MemoryConfig], bool]
) -> Iterator[str]:
    """In words, with numbers: first what leaves the results as they are.

    Args:
        choices: that do not suffice.
        shortfalls: what tiers need and have, where it is too little.
        fits: whether another workload, or memory configured in another way, has a plan on the same tiers.
    """
    workload, memory = choices.workload, choices.memory
    needed, _ = shortfalls.get(choices.home.name, (0, 0))
    if needed and memory.limit is not None and choices.could_have(needed):
        yield f"memory.limit={ceil(needed / 2**20)}MiB"
    for tier in choices.uncalibrated:
        if not (choices.mapped and tier.kind == "file"):  # nothing is streamed into files beside an own tier
            yield calibrate(tier)
    for key, without in (
        ("buffer", replace(memory, buffer=None)),
        ("panel", replace(memory, panel=None)),
        ("pin", replace(memory, pin={})),
        ("custom", replace(memory, custom=CustomTierConfig())),
    ):
        if without != memory and fits(workload, without):
            yield f"leave out memory.{key}"
    for mode in ("auto", "stream", "direct"):
        if mode != memory.name and fits(workload, replace(memory, name=mode, panel=None, buffer=None)):
            yield f"memory={mode}"
    smaller = (workload.with_dim(dim) for dim in range((workload.dim - 1) // GROUP * GROUP, 0, -GROUP))
    if fitting := next((w for w in smaller if fits(w, replace(memory, panel=None))), None):
        yield f"model.dim={fitting.dim}"
    smaller = (workload.with_batch(workload.batch >> k) for k in range(1, workload.batch.bit_length()))
    if fitting := next((w for w in smaller if fits(w, memory)), None):
        yield f"trainer.batch_size={fitting.batch}"
    for name, (needed, room) in shortfalls.items():
        yield f"{in_bytes(needed - room)} more in {name}"
