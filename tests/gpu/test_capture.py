"""A whole step of LightGCN in a CUDA graph: its replays give the bits that the same steps give one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gnnrec import ops
from gnnrec.graph import BipartiteGraph

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine")
USERS, ITEMS, STEPS = 3000, 2000, 5


@pytest.fixture(scope="module")
def matrix():
    """With short, medium and long rows."""
    rng = np.random.default_rng(0)
    edges = rng.integers(USERS, size=60_000), rng.zipf(1.3, 60_000) % ITEMS
    result = BipartiteGraph.from_edges(*edges, USERS, ITEMS).norm_adjacency().to("cuda")
    assert all(map(len, (result.short, result.medium, result.long)))
    return result


def batches(size):
    """Triples in which one item comes very often."""
    rng = np.random.default_rng(1)
    items = USERS + rng.zipf(1.3, (STEPS, 2, size)) % ITEMS
    triples = np.concatenate([rng.integers(USERS, size=(STEPS, 1, size)), items], axis=1)
    return torch.from_numpy(triples).cuda()


class Step:
    """Propagation, loss, gradient and optimiser, each on tensors that stay where they are."""

    def __init__(self, matrix, example, rows):
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.nn.Parameter((0.1 * torch.randn(USERS + ITEMS, 64, generator=generator)).cuda())
        self.optimizer = torch.optim.Adam([self.embedding], lr=0.01, fused=True, capturable=True)
        self.matrix, self.triples, self.rows = matrix, example.clone(), rows
        self.loss = torch.zeros((), device="cuda")

    def __call__(self):
        if self.rows:
            wanted = self.triples.view(-1)
            final = ops.lightgcn_propagate(self.matrix, self.embedding, num_layers=3, rows=wanted)
            places = torch.arange(wanted.numel(), device="cuda").view(3, -1)
            loss = ops.bpr_loss(final, final.detach(), places)
        else:
            final = ops.lightgcn_propagate(self.matrix, self.embedding, num_layers=3)
            loss = ops.bpr_loss(final, self.embedding, self.triples, 1e-4)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def run(self, batches, go):
        losses = []
        for triples in batches:
            self.triples.copy_(triples)
            go()
            losses.append(self.loss.clone())
        return torch.stack(losses)


@pytest.mark.parametrize("rows", [False, True])
def test_replayed_steps_give_the_bits_of_eager_ones(matrix, rows):
    given = batches(2048)
    eager = Step(matrix, given[0], rows)
    expected = eager.run(given, eager)

    step, stream = Step(matrix, given[0], rows), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        first = step.run(given[:1], step)  # compiles, and makes the optimiser's state
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    losses = torch.cat([first, step.run(given[1:], graph.replay)])
    assert torch.equal(losses, expected)
    assert torch.equal(step.embedding, eager.embedding)
    again = step.run(given[:1], graph.replay)
    assert again < losses[0]  # of the same batch, which the steps since have learnt from


def test_steps_never_wait_for_the_gpu(matrix):
    given = batches(2048)
    for rows in (False, True):
        step = Step(matrix, given[0], rows)
        step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_gradients_are_bit_equal_from_run_to_run(matrix):
    given, results = batches(2048)[0], []
    for _ in range(5):
        step = Step(matrix, given, False)
        step()
        results.append(step.embedding.grad.clone())
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_rows_of_a_propagation_are_those_of_the_whole(matrix):
    rows = batches(512)[0].view(-1)
    for dim, dtype in ((64, torch.float32), (33, torch.float32), (300, torch.float32), (64, torch.bfloat16)):
        x = torch.randn(USERS + ITEMS, dim, generator=torch.Generator().manual_seed(0)).to("cuda", dtype)
        for layers in range(4):
            whole = ops.lightgcn_propagate(matrix, x, num_layers=layers)
            assert torch.equal(ops.lightgcn_propagate(matrix, x, num_layers=layers, rows=rows), whole[rows])


@pytest.mark.parametrize(
    ("users", "items", "k"), [(700, 5000, 50), (64, 30_000, 1000), (5, 300_000, 20), (3, 4000, 4000)]
)
def test_selection_against_a_stable_sort(users, items, k):
    """Of whole numbers, so that equal scores abound."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3000, 3000, (users, items), generator=generator).float()
    seen = torch.rand(users, items, generator=generator) < 0.01
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), seen.sum(1).cumsum(0)])
    known = ops.SparseMatrix.from_csr(indptr, seen.nonzero()[:, 1], shape=(users, items)).to("cuda")
    best, order = scores.masked_fill(seen, -torch.inf).sort(dim=1, descending=True, stable=True)
    found, values = ops.topk_dense(scores.cuda(), k=k, seen=known)
    assert torch.equal(values.cpu(), best[:, :k])
    assert torch.equal(found.cpu(), order[:, :k].int().masked_fill(best[:, :k] == -torch.inf, -1))


@pytest.mark.parametrize("deterministic", [True, False])
def test_sums_over_an_index_that_is_skewed(deterministic):
    rng = np.random.default_rng(0)
    index = torch.from_numpy(rng.zipf(1.2, 200_000) % 5000)
    src = torch.randint(-9, 10, (200_000, 64), generator=torch.Generator().manual_seed(0)).float()
    expected = torch.zeros(5000, 64).index_add_(0, index, src)  # of whole numbers, exact in any order
    found = ops.index_scatter(src.cuda(), index.cuda(), 5000, deterministic=deterministic)
    assert torch.equal(found.cpu(), expected)
