"""A plan: where everything goes, and what a step then takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gnnrec.memtier.ring import Ring
from gnnrec.units import in_bytes


@dataclass(frozen=True)
class Speed:
    """A bandwidth that a plan counts on: 10^9 bytes of payload a second, what that rests on, and its sources."""

    tier: str
    pattern: str
    row_bytes: int
    working_set: int
    gb_per_s: float
    basis: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """Where a tensor goes. mode: "direct", the kernels work on it there, or "stream". moved: bytes in a step."""

    name: str
    bytes: int
    tier: str
    mode: str
    moved: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Where everything goes, and what a step then takes.

    Args:
        mode: "dram": all where the computation is; "direct": some tensors elsewhere, as they lie; "stream": embeddings
            and state in files, or in DRAM beside a GPU, by panels.
        panel: columns of a panel; None unless streamed; all of them where the optimizer's state alone is.
        ring: staging buffers and threads of the stream; None unless streamed.
        placements: of every tensor and buffer.
        resources: seconds of a step by what is busy; what is streamed goes on beside the rest.
        step_seconds: of a step.
        steps_per_epoch: steps.
        threads: of the kernels.
        speeds: the bandwidths that it counts on.
        simulated: whether a device that is not there is among them.
    """

    mode: str
    panel: int | None
    ring: Ring | None
    placements: tuple[Placement, ...]
    resources: dict[str, float]
    step_seconds: float
    steps_per_epoch: int
    threads: int
    speeds: tuple[Speed, ...]
    simulated: bool = False

    @property
    def buffer_bytes(self) -> int:
        """Of the staging buffers; 0 unless streamed."""
        return 0 if self.ring is None else self.ring.buffer_bytes

    @property
    def epoch_seconds(self) -> float:
        """Of an epoch's steps, without evaluation."""
        return self.step_seconds * self.steps_per_epoch

    @property
    def binding(self) -> str:
        """The resource that is busy longest."""
        return max(self.resources, key=lambda name: self.resources[name])

    def tier_bytes(self) -> dict[str, int]:
        """Bytes of tensors and buffers by tier."""
        total: dict[str, int] = {}
        for placement in self.placements:
            total[placement.tier] = total.get(placement.tier, 0) + placement.bytes
        return total

    def place(self, name: str) -> Placement:
        """Of the tensor with this name."""
        return next(placement for placement in self.placements if placement.name == name)

    def rows(self) -> list[dict[str, Any]]:
        """A table: a row a tensor."""
        total = sum(placement.seconds for placement in self.placements) or 1.0
        return [
            {
                "tensor": placement.name,
                "bytes": in_bytes(placement.bytes),
                "tier": placement.tier,
                "mode": placement.mode,
                "GB per step": f"{placement.moved / 1e9:.3g}",
                "seconds per step": f"{placement.seconds:.3g}",
                "share": f"{placement.seconds / total:.1%}",
            }
            for placement in self.placements
        ]

    def to_dict(self) -> dict[str, Any]:
        """For `plan.json`, units in the names."""
        stamp = {"simulated": "SIMULATED"} if self.simulated else {}
        return stamp | {
            "mode": self.mode,
            "panel_columns": self.panel,
            "buffer_bytes": self.buffer_bytes,
            "transfers": None if self.ring is None else self.ring.transfers(),
            "tensors": [_with_units(placement) for placement in self.placements],
            "tier_bytes": self.tier_bytes(),
            "resource_seconds_per_step": self.resources,
            "binding_resource": self.binding,
            "seconds_per_step": self.step_seconds,
            "seconds_per_epoch": self.epoch_seconds,
            "steps_per_epoch": self.steps_per_epoch,
            "threads": self.threads,
            "rates": [_with_units(speed) for speed in self.speeds],
        }


def _with_units(record: Placement | Speed) -> dict[str, Any]:
    """The fields, with units in their names."""
    units = {"moved": "bytes_per_step", "seconds": "seconds_per_step", "working_set": "working_set_bytes"}
    return {units.get(name, name): value for name, value in asdict(record).items()}
