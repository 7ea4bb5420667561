"""Estimators: fit and recommend in two calls, around a model and the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import pandas as pd

from gnnrec import device as devices
from gnnrec import models, recommend
from gnnrec.config import (
    BPRConfig,
    GFCFConfig,
    LightGCNConfig,
    LossConfig,
    ModelConfig,
    NGCFConfig,
    OptimizerConfig,
    SimGCLConfig,
    TrainerConfig,
    XSimGCLConfig,
)
from gnnrec.config.recipes import composed
from gnnrec.data.interactions import Interactions
from gnnrec.errors import ConfigError
from gnnrec.models.scorer import Scorer
from gnnrec.training.evaluate import Evaluator
from gnnrec.training.placing import place
from gnnrec.training.run import graph_of, seen
from gnnrec.training.runlog import RunLog
from gnnrec.training.trainer import Trainer
from gnnrec.training.view import views


class Estimator:
    """What estimators share: after `fit` they recommend for users and items by the ids of the log they were fitted on.

    Attributes:
        model: the fitted nn.Module.
    """

    model: models.Model

    def recommend(self, users: Sequence[Any] | None = None, k: int = 20, *, exclude_seen: bool = True) -> pd.DataFrame:
        """The k best items of these users (all, by default): columns user, item, rank, score."""
        seen = self._seen if exclude_seen else None
        return recommend.recommend(self._scorer, self._log.user_ids, self._log.item_ids, seen, users, k)

    def recommend_new_users(self, history: Interactions, k: int = 20) -> pd.DataFrame:
        """The k best items of users who were not in training, from their interactions."""
        return recommend.recommend_new_users(self._scorer, self._log.item_ids, history, k)

    def similar_items(self, items: Sequence[Any] | None = None, k: int = 20) -> pd.DataFrame:
        """The k items nearest to each of these (all, by default): columns item, similar, rank, score."""
        return recommend.similar_items(self._scorer, self._log.item_ids, items, k)

    def evaluate(self, test: Interactions, ks: Sequence[int] = (20,)) -> dict[str, float]:
        """Metrics of the held-out part, training and validation items left out, such as `recall@20`."""
        self._log.check_same_ids(test)
        return Evaluator(test, self._seen, ks)(self._scorer)

    def _fitted(self, train: Interactions, valid: Interactions | None, scorer: Scorer) -> Self:
        self._log, self._scorer = train, scorer
        self._seen = seen(graph_of(train), valid)
        return self


class _Trained(Estimator):
    """What estimators share whose model is trained."""

    def __init__(
        self,
        config: ModelConfig,
        loss: LossConfig,
        optimizer: OptimizerConfig,
        trainer: TrainerConfig,
        seed: int,
        device: str,
    ) -> None:
        self.config, self.loss, self.optimizer, self.trainer = config, loss, optimizer, trainer
        self.seed, self.device = seed, devices.resolve(device)
        for section in (config, loss, optimizer, trainer):
            section.validate()

    def fit(self, train: Interactions, valid: Interactions | None = None) -> Self:
        """Train on `train`; with `valid`, stop early by its recall@20 (at all items, where they are fewer)."""
        graph = graph_of(train)
        model = models.build(self.config, graph, self.seed)
        assert not isinstance(model, models.GFCF)
        place(model, self.device)
        evaluator = None
        k = min(20, train.num_items)
        if valid is not None:
            train.check_same_ids(valid)
            evaluator = Evaluator(valid, graph.user_item(), [k])
        loop = replace(self.trainer, monitor=f"recall@{k}")
        with RunLog(loggers=views()) as log:
            Trainer(model, loop, self.loss, self.optimizer, seed=self.seed, valid=evaluator, log=log).fit()
        self.model = model
        return self._fitted(train, valid, model.scorer())


class Recipe(_Trained):
    """What `gnnrec train experiment=NAME` trains, on any log.

    Args:
        name: of `conf/experiment`; the default fits itself to the size of the data.
        overrides: as on the command line, of the sections model, loss, optimizer and trainer: "model.dim=128",
            "trainer.epochs=6".
        seed: of initial embeddings and sampler; equal seeds give bit-identical results.
        device: as for `LightGCN`.

    Raises:
        ConfigError: no such recipe, an unknown key, a setting that cannot be used.
        DeviceError: no such device.
    """

    def __init__(self, name: str = "large_batch", *overrides: str, seed: int = 0, device: str = "auto") -> None:
        for override in overrides:
            key = override.lstrip("+~").partition("=")[0]
            if key.partition(".")[0] not in ("model", "loss", "optimizer", "trainer") or key == "trainer.monitor":
                remedy = "A recipe takes model, loss, optimizer and trainer; seed and device are arguments"
                raise ConfigError("has no effect here", where=key, remedy=remedy)
        config = composed([f"experiment={name}", *overrides])
        if config.loss is None or config.optimizer is None or config.trainer is None:
            raise ConfigError("is computed in closed form", where=f"experiment={name}", remedy="Take gnnrec.GFCF")
        super().__init__(config.model, config.loss, config.optimizer, config.trainer, seed, device)


class LightGCN(_Trained):
    """LightGCN (He et al. 2020) trained with BPR and Adam.

    Args:
        dim: width of the embeddings.
        layers: propagation layers.
        epochs, batch_size, lr, reg, negatives, popularity, hardest, patience, eval_every: of the training; see `conf/`.
        seed: of initial embeddings and sampler; equal seeds give bit-identical results.
        device: where to train and recommend: cpu, cuda, or auto for a GPU that can run the kernels, where there is one.

    Raises:
        ConfigError: a setting that cannot be used.
        DeviceError: no such device.
    """

    def __init__(
        self,
        dim: int = 64,
        layers: int = 3,
        *,
        epochs: int = 40,
        batch_size: int = 2048,
        lr: float = 1e-3,
        reg: float = 1e-4,
        negatives: int = 1,
        popularity: float = 0.0,
        hardest: bool = False,
        patience: int = 5,
        eval_every: int = 5,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        trainer = TrainerConfig(epochs=epochs, batch_size=batch_size, patience=patience, eval_every=eval_every)
        config = LightGCNConfig(dim=dim, layers=layers)
        loss = BPRConfig(reg=reg, negatives=negatives, popularity=popularity, hardest=hardest)
        super().__init__(config, loss, OptimizerConfig(lr=lr), trainer, seed, device)


class NGCF(_Trained):
    """NGCF (Wang et al. 2019) trained with BPR and Adam.

    Args:
        dim: width of the embeddings and of every layer.
        layers: number of layers.
        message_dropout, node_dropout: probabilities in training; see `models.NGCF`.
        epochs, batch_size, lr, reg, negatives, popularity, hardest, patience, eval_every, seed, device: as for
            `LightGCN`.

    Raises:
        ConfigError: a setting that cannot be used.
        DeviceError: no such device.
    """

    def __init__(
        self,
        dim: int = 64,
        layers: int = 3,
        *,
        message_dropout: float = 0.1,
        node_dropout: float = 0.0,
        epochs: int = 40,
        batch_size: int = 2048,
        lr: float = 1e-3,
        reg: float = 1e-4,
        negatives: int = 1,
        popularity: float = 0.0,
        hardest: bool = False,
        patience: int = 5,
        eval_every: int = 5,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        trainer = TrainerConfig(epochs=epochs, batch_size=batch_size, patience=patience, eval_every=eval_every)
        config = NGCFConfig(dim=dim, layers=layers, message_dropout=message_dropout, node_dropout=node_dropout)
        loss = BPRConfig(reg=reg, negatives=negatives, popularity=popularity, hardest=hardest)
        super().__init__(config, loss, OptimizerConfig(lr=lr), trainer, seed, device)


class SimGCL(_Trained):
    """SimGCL (Yu et al. 2022) trained with BPR, its contrastive term and Adam.

    Args:
        dim: width of the embeddings.
        layers: propagation layers.
        eps: length of the noise of a view's rows.
        contrast_weight, contrast_temperature: of the contrastive term; see `models.SimGCL`.
        epochs, batch_size, lr, reg, patience, eval_every, seed, device: as for `LightGCN`.

    Raises:
        ConfigError: a setting that cannot be used.
        DeviceError: no such device.
    """

    def __init__(
        self,
        dim: int = 64,
        layers: int = 2,
        *,
        eps: float = 0.1,
        contrast_weight: float = 0.5,
        contrast_temperature: float = 0.2,
        epochs: int = 40,
        batch_size: int = 2048,
        lr: float = 1e-3,
        reg: float = 1e-4,
        patience: int = 5,
        eval_every: int = 5,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        trainer = TrainerConfig(epochs=epochs, batch_size=batch_size, patience=patience, eval_every=eval_every)
        config = SimGCLConfig(
            dim=dim,
            layers=layers,
            eps=eps,
            contrast_weight=contrast_weight,
            contrast_temperature=contrast_temperature,
        )
        super().__init__(config, BPRConfig(reg=reg), OptimizerConfig(lr=lr), trainer, seed, device)


class XSimGCL(_Trained):
    """XSimGCL (Yu et al. 2023) trained with BPR, its contrastive term and Adam.

    Args:
        dim: width of the embeddings.
        layers: propagation layers.
        eps: length of the noise of a row in training.
        contrast_weight, contrast_temperature, contrast_layer: of the contrastive term; see `models.XSimGCL`.
        epochs, batch_size, lr, reg, patience, eval_every, seed, device: as for `LightGCN`.

    Raises:
        ConfigError: a setting that cannot be used.
        DeviceError: no such device.
    """

    def __init__(
        self,
        dim: int = 64,
        layers: int = 2,
        *,
        eps: float = 0.2,
        contrast_weight: float = 0.2,
        contrast_temperature: float = 0.15,
        contrast_layer: int = 1,
        epochs: int = 40,
        batch_size: int = 2048,
        lr: float = 1e-3,
        reg: float = 1e-4,
        patience: int = 5,
        eval_every: int = 5,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        trainer = TrainerConfig(epochs=epochs, batch_size=batch_size, patience=patience, eval_every=eval_every)
        config = XSimGCLConfig(
            dim=dim,
            layers=layers,
            eps=eps,
            contrast_weight=contrast_weight,
            contrast_temperature=contrast_temperature,
            contrast_layer=contrast_layer,
        )
        super().__init__(config, BPRConfig(reg=reg), OptimizerConfig(lr=lr), trainer, seed, device)


class GFCF(Estimator):
    """GF-CF (Shen et al. 2021): a graph filter in closed form.

    Args:
        factors: singular vectors of the ideal low-pass filter.
        ideal_weight: its weight.
        seed: of the decomposition's start.
        device: as for `LightGCN`.

    Raises:
        ConfigError: a setting that cannot be used.
        DeviceError: no such device.
    """

    def __init__(self, factors: int = 256, ideal_weight: float = 0.3, *, seed: int = 0, device: str = "auto") -> None:
        self.config, self.seed = GFCFConfig(factors=factors, ideal_weight=ideal_weight), seed
        self.device = devices.resolve(device)
        self.config.validate()

    def fit(self, train: Interactions, valid: Interactions | None = None) -> Self:
        """Decompose the graph of `train`; `valid` is only left out of recommendations."""
        if valid is not None:
            train.check_same_ids(valid)
        model = models.build(self.config, graph_of(train), self.seed)
        assert isinstance(model, models.GFCF)
        place(model, self.device)
        self.model = model.fit()
        return self._fitted(train, valid, model.scorer())
