"""What a configuration asks of memory that the workload and the tiers cannot give, whatever the sizes."""

from __future__ import annotations

from gnnrec.config.checks import did_you_mean
from gnnrec.errors import ConfigError
from gnnrec.memtier.choices import Choices


def check(choices: Choices) -> None:
    """Raise a ConfigError for a mode, a panel, a folder or a pin that cannot be had."""
    memory, workload = choices.memory, choices.workload
    if workload.on_gpu:
        _check_gpu(choices)
    elif memory.name == "stream" and not workload.can_stream_state:
        remedy = "Leave out trainer.storage and optimizer.state_dtype; or take memory=dram"
        raise ConfigError("streams float32 alone", where="memory=stream", remedy=remedy)
    if memory.panel is not None and not workload.can_stream:
        found = f"has no effect with model={workload.model.name}, loss={workload.loss.name}"
        remedy = "Panels take model=ngcf or model=lightgcn with model.init=normal, loss=bpr and no optimizer.clip"
        raise ConfigError(found, where="memory.panel", remedy=remedy)
    widths = workload.panel_widths
    if memory.panel is not None and memory.panel not in widths:
        remedy = f"It must be one of {', '.join(map(str, widths))}, which divide model.dim={workload.dim}"
        raise ConfigError(f"is {memory.panel}", where="memory.panel", remedy=remedy)
    if memory.name in ("direct", "stream") and not (choices.stores or choices.in_folder(choices.others)):
        remedy = "Give a folder on it by memory.folder, as gnnrec tiers lists it"
        named = [tier for tier in choices.every if memory.folder in (tier.name, tier.where) and tier.unavailable]
        why = "".join(f": {tier.name} is unavailable, {tier.unavailable}" for tier in named)
        found = f"there is no tier beside the one that computes{why}"
        raise ConfigError(found, where=f"memory={memory.name}", remedy=remedy)
    movable = {demand.name: demand.movable for demand in choices.resident}
    for tensor, name in memory.pins.items():
        _check_pin(choices, tensor, name, movable)


def _check_gpu(choices: Choices) -> None:
    """Refuse what a GPU cannot do, or has no use for."""
    memory = choices.memory
    if memory.name == "direct":
        found, remedy = "has tensors where a GPU's kernels do not reach them", "Take memory=stream, or device=cpu"
        raise ConfigError(found, where="memory=direct", remedy=remedy)
    if memory.name == "stream" and not choices.workload.can_stream:
        found = "streams float32 panels of LightGCN with BPR and Adam alone to a GPU"
        remedy = (
            "Take model=lightgcn, model.init=normal, a model.dim that 16 divides, loss=bpr, and leave out "
            "optimizer.clip, trainer.storage and optimizer.state_dtype; or memory=dram, or device=cpu"
        )
        raise ConfigError(found, where="memory=stream", remedy=remedy)
    if memory.slower is not None and memory.folder is None:
        found, remedy = "has no effect on DRAM, from which a GPU is streamed to", "Give a folder by memory.folder"
        raise ConfigError(found, where="memory.simulate", remedy=remedy)


def _check_pin(choices: Choices, tensor: str, name: str, movable: dict[str, bool]) -> None:
    where = f"memory.pin.{tensor}"
    if tensor not in movable:
        raise ConfigError("there is no such tensor", where=where, remedy=did_you_mean(tensor, list(movable)))
    if name not in choices.tiers:
        why = next((f" ({tier.unavailable})" for tier in choices.every if tier.name == name and tier.unavailable), "")
        remedy = did_you_mean(name, list(choices.tiers))
        raise ConfigError(f"is {name!r}, which is no tier that can be used here{why}", where=where, remedy=remedy)
    if not movable[tensor] and name != choices.home.name:
        able = ", ".join(other for other in movable if movable[other])
        found = f"is {name!r}, but this tensor is always in {choices.home.name}"
        raise ConfigError(found, where=where, remedy=f"What can be pinned elsewhere: {able}")
