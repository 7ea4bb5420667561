"""Full-ranking evaluation: every item is ranked for every user with held-out items, what the user has seen left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gnnrec import device as devices
from gnnrec.data.interactions import Interactions
from gnnrec.errors import ConfigError, DataError
from gnnrec.graph.bipartite import user_rows
from gnnrec.graph.sparse import SparseMatrix
from gnnrec.graph.union import Union
from gnnrec.models.scorer import Ranker
from gnnrec.ops.topk_scores import users_at_a_time
from gnnrec.ranks import ALONE, Ranks
from gnnrec.training.metrics import MetricAccumulator


class Evaluator:
    """Ranks and scores one held-out part, as often as asked.

    Args:
        held_out: the interactions to be predicted.
        seen: users x items of what is left out of the ranking.
        ks: cut-offs K of the metrics.
        ranks: that have some users each, in their order; the metrics are those of all. By default one has all.

    Raises:
        DataError: nothing is held out.
        ConfigError: a K beyond the number of items.
    """

    def __init__(
        self, held_out: Interactions, seen: SparseMatrix | Union, ks: Sequence[int], ranks: Ranks = ALONE
    ) -> None:
        self._held_out = user_rows(held_out.users, held_out.items, held_out.num_users, held_out.num_items)
        self.users = self._held_out.indptr.diff().nonzero()[:, 0]
        self._most = max(ranks.each(lambda: len(self.users)))  # users of a rank
        if not self._most:
            raise DataError("holds no interaction", where=held_out.name, remedy="Evaluate on another part")
        if max(ks) > held_out.num_items:
            raise ConfigError(
                f"is {list(ks)}, but there are only {held_out.num_items} items",
                where="evaluation.k",
                remedy="Ask for no more than that",
            )
        self.ks, self.seen, self.num_items, self.ranks = list(ks), seen, held_out.num_items, ranks

    def __call__(self, scorer: Ranker) -> dict[str, float]:
        """Metrics by name, such as `recall@20`; defined in `training.metrics`. Ranks where the scorer is.

        Raises:
            DeviceMemoryError: no room on the GPU.
        """
        metrics = MetricAccumulator(self.ks, self.num_items)
        k, device = max(self.ks), scorer.item_vectors.device
        block, self.ranks.doing = users_at_a_time(k, on_gpu=device.type == "cuda"), "an evaluation"
        with devices.memory_errors("ranking", lower=f"evaluation.k (now {self.ks}) or model.dim"):
            seen = self.seen.to(device)
            for first in range(0, self._most, block):
                users = self.users[first : first + block]
                if len(users):
                    there = users.to(device)
                    ranked, _ = scorer.topk(there, k, seen.select_rows(there))
                    relevant = self._held_out.select_rows(users)
                    metrics.update(ranked.cpu().numpy(), relevant.indptr.numpy(), relevant.indices.numpy())
                self.ranks.total(torch.zeros(1))  # a rank with few users waits for a block of another's, never for all
        if self.ranks.size > 1:
            metrics.share(self.ranks)
        return metrics.result()
