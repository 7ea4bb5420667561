"""Steps of a model that lies whole where it is trained: in DRAM, or on a GPU."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gnnrec import losses
from gnnrec.config import LossConfig, OptimizerConfig, TrainerConfig
from gnnrec.errors import CheckpointError
from gnnrec.kept import Kept
from gnnrec.memtier.account import Actual
from gnnrec.models import LightGCN, Scorer, SimGCL, Trainable
from gnnrec.ops.lightgcn_propagate import FEW
from gnnrec.training import optim, sampler
from gnnrec.training.capture import LARGEST, CapturedStep
from gnnrec.training.checkpoint import whole
from gnnrec.training.placing import Places
from gnnrec.training.streamed import as_rows, fill

AHEAD = 4  # steps that a GPU has before it; with more, a signal would wait for all of them


class Resident:
    """A model, its loss, its batches and its optimiser; steps happen where the model's parameters lie.

    Batches are drawn on the CPU, the same for every device.

    Args:
        model: its parameters are trained in place.
        config: the loop's settings, none of them open.
        loss, optimizer: their settings.
        seed: of the sampler.
        places: of what does not lie beside the model: Adam's moments may lie on another tier, or in files.
    """

    def __init__(
        self,
        model: Trainable,
        config: TrainerConfig,
        loss: LossConfig,
        optimizer: OptimizerConfig,
        seed: int,
        places: Places | None = None,
    ) -> None:
        if config.storage == "bfloat16":
            model.to(torch.bfloat16)
        self.model, places = model, places or Places()
        self.stream = places.stream(list(model.embedding.shape))
        self.as_rows = self.stream is not None
        zeros = places.allocate if places.elsewhere else None
        self.optimizer = optim.build(optimizer, model, zeros, self.stream)
        self.device = model.embedding.device
        plain = losses.build(loss, model.graph, model.similarity == "cosine", self.device)
        batches = sampler.build(loss, model.graph, config, seed, pinned=self.device.type == "cuda")
        self.loss: Callable[..., torch.Tensor] = plain
        self.sampler: sampler.Sampler = batches
        if isinstance(model, SimGCL):
            self.loss = losses.Contrastive(plain, model.views, model.contrast_weight, model.contrast_temperature)
            self.sampler = sampler.WithNodes(batches, model.contrast_nodes)
        # Batches of as many numbers take all nodes.
        self._whole_from = math.inf if self.device.type == "cpu" and _in_part(model, self.loss) else 0
        self.captured = CapturedStep(self.device) if self._captures() else None
        self._started: deque[torch.cuda.Event] = deque()  # the ends of steps that a GPU may not have reached
        self._best: dict[str, torch.Tensor] | None = None
        self._kept = Kept()
        self._steps, self._seconds, self._transferring = 0, 0.0, 0.0

    @property
    def actual(self) -> Actual:
        """What the steps took so far; on a GPU, what it took to launch them."""
        if self.stream is None:
            return Actual(self._steps, self._seconds)
        return Actual(self._steps, self._seconds, self.stream.moved, self._transferring, self.stream.times.waiting)

    def step(self, step: int, lr: float) -> torch.Tensor:
        """The step of this number; gives its loss, a scalar on the device."""
        started = time.perf_counter()
        optim.set_lr(self.optimizer, lr)
        start_step = getattr(self.model, "start_step", None)
        if start_step is not None:  # dropout and noise are functions of the step: training may have begun at any
            start_step(step)
        batch = self.batch(step)
        loss = self.compute(*batch) if self.captured is None else self.captured(self.compute, *batch)
        if self.device.type == "cuda":
            end = torch.cuda.Event()
            end.record(torch.cuda.current_stream(self.device))
            self._started.append(end)
            if len(self._started) > AHEAD:
                self._started.popleft().synchronize()
        self._steps += 1
        self._seconds += time.perf_counter() - started
        if self.stream is not None:
            self._transferring = self.stream.times.transferred()  # what is read ahead between steps belongs to them
        return loss

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        """The batch of a step, on the device."""
        return tuple(part.to(self.device, non_blocking=True) for part in self.sampler.batch(step))

    def compute(self, *batch: torch.Tensor) -> torch.Tensor:
        """Loss, gradient, optimiser. With BPR alone it never waits for a GPU.

        Args:
            batch: as the sampler draws it, on the model's device.

        Returns:
            The loss, a scalar on that device.
        """
        self.optimizer.zero_grad()  # first, so that its memory serves what gradients come from
        with self._kept.serving():
            loss = self._value(*batch)
            loss.backward()
        self.optimizer.step()
        return loss.detach()

    def warm_up(self, step: int) -> float:
        """Compile the kernels on a step whose gradient is thrown away; gives the seconds it took."""
        started = time.perf_counter()
        with self._kept.serving():
            self._value(*self.batch(step)).backward()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def largest(self) -> float:
        """The largest magnitude among the embeddings' numbers."""
        low, high = self.model.embedding.detach().aminmax()
        return float(torch.maximum(low.abs(), high.abs()))  # which, unlike Python's max, keeps a NaN

    def scorer(self) -> Scorer:
        """The model as it is now."""
        self._kept.release()  # rankings take the place of a step's results, and of a stream's buffers
        if self.stream is not None:
            self.stream.close()
        return self.model.scorer()

    def keep_best(self) -> None:
        """Remember the parameters as they are now, on the CPU: nothing needs them on a GPU before the end."""
        self._best = {name: value.to("cpu", copy=True) for name, value in self.model.state_dict().items()}

    def take_best(self) -> None:
        """Go back to the parameters that were remembered, if any were."""
        if self._best is not None:
            self.model.load_state_dict(self._best)

    def state(self) -> dict[str, Any]:
        """Everything of a checkpoint that is a tensor, by GROUP.NAME."""
        self._kept.release()
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, value in (self._best or {}).items():
            tensors[f"best.{name}"] = value
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        if self.stream is not None and f"optimizer.{self._number}.step" in tensors:
            self.stream.drain()
            tensors |= {f"optimizer.{self._number}.{moment.name}": as_rows(moment) for moment in self.stream.matrices}
        return tensors

    def restore(self, groups: Mapping[str, Mapping[str, Any]], where: str) -> None:
        """Take the state of a checkpoint, as `split_groups` has it.

        Raises:
            CheckpointError: it is of another model; `where` it lies.
        """
        if self.stream is not None:
            self.stream.close()
            for moment in self.stream.matrices if f"{self._number}.step" in groups.get("optimizer", {}) else []:
                fill(moment, groups["optimizer"], f"{self._number}.{moment.name}", where)
            streamed = {f"{self._number}.{moment.name}" for moment in self.stream.matrices}
            groups = {
                group: {name: whole(value) for name, value in tensors.items() if name not in streamed}
                for group, tensors in groups.items()
            }
        try:
            self.model.load_state_dict(groups["model"])
        except RuntimeError as error:
            remedy = "Resume with the configuration of that run"
            raise CheckpointError("holds another model", where=where, remedy=remedy) from error
        optimizer = self.optimizer.state_dict()
        for name, value in groups.get("optimizer", {}).items():
            index, _, key = name.partition(".")
            optimizer["state"].setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(optimizer)
        self._best = dict(groups["best"]) if "best" in groups else None

    def close(self, *, drain: bool = True) -> None:
        """End the threads of a stream, by default after everything is written; a step starts new ones."""
        self._kept.release()
        if self.stream is not None:
            self.stream.close(drain=drain)

    @property
    def _number(self) -> int:
        """Of the embedding among the parameters."""
        return next(k for k, parameter in enumerate(self.model.parameters()) if parameter is self.model.embedding)

    def _value(self, *batch: torch.Tensor) -> torch.Tensor:
        """The loss of a batch. Where it has less than FEW of the nodes, embeddings are made of these alone."""
        count = len(self.model.embedding)
        if batch[0].numel() < self._whole_from:
            nodes, loss = self.loss.part(count, *batch)  # type: ignore[attr-defined]
            if len(nodes) < FEW * count:
                return loss(*self.model.rows(nodes, ego=self.loss.takes_ego))  # type: ignore
            self._whole_from = batch[0].numel()  # so large a batch is not asked again
        return self.loss(self.model(), self.model.embedding, *batch)

    def _captures(self) -> bool:
        """Whether steps are captured in a CUDA graph: they must not wait for the GPU, which BPR alone does not, and
        what changes from step to step must lie on it, as seeds of dropout and noise do not."""
        fixed = isinstance(self.loss, losses.BPR) and not hasattr(self.model, "start_step")
        on_gpu = self.device.type == "cuda" and isinstance(self.optimizer, optim.Adam)
        return on_gpu and fixed and sum(x.numel() for x in self.model.parameters()) <= LARGEST


def _in_part(model: Trainable, loss: Callable[..., torch.Tensor]) -> bool:
    """Whether embeddings can be made of a batch's nodes alone: of a plain LightGCN, whose `forward` nobody has changed
    or listens to."""
    hooks = model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model)
    plain = type(model) is LightGCN and model.layer_logits is None and not hooks
    return plain and type(loss) in (losses.BPR, losses.Softmax)
