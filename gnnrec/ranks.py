"""The processes of one training: one, or as many as torchrun has started, each of which is a rank.

All ranks run the same program in step. What one of them cannot know (files of the run directory, a signal) goes through
the methods here, and so does everything that may wait for another rank: an error of the network, or a rank that has
ended or is too slow, becomes a RankError here and nowhere else.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from gnnrec.errors import ConfigError, GnnrecError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

TIMEOUT = 300.0  # seconds; the first rank writes checkpoints and reads them back while the others wait
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RankError(GnnrecError):
    """Another rank has ended, or did not answer in time."""


class Ranks:
    """A single process, to which everything belongs.

    Attributes:
        rank, size: the number of this process, from 0 on, and of how many.
        local, beside: the number of this process on its machine, from 0 on, and of how many there.
        totalled: bytes that have gone into `total` so far.
        gathered: bytes of what `all_columns`, `all_rows` and `spread` have put together so far.
        doing: what goes on, for messages.
    """

    rank, size, local, beside = 0, 1, 0, 1
    backend: str | None = None
    totalled, gathered = 0, 0
    doing = "the start"

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes the run directory and shows what happens."""
        return self.rank == 0

    def total(self, *parts: torch.Tensor) -> None:
        """Add up float32 tensors over the ranks, in place; every rank gets the same bits."""

    def all_columns(self, part: torch.Tensor) -> torch.Tensor:
        """All columns of a matrix of which every rank has some, in the order of the ranks."""
        return part

    def all_rows(self, part: torch.Tensor) -> torch.Tensor:
        """All rows of a tensor of which every rank has some, in the order of the ranks."""
        return part

    def spread(self, matrix: torch.Tensor, shares: Sequence[Sequence[slice]]) -> None:
        """Complete a matrix of which every rank has the rows that are its share, in place.

        Args:
            matrix: contiguous.
            shares: rows of every rank.
        """

    def first(self, work: Callable[[], T]) -> T | None:
        """Let the first rank do something while the others wait; gives its result there, None elsewhere.

        Raises:
            GnnrecError: that of the first rank, on all of them.
        """
        return work()

    def tell(self, text: str) -> str:
        """The text that the first rank has."""
        return text

    def each(self, work: Callable[[], Any]) -> list[Any]:
        """What `work` gives on every rank, as JSON has it.

        Raises:
            GnnrecError: that of any rank, on all of them.
        """
        return [work()]

    def begin(self, run: str) -> None:
        """Let ranks that torchrun starts again in place of these know that this run is theirs; the first says so."""

    def begun(self, run: str) -> bool:
        """Whether such ranks before these said so, in the same job; the first rank's answer."""
        return False

    def fail(self, error: GnnrecError) -> None:
        """Let those who wait for the first rank to `tell` them something have its error instead."""

    def heeding(self, arrived: list[int]) -> list[int]:
        """The signals to stop at: those that have arrived here, or with several ranks those that all know of, which
        `total` tells them."""
        return arrived


ALONE = Ranks()


class Group(Ranks):
    """The ranks that torchrun has started: they can talk, and once connected exchange tensors. `joined` makes it.

    Args:
        timeout: seconds after which a rank that does not answer is given up.

    Raises:
        RankError: the first rank, or torchrun, did not come.
    """

    def __init__(self, timeout: float) -> None:
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        environment = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        self.rank, self.size, self.local, self.beside = (int(os.environ[name]) for name in environment)
        self.timeout = timeout
        self._said, self._arrived, self._heeded = 0, list[int](), list[int]()
        with self._errors():
            store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
        # torchrun's store outlives ranks that it starts again, with their addresses and what they have said.
        self._job = PrefixStore("gnnrec", store)
        self._store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), self._job)

    def connect(self, *, on_gpu: bool) -> None:
        """Connect them by gloo, and on GPUs, one a rank, by NCCL.

        Raises:
            RankError: not all ranks came.
        """
        # What torch compiles imports this sooner or later. Defaults of its functions are the group that there is then,
        # which would outlive `leave`: its threads abort a process that ends while they let go of a tensor.
        import torch.distributed.nn.functional  # noqa: F401
        from torch import distributed

        self.backend = "nccl" if on_gpu else "gloo"
        with self._errors():
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            given: Any = {"store": self._store, "rank": self.rank, "world_size": self.size}
            with _patient_threads():
                distributed.init_process_group(backend, **given, timeout=timedelta(seconds=self.timeout))
        self._store.set_timeout(timedelta(seconds=self.timeout))

    def total(self, *parts: torch.Tensor) -> None:
        """As Ranks.total, in one call, which also tells all ranks of signals: two numbers more."""
        import torch
        from torch import distributed

        signals = parts[0].new_tensor([float(number in self._arrived) for number in SIGNALS])
        whole = torch.cat([*(part.flatten() for part in parts), signals])
        with self._errors():
            distributed.all_reduce(whole)
        self.totalled += whole.numel() * whole.element_size()
        *sums, signals = whole.split([part.numel() for part in (*parts, signals)])
        for part, found in zip(parts, sums, strict=True):
            part.copy_(found.view_as(part))
        if self._arrived or signals.any():  # on a GPU this waits for what is read next in any case
            self._heeded += [number for number, count in zip(SIGNALS, signals.tolist(), strict=True) if count]

    def all_columns(self, part: torch.Tensor) -> torch.Tensor:
        """As Ranks.all_columns."""
        return self._gathered(part.T).T.contiguous()

    def all_rows(self, part: torch.Tensor) -> torch.Tensor:
        """As Ranks.all_rows."""
        return self._gathered(part)

    def spread(self, matrix: torch.Tensor, shares: Sequence[Sequence[slice]]) -> None:
        """As Ranks.spread. Rows go where they belong: nothing is held beside the matrix."""
        from torch import distributed

        parts = [(rank, matrix[rows]) for rank, share in enumerate(shares) for rows in share if rows.stop > rows.start]
        with self._errors():
            waiting = [distributed.broadcast(part, src=rank, async_op=True) for rank, part in parts]
            for work in waiting:
                work.wait()
        self.gathered += sum(part.nbytes for _, part in parts)

    def _gathered(self, part: torch.Tensor) -> torch.Tensor:
        """Parts may have different lengths, which gloo cannot gather: all are sent as long as the longest is."""
        import torch
        from torch import distributed

        lengths = [torch.zeros(1, dtype=torch.int64, device=part.device) for _ in range(self.size)]
        with self._errors():
            distributed.all_gather(lengths, lengths[0].new_tensor([len(part)]))
        counts = [int(length) for length in lengths]
        sent = part.new_zeros((max(counts), *part.shape[1:]))
        sent[: len(part)] = part
        found = [torch.empty_like(sent) for _ in counts]
        with self._errors():
            distributed.all_gather(found, sent)
        result = torch.cat([x[:count] for x, count in zip(found, counts, strict=True)])
        self.gathered += result.nbytes
        return result

    def first(self, work: Callable[[], T]) -> T | None:
        """As Ranks.first."""
        key, result = self._key(), None

        def done() -> None:
            nonlocal result
            result = work()

        if self.leads:
            self._say(key, done)
        else:
            _value(self._content(key))
        return result

    def tell(self, text: str) -> str:
        """As Ranks.tell."""
        key = self._key()
        if self.leads:
            self._say(key, lambda: text)
        return str(_value(self._content(key)))

    def each(self, work: Callable[[], Any]) -> list[Any]:
        """As Ranks.each."""
        key = self._key()
        with suppress(GnnrecError):  # heard below, as the other ranks hear it
            self._say(f"{key}/{self.rank}", work)
        contents = [self._content(f"{key}/{rank}") for rank in range(self.size)]  # all, before any is raised
        return [_value(content) for content in contents]

    def begin(self, run: str) -> None:
        """As Ranks.begin."""
        if self.leads:
            with self._errors():
                self._job.set(f"begun {run}", "")

    def begun(self, run: str) -> bool:
        """As Ranks.begun."""
        with self._errors():
            found = self.leads and self._job.check([f"begun {run}"])
        return self.tell("yes" if found else "no") == "yes"

    def fail(self, error: GnnrecError) -> None:
        """As Ranks.fail."""

        def work() -> None:
            raise error

        with suppress(GnnrecError):
            self._say(self._key(), work)

    def heeding(self, arrived: list[int]) -> list[int]:
        """As Ranks.heeding."""
        self._arrived, self._heeded = arrived, []
        return self._heeded

    def speaks(self, text: str) -> bool:
        """Whether this rank is the first to say this: of an error that all of them have, one prints it."""
        with self._errors():
            return int(self._store.add(f"said {text}", 1)) == 1

    def leave(self) -> None:
        """End the connections."""
        from torch import distributed

        distributed.destroy_process_group()

    def _key(self) -> str:
        self._said += 1
        return f"word {self._said}"

    def _say(self, key: str, work: Callable[[], Any]) -> None:
        """Do something and let all ranks know what came out, or what error."""
        try:
            content = {"value": work()}
        except GnnrecError as error:
            with self._errors():
                self._store.set(key, json.dumps({"error": [error.found, error.where, error.remedy]}))
            raise
        with self._errors():
            self._store.set(key, json.dumps(content))

    def _content(self, key: str) -> dict[str, Any]:
        with self._errors():
            content: dict[str, Any] = json.loads(self._store.get(key))
        return content

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what gloo, NCCL and the store raise has no narrower type in common
            found = f"a rank of {self.size} has ended, or did not answer within {self.timeout:g} s, at {self.doing}"
            remedy = (
                "See what that rank says. Go on from the last checkpoint with resume=true, with any number of ranks; "
                "where a rank is only slow, raise distributed.timeout_seconds"
            )
            raise RankError(found, where="distributed training", remedy=remedy) from error


@contextmanager
def _patient_threads() -> Iterator[None]:
    """Threads that start within take no core from one that runs, as they otherwise do on waking (SCHED_BATCH).

    gloo's thread that listens to sockets tries a lock again and again that it has interrupted the owner of, for the
    2 to 4 ms until the scheduler looks again: two ranks on two cores waited 2.7 ms for 8 KiB, so they wait 1.2 ms.
    """
    patient = False
    if hasattr(os, "SCHED_BATCH"):  # on Linux
        with suppress(OSError):  # where a sandbox forbids it, it is only slower
            if os.sched_getscheduler(0) == os.SCHED_OTHER:  # another was chosen by somebody
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
                patient = True
    try:
        yield
    finally:
        if patient:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _value(content: dict[str, Any]) -> Any:
    """What a rank has said, or its error."""
    if "error" in content:
        found, where, remedy = content["error"]
        raise GnnrecError(found, where=where, remedy=remedy)
    return content["value"]


def launched() -> bool:
    """Whether torchrun has started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)


def count() -> int | None:
    """How many ranks torchrun has started; None without it."""
    return int(os.environ["WORLD_SIZE"]) if launched() else None


def shows() -> bool:
    """Whether this process is the one to show what happens."""
    return not launched() or os.environ["RANK"] == "0"


_group: Group | None = None


@contextmanager
def joined(timeout: float, device: Callable[[], str]) -> Iterator[Ranks]:
    """The ranks of this training; without torchrun, this process alone.

    Args:
        timeout: seconds after which a rank that does not answer is given up.
        device: gives cpu or cuda, what this rank is to compute on, where there are several.

    Raises:
        GnnrecError: on all ranks: that of any rank's `device`, more ranks than GPUs on a machine, different devices.
        RankError: not all ranks came.
    """
    global _group
    if not launched():
        yield ALONE
        return
    _group = Group(timeout)
    _group.connect(on_gpu=agreed(_group, device) == "cuda")
    yield _group
    _group.leave()  # not after an error: other ranks may still be within a call, and the process ends anyway


def agreed(ranks: Ranks, device: Callable[[], str]) -> str:
    """What all ranks compute on, cpu or cuda; with cuda, the current GPU is then one of this rank's own.

    Args:
        device: as for `joined`.

    Raises:
        GnnrecError: as for `joined`.
    """
    import torch

    host = socket.gethostname()

    def own() -> list[str]:
        try:
            kind = device()
            if kind == "cuda":
                count = torch.cuda.device_count()
                if count < ranks.beside:
                    found = f"is cuda, with {count} of the {ranks.beside} GPUs that the processes need, one each"
                    remedy = f"Start at most {count} on this machine, or use device=cpu"
                    raise ConfigError(found, where="device", remedy=remedy)
                torch.cuda.set_device(ranks.local)
                kind = device()  # another GPU than the one before
        except GnnrecError as error:  # which another machine may print
            raise GnnrecError(error.found, where=f"{error.where} on {host}", remedy=error.remedy) from error
        return [kind, host]

    every = ranks.each(own)
    kinds: set[str] = {kind for kind, _ in every}
    if len(kinds) > 1:
        listed = ", ".join(dict.fromkeys(f"{kind} on {host}" for kind, host in every))
        remedy = "Use device=cpu, or machines whose GPUs can all run the kernels"
        raise ConfigError(f"ranks would compute on different ones: {listed}", where="device", remedy=remedy)
    return kinds.pop()


def speaks(text: str) -> bool:
    """Whether this process is to print an error: of several ranks that have the same, one does. Before they are joined,
    one on each machine."""
    if not launched():
        return True
    if _group is None:
        return os.environ["LOCAL_RANK"] == "0"
    try:
        return _group.speaks(text)
    except RankError:  # the first rank, or torchrun, is gone
        return True
