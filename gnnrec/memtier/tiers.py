"""What a tier of memory is, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field

KINDS = ("gpu", "dram", "numa", "pmem", "devdax", "file")  # numa: a node without processors, CXL or PMEM as memory
CUSTOM = "custom"  # the kind of one that a user's own package has, see `gnnrec.memtier.custom`
PATTERNS = ("read", "write", "mixed", "gather", "scatter", "to_gpu", "from_gpu", "toll")
PROVENANCES = ("measured", "declared", "simulated", "prior")  # prior: what the firmware says (HMAT)


@dataclass(frozen=True)
class Rate:
    """A bandwidth of a tier.

    Args:
        pattern: read, write and mixed are sequential (mixed: half of the bytes each way); gather reads and scatter
            writes whole rows at random; to_gpu and from_gpu copy between this tier and the GPU. toll is no speed of the
            tier: so many bytes of blocks cost kernels that run beside their transfer a second of all processors.
        gb_per_s: 10^9 bytes of payload a second; the median of `count` measurements.
        row_bytes: of gather and scatter, the bytes of a row; 0 for sequential patterns.
        threads: that were at work.
        working_set: bytes that the rows are spread over; 0 where it is far more than the caches hold.
        spread: (largest - smallest) / median of the measurements.
        count: measurements.
        source: where a declared figure stands.
    """

    pattern: str
    gb_per_s: float
    row_bytes: int = 0
    threads: int = 1
    working_set: int = 0
    spread: float = 0.0
    count: int = 1
    source: str = ""


@dataclass(frozen=True)
class Tier:
    """A place that tensors can lie in.

    Args:
        name: unique on this machine, as `memory.pin` takes it: gpu0, dram (dram0, dram1 with several nodes), node2,
            pmem0, dax0.0, the path of a folder, or of code.
        kind: one of KINDS, or CUSTOM.
        capacity, free: bytes; None where the system does not say.
        granularity: bytes of the least that is moved at a time: a cache line, a page, a block.
        persistent: whether contents survive the power.
        where: folder, device or node, as the system names it; "" for dram.
        direct: whether processors reach it by loads and stores, so that kernels run on tensors in it.
        provenance: of `rates`: one of PROVENANCES; printed beside each number.
        rates: what was measured or declared, none before calibration.
        latency_ns: of a dependent load (direct) or of a read of 4 KiB, None where unknown.
        unavailable: why it cannot be used, "" where it can.
        facts: what else was found, for people: huge pages, block device, rotational, file system, HMAT values.
    """

    name: str
    kind: str
    capacity: int | None
    free: int | None
    granularity: int
    persistent: bool = False
    where: str = ""
    direct: bool = True
    provenance: str = "prior"
    rates: tuple[Rate, ...] = ()
    latency_ns: float | None = None
    unavailable: str = ""
    facts: dict[str, str] = field(default_factory=dict)
