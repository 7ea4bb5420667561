"""The verdict on a run: what bounds it according to its records, in numbers, and what would help."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from gnnrec.report.plans import Plan
from gnnrec.report.profile_findings import FASTER, Finding, recorded, stamp
from gnnrec.report.records import Run
from gnnrec.report.tables import best, deviates, epoch_seconds, spent
from gnnrec.units import in_bytes, in_seconds

LARGE = 0.5  # a share of the time that is worth a remark
WAITING = 0.1  # of a step: less is no bound
NEARLY_FULL = 0.9  # of the memory there is

_KINDS = {"rest": "neither training nor evaluation", "evaluation and rest": "evaluation and all else beside training"}


def findings(run: Run) -> list[Finding]:
    """In order of reading: how the run ended, how good it is, what its time went into, what bounds a step, memory."""
    return [_ending(run), *_accuracy(run), *_time(run), *_step(run), *_deviation(run), *recorded(run), *_memory(run)]


def _ending(run: Run) -> Finding:
    planned = run.settings.get("epochs")
    reached = f"{len(run.epochs)} of {planned} epochs" if planned else "in closed form"
    if run.starts > 1:
        reached += f", in {run.starts} starts"
    if run.state == "interrupted":
        return Finding(f"Interrupted after {run.steps} steps, {reached}.", "resume=true goes on from its checkpoint.")
    if run.state == "pruned":
        return Finding(f"Given up after {run.steps} steps, {reached}: others of its search were better by then.")
    if run.state == "unfinished":
        words = f"No end is recorded ({reached}): it is still going on, was killed, or failed."
        return Finding(words, "If it goes on no more: resume=true, from its last checkpoint.")
    return Finding(f"Finished: {reached}.")


def _accuracy(run: Run) -> Iterator[Finding]:
    test = run.metrics.get("test", {})
    shown = [(name, value) for name, value in test.items() if value is not None][:2]
    if shown:
        scores = [f"{name} {value:.4f}{_of_attainable(run, name, value)}" for name, value in shown]
        yield Finding(f"On the test part: {', '.join(scores)}.")
    epoch, planned = best(run), run.settings.get("epochs")
    if epoch is None or epoch.valid.get(run.monitor) is None:
        return
    words = f"Best by validation: epoch {epoch.epoch}, {run.monitor} {epoch.valid[run.monitor]:.4f}"
    if run.state == "finished" and len(run.epochs) == epoch.epoch == planned:
        yield Finding(f"{words}, the last one.", "More trainer.epochs: it may get better still.")
    elif run.state == "finished" and len(run.epochs) < (planned or 0):
        yield Finding(f"{words}; no better since, so it was stopped.")
    else:
        yield Finding(f"{words}.")


def _of_attainable(run: Run, name: str, value: float) -> str:
    most = run.attainable.get(name)
    return f" ({value / most:.0%} of what any model can have at the most)" if most else ""


def _time(run: Run) -> Iterator[Finding]:
    parts = spent(run)
    total = sum(parts.values())
    if not total:
        return
    kind = max(parts, key=lambda name: parts[name])
    helps = {
        "compiling": "The next run with these shapes loads the kernels from the disk.",
        "evaluation": "A larger trainer.eval_every." if run.epochs else "",
    }
    most, into = parts[kind], _KINDS.get(kind, kind)
    words = f"Of {in_seconds(total)}, {in_seconds(most)} ({most / total:.0%}) went into {into}."
    yield Finding(f"{stamp(run)}{words}", helps.get(kind, "") if most > LARGE * total else "")


def _step(run: Run) -> Iterator[Finding]:
    """What a step waits for or works at."""
    if run.plan is None:
        if run.epochs:
            yield Finding(*_unplanned(run))
        return
    plan, account = run.plan, run.account
    name, seconds = plan.binding, plan.resources[plan.binding]
    share = seconds / sum(plan.resources.values())
    words = f"{stamp(run)}By its plan a step is bound by {name}: busy {in_seconds(seconds)} ({share:.0%} of all work)"
    yield Finding(f"{words} in a step of {in_seconds(plan.step_seconds)}.", _helps(plan))
    if account is None or account.step_seconds is None or account.waiting_seconds is None:
        return
    waiting, step = account.waiting_seconds, account.step_seconds
    words = f"{stamp(run)}By its account a step took {in_seconds(step)} and waited {in_seconds(waiting)} of it"
    words += f" ({waiting / step:.0%}) for transfers"
    if account.hidden_share is not None:
        words += f"; {account.hidden_share:.0%} of the shorter of computation and transfers went on beside the other"
    bound = "transfers" if waiting > WAITING * step else "computation"
    helps = f"{FASTER}, or memory=auto with a larger memory.limit." if bound == "transfers" else ""
    yield Finding(f"{words}: bound by {bound}.", helps)


def _unplanned(run: Run) -> tuple[str, str]:
    steps, seconds = run.epochs[-1].step / run.epochs[-1].epoch, median(epoch_seconds(run))
    words = f"The median epoch trains for {in_seconds(seconds)}: {steps:.0f} steps, each over the whole graph."
    fewer = "Fewer steps: a step's cost hardly depends on its batch (experiment=large_batch). " if steps > 1 else ""
    asked = "" if run.profile else "; profile=on records where its time goes"
    return words, f"{fewer}memory=auto plans, and says what bounds a step{asked}."


def _helps(plan: Plan) -> str:
    """Against the binding resource."""
    by_seconds = sorted(plan.tensors, key=lambda tensor: -tensor.predicted_seconds)
    if plan.binding == "sampling":
        return "Fewer negatives (loss.negatives), or more threads."
    if plan.binding == "dense products":
        return "A smaller model.dim, fewer model.layers, or a GPU."
    if plan.binding.endswith("(stream)"):
        streamed = [tensor for tensor in by_seconds if tensor.mode == "stream"]
        moved = in_bytes(sum(tensor.predicted_bytes for tensor in streamed))
        size = in_bytes(sum(tensor.bytes for tensor in streamed))
        return f"{FASTER} ({moved} pass through it in a step), or {size} more memory.limit."
    most = next(tensor for tensor in by_seconds if tensor.tier == plan.binding and tensor.mode == "direct")
    words = f"{most.name} takes {in_seconds(most.predicted_seconds)} of it. "
    if plan.steps_per_epoch > 1:
        words += f"A larger trainer.batch_size passes over it less often than {plan.steps_per_epoch} times an epoch."
    return words.strip()


def _deviation(run: Run) -> Iterator[Finding]:
    plan, account = run.plan, run.account
    if plan is None or account is None or account.step_seconds is None or account.deviation is None:
        return
    words = f"{stamp(run)}A step took {in_seconds(account.step_seconds)} where {in_seconds(plan.step_seconds)} were"
    words += f" predicted ({account.deviation:+.0%})"
    if deviates(plan.step_seconds, account.step_seconds):
        words += ", more than 25 % off"
    cause = f": {account.likely_cause}" if account.likely_cause else ""
    yield Finding(f"{words}{cause}.")


def _memory(run: Run) -> Iterator[Finding]:
    if run.peak_rss_bytes is None:
        return
    room = run.machine.get("memory_limit_bytes") or run.machine.get("ram_bytes")
    words = f"The process took {in_bytes(run.peak_rss_bytes)} of memory at the most"
    if run.plan is not None:
        words += f", of which {in_bytes(sum(run.plan.tier_bytes.values()))} were planned, on all tiers together"
    full = isinstance(room, int) and run.peak_rss_bytes > NEARLY_FULL * room
    if isinstance(room, int):
        words += f"; there are {in_bytes(room)}"
    yield Finding(f"{words}.", "memory=auto with a memory.limit streams what is more." if full else "")
