"""Replayed dropout: the vectorised Philox against the scalar one and against plain torch."""

from __future__ import annotations

from functools import cache

import numba
import numpy as np
import pytest
import torch

from gnnrec.ops import _dropout, _philox
from gnnrec.ops._dropout import keep, kept_entries, row_dropout
from gnnrec.ops._numba import VERSION
from gnnrec.ops._vector import row_load, row_store

philox = numba.njit(_philox.philox.py_func)  # which kernels alone can call
SEEDS = (0, 1, 0x123456789ABCDEF0, 2**63 - 2)
LARGE = 2**32 - 1


@cache
def compile_rows(dim):
    version = VERSION

    @numba.njit
    def run(x, seed, a, b, stream, threshold, scale, out):
        _ = version
        for i in range(len(x)):
            row = row_dropout(row_load(x, i, dim), seed, a[i], b[i], stream, threshold, scale)
            row_store(out, i, row, False)

    return run


def rows_kept(dim, dtype, seed, a, b, stream, p):
    """Which ones of rows of threes are kept; the others are 0, these are scaled."""
    x, out = np.full((len(a), dim), 3, dtype), np.full((len(a), dim), np.nan, dtype)
    scale = dtype(1 / (1 - p))
    compile_rows(dim)(x, seed, a.numpy(), b.numpy(), stream, _dropout.threshold(p), scale, out)
    kept = out != 0
    assert (out[kept] == dtype(3) * scale).all()
    return torch.from_numpy(kept)


def scalar_word(seed, a, b, stream, column):
    lane = column // 64 * 16 + column % 16
    words = philox(np.uint64(seed), np.uint64(lane | stream << 32), np.uint64(a | b << 32))
    return int(words[column % 64 // 16])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_oracle_is_scalar_philox(seed):
    a, b = torch.tensor([0, 1, 70_838, LARGE]), torch.tensor([0, 5, LARGE, 1])
    kept = keep(seed, a, b, 7, 130, 0.4)
    assert kept.shape == (4, 130)
    for i in range(4):
        for column in range(130):
            word = scalar_word(seed, int(a[i]), int(b[i]), 7, column)
            assert bool(kept[i, column]) == (word >= 0.4 * 2**32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 7, 8, 16, 33, 64, 65, 200])
def test_rows_are_dropped_as_the_oracle_says(dim, dtype):
    a = torch.tensor([0, 1, 2, 70_838, LARGE])
    b = torch.tensor([0, LARGE, 1, 3, 12])
    for seed in SEEDS:
        for p in (0.0, 0.1, 0.5, 0.999):
            assert torch.equal(rows_kept(dim, dtype, seed, a, b, 3, p), keep(seed, a, b, 3, dim, p))


def _compile_entries():
    version = VERSION

    @numba.njit
    def run(indptr, indices, transposed, seed, stream, threshold, kept, ends):
        _ = version
        count = 0
        for i in range(len(indptr) - 1):
            count = kept_entries(indices, indptr[i], indptr[i + 1], i, transposed, seed, stream, threshold, kept, count)
            ends[i] = count

    return run


ENTRIES = _compile_entries()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
def test_entries_are_dropped_as_the_oracle_says(p, transposed):
    """Rows of 0 to 70 entries; what surrounds the arrays is neither read nor written."""
    lengths = torch.tensor([0, 1, 15, 16, 17, 0, 70, 33])
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    nnz = int(indptr[-1])
    indices = torch.randint(2**31 - 1, (nnz,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    rows, cols = torch.repeat_interleave(torch.arange(len(lengths)), lengths), indices.long()
    a, b = (cols, rows) if transposed else (rows, cols)
    chosen = keep(SEEDS[2], a, b, 1, 1, p)[:, 0]
    kept, ends = np.full(nnz + 8, -7, np.int32), np.empty(len(lengths), np.int64)
    ENTRIES(indptr.numpy(), indices.numpy(), transposed, SEEDS[2], 1, _dropout.threshold(p), kept[:nnz], ends)
    assert kept[: ends[-1]].tolist() == indices[chosen].tolist()
    assert ends.tolist() == [int(chosen[: indptr[i + 1]].sum()) for i in range(len(lengths))]
    assert (kept[nnz:] == -7).all()


def test_an_entry_is_decided_as_column_0_of_its_row():
    a, b = torch.tensor([4, 9]), torch.tensor([100, 1])
    assert torch.equal(keep(5, a, b, 2, 1, 0.5), keep(5, a, b, 2, 64, 0.5)[:, :1])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_rate_is_the_one_that_was_asked_for(p):
    rows = torch.arange(4000)
    kept = rows_kept(64, np.float32, SEEDS[2], rows, torch.zeros_like(rows), 0, p).double()
    deviation = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.mean() - (1 - p)) < 4 * deviation
    # Neither columns nor rows have a rate of their own, and neighbours know nothing of each other.
    assert (kept.mean(0) - (1 - p)).abs().max() < 5 * deviation * 64**0.5
    assert (kept.mean(1) - (1 - p)).abs().max() < 5 * deviation * 4000**0.5
    for one, other in ((kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1]), (kept[:, 16:], kept[:, :-16])):
        assert abs(((one - 1 + p) * (other - 1 + p)).mean()) < 4 * p * (1 - p) / one.numel() ** 0.5


def test_streams_and_seeds_differ():
    rows = torch.arange(100)
    kinds = [keep(seed, rows, rows, stream, 64, 0.5) for seed in SEEDS for stream in (0, 1)]
    for i, one in enumerate(kinds):
        for other in kinds[:i]:
            assert 0.4 < (one == other).float().mean() < 0.6


def test_a_seed_follows_torch():
    torch.manual_seed(3)
    first, second = _dropout.draw_seed(), _dropout.draw_seed()
    torch.manual_seed(3)
    assert _dropout.draw_seed() == first != second
    assert (first.dtype, first.shape) == (torch.int64, ())


@pytest.mark.parametrize("p", [-0.1, 1.0, 2, float("nan")])
def test_impossible_probabilities(p):
    with pytest.raises(ValueError, match=rf"^op: rate must lie in \[0, 1\), got {p}"):
        _dropout.check_probability("op", "rate", p)


def test_a_cuda_graph_would_repeat_the_seed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match="would draw the same numbers in every replay"):
        _dropout.draw_seed()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert _dropout.draw_seed() >= 0
