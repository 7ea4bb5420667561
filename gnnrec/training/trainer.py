"""The training loop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import torch

from gnnrec import device as devices
from gnnrec.config import BPRConfig, LossConfig, OptimizerConfig, TrainerConfig
from gnnrec.errors import CheckpointError, ConfigError, GnnrecError, Interrupted, Pruned
from gnnrec.memtier.account import Actual, by_tier
from gnnrec.models import LightGCN, Ranker, StreamedLightGCN, StreamedNGCF, Trainable
from gnnrec.models import Streamed as StreamedModel
from gnnrec.ranks import ALONE, Ranks
from gnnrec.training import checkpoint, distributed, sampler
from gnnrec.training.distributed import ColumnParallel
from gnnrec.training.evaluate import Evaluator
from gnnrec.training.placing import Places
from gnnrec.training.resident import Resident
from gnnrec.training.runlog import Progress, RunLog
from gnnrec.training.scaling import scaled
from gnnrec.training.schedule import learning_rate
from gnnrec.training.streamed import Streamed
from gnnrec.training.streamed_ngcf import StreamedLayers

if TYPE_CHECKING:
    from gnnrec.training.profile import StepProfile

LIMIT = 1e15  # of an embedding's entries: their products are still finite in float32
READ_SECONDS = 0.25  # between two looks at a GPU's losses: it has nothing to do when they end


class DivergedError(GnnrecError):
    """The loss or the embeddings are no usable numbers any more."""


@dataclass
class Position:
    """Where training is, and what it has seen; everything of a checkpoint that is no tensor."""

    step: int = 0
    epoch: int = 0
    loss_sum: float = 0.0  # of this epoch's steps so far
    best: dict[str, float] = field(default_factory=dict)  # validation metrics of the best epoch
    best_epoch: int = 0
    worse: int = 0  # evaluations since the best one
    finished: bool = False
    train_seconds: float = 0.0
    compile_seconds: float = 0.0
    eval_seconds: float = 0.0

    def epochs_left(self, epochs: int, patience: int) -> int:
        """How many a training of so many still has from here: none once validation has stopped it."""
        return max(epochs - self.epoch, 0) if self.worse < patience else 0


class Learner(Protocol):
    """A model with everything that changes it, wherever that lies: `Resident`, `Streamed`, `StreamedLayers` or
    `ColumnParallel`."""

    sampler: sampler.Sampler
    device: torch.device

    as_rows: bool  # whether it takes the matrices of a checkpoint as `Rows`

    @property
    def actual(self) -> Actual: ...
    def step(self, step: int, lr: float) -> torch.Tensor: ...
    def warm_up(self, step: int) -> float: ...
    def largest(self) -> float: ...
    def scorer(self) -> Ranker: ...
    def keep_best(self) -> None: ...
    def take_best(self) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, groups: Mapping[str, Mapping[str, Any]], where: str) -> None: ...
    def close(self, *, drain: bool = True) -> None: ...


class Trainer:
    """Trains a model, evaluates now and then, keeps the best, writes checkpoints.

    A GPU always has the next steps before it, and its losses are looked at a few times a second.

    Args:
        model: the model; its parameters are trained in place.
        config: the loop's settings.
        loss: the loss's settings.
        optimizer: the optimiser's settings.
        seed: of the sampler.
        valid: ranks the validation part; None trains all epochs and keeps the last.
        checkpoints: the folder for checkpoints; None writes none.
        log: is told what happens; None tells nobody.
        resume: go on from the newest checkpoint in `checkpoints`.
        places: where its tensors lie, if not beside the model.
        profile: records steps.
        hopeless: is told epoch and monitored metric of each validation; where it says so, the training is given up.
        ranks: that train together; with several, the model is a LightGCN on this rank's columns.
        columns: these.
    """

    def __init__(
        self,
        model: Trainable | StreamedModel,
        config: TrainerConfig,
        loss: LossConfig,
        optimizer: OptimizerConfig,
        *,
        seed: int = 0,
        valid: Evaluator | None = None,
        checkpoints: Path | None = None,
        log: RunLog | None = None,
        resume: bool = False,
        places: Places | None = None,
        profile: StepProfile | None = None,
        hopeless: Callable[[int, float], bool] | None = None,
        ranks: Ranks = ALONE,
        columns: slice | None = None,
    ) -> None:
        config, loss = scaled(config, loss, model.graph)
        assert config.epochs is not None
        self.model, self.config, self.epochs, self.lr = model, config, config.epochs, optimizer.lr
        self._rate = 0.0  # of the latest step
        self.learner: Learner
        self.ranks, self.columns = ranks, columns
        if columns is not None:
            assert isinstance(model, LightGCN)
            assert isinstance(loss, BPRConfig)
            self.learner = ColumnParallel(model, config, loss, optimizer, seed, ranks)
        elif isinstance(model, StreamedLightGCN):
            assert isinstance(loss, BPRConfig)
            self.learner = Streamed(model, config, loss, optimizer, seed)
        elif isinstance(model, StreamedNGCF):
            assert isinstance(loss, BPRConfig)
            self.learner = StreamedLayers(model, config, loss, optimizer, seed)
        else:
            self.learner = Resident(model, config, loss, optimizer, seed, places)
        self.sampler = self.learner.sampler
        self.read_seconds = READ_SECONDS if self.learner.device.type == "cuda" else 0.0
        self.valid, self.checkpoints, self.log, self.profile = valid, checkpoints, log or RunLog(), profile
        self.hopeless = hopeless
        self._plan = None if places is None else places.plan
        self.log.event("settings", trainer=asdict(config), loss=asdict(loss))  # none of them open any more
        self.position = Position()
        self._saved: tuple[int, Path] | None = None  # step and place of the newest checkpoint of this process
        # A run that ended before its first checkpoint starts again.
        if resume and checkpoints is not None and checkpoint.latest(checkpoints) is not None:
            with self._memory_errors():
                self._restore(checkpoints)

    def fit(self) -> Position:
        """Train to the last epoch, or until validation stops getting better; then the model holds the best parameters.

        Raises:
            Interrupted: by SIGINT or SIGTERM, after the step in progress and a checkpoint.
            DivergedError: the loss became NaN or infinite; earlier checkpoints are intact.
            StorageError: a checkpoint could not be written.
            DeviceMemoryError: no room on the GPU; earlier checkpoints are intact.
            Pruned: it was given up.
        """
        position, epochs = self.position, self.epochs
        left = epochs * self.sampler.steps_per_epoch - position.step
        with (
            _closed(self.learner),
            nullcontext() if self.profile is None else self.profile.watch(self.learner, left),
            self._memory_errors(),
            _caught_signals(partial(self.log.phase, "stopping")) as arrived,
        ):
            caught = self.ranks.heeding(arrived)
            if not position.finished:
                self.log.phase("loading")
                self._warm_up()
            while not (caught or position.finished or position.epoch >= epochs):
                self._train_epoch(caught)
                if not caught:
                    self._end_epoch()
            if caught:
                path = self._save()
                self.log.event("interrupted", signal=caught[0], step=position.step)
                raise Interrupted(caught[0], path)
        self.learner.take_best()
        return position

    def _train_epoch(self, caught: list[int]) -> None:
        """The rest of this epoch's steps, or up to a signal."""
        self.log.phase("training")
        position, started = self.position, time.perf_counter()
        stop, read = (position.epoch + 1) * self.sampler.steps_per_epoch, started
        losses: list[torch.Tensor] = []
        for step in range(position.step, stop):
            losses.append(self._step(step))
            if caught or step + 1 == stop or time.perf_counter() - read >= self.read_seconds:
                self._read(losses)
                losses, read = [], time.perf_counter()
                if caught:
                    break
        position.train_seconds += time.perf_counter() - started

    def _read(self, losses: list[torch.Tensor]) -> None:
        """Take the losses of the latest steps into the position; waits until a GPU has done them."""
        position, loss = self.position, 0.0
        for loss in torch.stack(losses).tolist():
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss}")
            position.loss_sum += loss
            position.step += 1
        self.log.steps(
            Progress(
                step=position.step,
                steps=self.epochs * self.sampler.steps_per_epoch,
                epoch=position.epoch,
                epochs=self.epochs,
                loss=loss,
                best=position.best,
                best_epoch=position.best_epoch,
                moved={} if self._plan is None else by_tier(self._plan, self.learner.actual.moved),
            )
        )

    def _diverged(self, found: str) -> DivergedError:
        position = self.position
        return DivergedError(
            f"{found} at step {position.step} (epoch {position.epoch + 1}) with learning rate {self._rate:.4g}",
            remedy="Train anew with a lower optimizer.lr or model.init_std. Earlier checkpoints are as they were",
        )

    def _memory_errors(self) -> AbstractContextManager[None]:
        width, batch = self.model.embedding.shape[1], self.config.batch_size
        lower = f"trainer.batch_size (now {batch}) or model.dim (now {width})"
        return devices.memory_errors("training", lower, self.learner.device)

    def _step(self, step: int) -> torch.Tensor:
        self._rate = learning_rate(self.config, self.lr, step, self.epochs * self.sampler.steps_per_epoch)
        if self.profile is not None:
            return self.profile.step(self.learner, step, self._rate)
        return self.learner.step(step, self._rate)

    def _end_epoch(self) -> None:
        """Log, evaluate where it is time, decide whether to stop, write a checkpoint where it is time."""
        position, config = self.position, self.config
        largest = self.learner.largest()
        if not largest < LIMIT:
            raise self._diverged(f"the largest entry of the embeddings is {largest:.3g}")
        if self.profile is not None:
            self.profile.sample()
        position.epoch += 1
        loss = position.loss_sum / self.sampler.steps_per_epoch
        position.loss_sum = 0.0
        metrics: dict[str, float] = {}
        last = position.epoch == self.epochs
        if self.valid is not None and (last or position.epoch % config.eval_every == 0):
            metrics = self._evaluate(self.valid)
        position.finished = last or position.worse >= config.patience
        self.log.event(
            "epoch",
            epoch=position.epoch,
            step=position.step,
            loss=loss,
            train_seconds=position.train_seconds,
            valid=metrics,
        )
        if position.finished and not last:
            self.log.event("stopped", step=position.step, evaluations=position.worse)
        if metrics and not position.finished and self.hopeless is not None:
            self._give_up_where(self.hopeless(position.epoch, metrics[config.monitor]))
        if position.finished or position.epoch % config.checkpoint_every == 0:
            self._save()

    def _give_up_where(self, hopeless: bool) -> None:
        if hopeless:
            position, monitor = self.position, self.config.monitor
            self.log.event("pruned", epoch=position.epoch, step=position.step)
            raise Pruned(f"given up after epoch {position.epoch}, with a {monitor} of {position.best[monitor]:.4f}")

    def _evaluate(self, valid: Evaluator) -> dict[str, float]:
        """Validate, and keep the parameters if they are the best so far."""
        self.log.phase("validating")
        position, monitor, started = self.position, self.config.monitor, time.perf_counter()
        metrics = valid(self.learner.scorer())
        position.eval_seconds += time.perf_counter() - started
        if monitor not in metrics:
            raise ConfigError(f"is {monitor!r}", where="trainer.monitor", remedy=f"Known are: {', '.join(metrics)}")
        if not position.best or metrics[monitor] > position.best[monitor]:
            position.best, position.best_epoch, position.worse = metrics, position.epoch, 0
            self.learner.keep_best()
        else:
            position.worse += 1
        return metrics

    def _warm_up(self) -> None:
        """Compile the kernels, so that their time can be told apart."""
        seconds = self.learner.warm_up(self.position.step)
        self.position.compile_seconds += seconds
        self.position.train_seconds += seconds

    def _save(self) -> Path | None:
        if self.checkpoints is None:
            return None
        if self._saved is not None and self._saved[0] == self.position.step:
            return self._saved[1]
        self.log.phase("saving")
        save = checkpoint.save if self.columns is None else partial(distributed.save, self.ranks, self.columns)
        path = save(self.checkpoints, self.position.step, self.learner.state(), asdict(self.position))
        self._saved = self.position.step, path
        return path

    def _restore(self, folder: Path) -> None:
        saved, warnings = checkpoint.load_latest(folder, as_rows=self.learner.as_rows, columns=self.columns)
        for warning in warnings:
            print(f"warning: {warning}", flush=True)
        self.learner.restore(split_groups(saved.tensors), str(saved.path))
        try:
            self.position = Position(**saved.state)
        except TypeError as error:
            raise CheckpointError(f"holds another state: {error}", where=str(saved.path)) from error
        if self.position.epochs_left(self.epochs, self.config.patience):  # more than the finished run had
            self.position.finished = False


def split_groups(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """A checkpoint's tensors by group ("model", "best", "optimizer") and name."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        group, _, key = name.partition(".")
        groups.setdefault(group, {})[key] = value
    return groups


@contextmanager
def _closed(learner: Learner) -> Iterator[None]:
    """Close the learner at the end; after an error without waiting for what it still wants to write."""
    done = False
    try:
        yield
        done = True
    finally:
        learner.close(drain=done)


@contextmanager
def _caught_signals(on_signal: Callable[[], None]) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of ending the process; the second SIGINT ends it at once."""
    caught: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        if caught and signum == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(signum)
        on_signal()

    try:
        before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are not ours to take
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
