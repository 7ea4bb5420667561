"""The verdict on the recorded steps of a run: what takes their time, what bounds that, in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gnnrec.report.cells import STAMP
from gnnrec.report.profile_tables import of_measured
from gnnrec.report.profiles import GATHERING, Operator, Profile
from gnnrec.report.records import Run
from gnnrec.training.trace import DRAWS, FUSED, GEMM, IDLE, IO, LOSS, OPTIMIZER, OTHER, REST, SPMM
from gnnrec.units import in_seconds

NAMED = 3  # classes, the longest
NEAR = 0.7  # of the measured bandwidth: what is as near has little left to gain from it

FASTER = "A faster disk (memory.folder) or tier of one's own (memory.custom)"  # whichever transfers go to
_HELPS = {
    SPMM: "A smaller model.dim or fewer model.layers.",
    FUSED: "A smaller model.dim or fewer model.layers.",
    GEMM: "A smaller model.dim.",
    LOSS: "Fewer loss.negatives, or a smaller trainer.batch_size.",
    OPTIMIZER: "A larger trainer.batch_size: its cost is that of a step, whatever the batch. "
    "optimizer.state_dtype=bfloat16 moves fewer bytes.",
    DRAWS: "Fewer loss.negatives, or more threads.",
    IO: f"{FASTER}, or a larger memory.limit.",
    OTHER: "Steps are short beside what Python takes for them: a larger trainer.batch_size.",
}


class Finding(NamedTuple):
    """What was found, and what would help, if anything would."""

    text: str
    helps: str = ""


def stamp(run: Run) -> str:
    """Before numbers that the speed of devices touches."""
    return f"{STAMP} " if run.simulated else ""


def recorded(run: Run) -> Iterator[Finding]:
    """What the profile says of a step."""
    profile = run.profile
    if profile is None:
        return
    if not profile.steps:
        yield Finding("It has a profile without a step.", "More steps: the first three are not recorded.")
        return
    seconds = profile.seconds()
    longest = sorted(seconds, key=lambda kind: -seconds[kind])
    parts = ", ".join(f"{kind} {seconds[kind] / profile.step_seconds:.0%}" for kind in longest[:NAMED])
    words = f"{stamp(run)}A recorded step took {in_seconds(profile.step_seconds)}: {parts}"
    yield Finding(f"{words} (of {profile.steps} steps).", _helps(run, profile, longest[0]))
    yield _bounds(run, profile)
    for operator in profile.operators:
        if of_measured(profile, operator) is not None and profile.is_memory_bound(operator) is not False:
            yield Finding(f"{stamp(run)}{_distance(profile, operator)}")
            return


def _helps(run: Run, profile: Profile, kind: str) -> str:
    """Against the class that takes most of a step."""
    if kind == OTHER:
        python = (REST,) if profile.moved else (REST, IDLE)  # a GPU may wait for files as well
        seconds = sum(operator.seconds for operator in profile.operators if operator.name in python)
        return _HELPS[kind] if seconds > profile.seconds()[kind] / 2 else ""
    if kind == SPMM and run.settings.get("storage") == "float32":
        return f"trainer.storage=bfloat16 halves its bytes. {_HELPS[kind]}"
    return _HELPS.get(kind, "")


def _bounds(run: Run, profile: Profile) -> Finding:
    """How much of a step waits for memory by the measured rates."""
    if not any(ceiling.read or ceiling.gather for ceiling in profile.ceilings):
        words = "How much of a step is bound by memory is not known: no bandwidth was measured before it was recorded."
        return Finding(words, "gnnrec calibrate, then a run with profile=on.")
    if profile.products is None:
        return Finding("How much of a step is bound by memory is not known: no rate of dense products was measured.")
    shares = {True: 0.0, False: 0.0, None: 0.0}
    for operator in profile.operators:
        shares[profile.is_memory_bound(operator)] += operator.share
    words = f"{stamp(run)}Bound by memory: {shares[True]:.0%} of a step; by computation: {shares[False]:.0%}"
    helps = f"Memory of twice the bandwidth takes at most {shares[True] / 2:.0%} off a step." if shares[True] else ""
    return Finding(f"{words}; {shares[None]:.0%} is of what has no count of bytes and operations.", helps)


def _distance(profile: Profile, operator: Operator) -> str:
    """How far an operator is from the measured bandwidth."""
    share, rate = of_measured(profile, operator), profile.bandwidth(operator.kind)
    assert share is not None
    assert rate is not None
    assert operator.gb_per_s is not None
    row = max(ceiling.row_bytes for ceiling in profile.ceilings)
    way = f"gathering rows of {row} bytes" if operator.kind in GATHERING else "reading in order"
    words = f"{operator.label} moves {operator.gb_per_s:.3g} GB/s, {_times(share)} the"
    words += f" {rate:.3g} GB/s that were measured for {way}"
    if share > 1:
        return f"{words}: caches hold what memory would have to deliver again."
    if share >= NEAR:
        return f"{words}: that is the memory's rate, and only fewer bytes, or faster memory, make it faster."
    return f"{words}: {1 - share:.0%} of the bandwidth is not used."


def _times(share: float) -> str:
    return f"{share:.1f} times" if share > 1 else f"{share:.0%} of"
