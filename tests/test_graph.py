"""Graphs, sparse matrices and schedules against scipy, with exact numbers."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gnnrec.graph import BipartiteGraph, SparseMatrix
from gnnrec.graph.bipartite import user_rows
from gnnrec.graph.schedule import LONG, MAX_CHUNKS, ROW_COST, balanced_chunks, long_rows, prefetch_distance
from gnnrec.graph.sparse import MAX_INT32
from gnnrec.graph.union import Union
from gnnrec.ops._operator import dense

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@st.composite
def edges(draw):
    """Arrays of row and column numbers with repetitions, empty rows and columns, the last ones among them."""
    rows, cols = draw(st.integers(0, 12)), draw(st.integers(0, 12))
    n = draw(st.integers(0, 60)) if rows and cols else 0
    used = [draw(st.integers(min(size, 1), size)) for size in (rows, cols)]
    dtype = draw(st.sampled_from(INTEGERS))
    row, col = (draw(hnp.arrays(dtype, n, elements=st.integers(0, max(size - 1, 0)))) for size in used)
    return row, col, (rows, cols)


def scipy_csr(row, col, shape):
    """The matrix of counts, with sorted columns."""
    matrix = sp.coo_array((np.ones(len(row)), (row.astype(np.int64), col.astype(np.int64))), shape=shape).tocsr()
    matrix.sum_duplicates()
    return matrix


@given(edges())
def test_graph_against_scipy(given_edges):
    users, items, (num_users, num_items) = given_edges
    graph = BipartiteGraph.from_edges(users, items, num_users, num_items)
    expected = scipy_csr(*given_edges)
    by_item = expected.T.tocsr()
    by_item.sort_indices()
    assert (graph.num_users, graph.num_items, graph.num_nodes) == (num_users, num_items, num_users + num_items)
    assert graph.num_edges == expected.nnz
    for ours, theirs in (
        (graph.user_indptr, expected.indptr),
        (graph.user_items, expected.indices),
        (graph.item_indptr, by_item.indptr),
        (graph.item_users, by_item.indices),
        (graph.user_degrees, np.diff(expected.indptr)),
        (graph.item_degrees, np.diff(by_item.indptr)),
    ):
        np.testing.assert_array_equal(ours, theirs)
    for pointers in (graph.user_indptr, graph.item_indptr, graph.user_degrees, graph.item_degrees):
        assert pointers.dtype == np.int64
    assert graph.user_items.dtype == graph.item_users.dtype == np.int32


@given(edges())
def test_matrices_of_a_graph_against_scipy(given_edges):
    _, _, (num_users, num_items) = given_edges
    graph = BipartiteGraph.from_edges(*given_edges[:2], num_users, num_items)
    ones = (scipy_csr(*given_edges).toarray() > 0).astype(float)
    np.testing.assert_array_equal(dense(graph.user_item(), torch.float64), ones)
    np.testing.assert_array_equal(dense(graph.user_item().T, torch.float64), ones.T)

    whole = np.block([[np.zeros((num_users, num_users)), ones], [ones.T, np.zeros((num_items, num_items))]])
    degrees = whole.sum(1)
    norm = np.divide(1, np.sqrt(degrees), out=np.zeros(len(degrees)), where=degrees > 0)
    expected = norm[:, None] * whole * norm
    adjacency = graph.norm_adjacency()
    ours = dense(adjacency, torch.float64).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1.001 * np.finfo(np.float32).eps)  # two scales, each rounded once
    np.testing.assert_array_equal(adjacency.row_scale, norm.astype(np.float32))
    assert adjacency.symmetric
    assert adjacency.T is adjacency
    assert (adjacency.indptr.dtype, adjacency.indices.dtype) == (torch.int64, torch.int32)

    block = graph.norm_user_item()
    np.testing.assert_array_equal(dense(block, torch.float64), ours[:num_users, num_users:])
    np.testing.assert_array_equal(dense(block.T, torch.float64), ours[num_users:, :num_users])


def small_graph():
    return BipartiteGraph.from_edges([0, 2, 2, 0, 2], [3, 1, 0, 3, 3], num_users=4, num_items=5)


@given(edges(), st.data())
def test_rows_of_two_patterns_against_scipy(given_edges, data):
    row, col, shape = given_edges
    half = len(row) // 2
    first, second = (user_rows(row[part], col[part], *shape) for part in (slice(half), slice(half, None)))
    for part, matrix in ((slice(half), first), (slice(half, None), second)):
        there = scipy_csr(row[part], col[part], shape).todense() > 0
        np.testing.assert_array_equal(dense(matrix, torch.float64), there)
    rows = data.draw(st.lists(st.integers(0, shape[0] - 1)) if shape[0] else st.just([]))
    chosen = torch.tensor(rows, dtype=torch.int64)
    found = Union(first, second).select_rows(chosen)
    assert found.shape == (len(chosen), shape[1])
    assert found.has_sorted_rows
    both = dense(first, torch.float64) + dense(second, torch.float64)
    np.testing.assert_array_equal(dense(found, torch.float64), both[chosen])
    for outside in (-1, shape[0]):
        with pytest.raises(IndexError, match=f"of a matrix of {shape[0]}"):
            Union(first, second).select_rows(torch.tensor([outside]))


def test_graph_by_hand():
    graph = small_graph()
    assert graph.user_indptr.tolist() == [0, 1, 1, 4, 4]
    assert graph.user_items.tolist() == [3, 0, 1, 3]
    assert graph.item_indptr.tolist() == [0, 1, 2, 2, 4, 4]
    assert graph.item_users.tolist() == [2, 2, 0, 2]
    assert graph.norm_adjacency().indices.tolist() == [7, 4, 5, 7, 2, 2, 0, 2]
    assert repr(graph) == "BipartiteGraph(4 users, 5 items, 4 edges)"


def test_matrices_are_made_once_over_the_graph_s_own_arrays():
    graph = small_graph()
    for make in (graph.user_item, graph.norm_user_item, graph.norm_adjacency):
        assert make() is make()
        assert make().T is make().T
        assert make().T.T is make()
    for block in (graph.user_item(), graph.norm_user_item()):
        assert np.shares_memory(block.indices.numpy(), graph.user_items)
        assert np.shares_memory(block.T.indices.numpy(), graph.item_users)
    assert graph.norm_user_item().T.row_scale is graph.norm_user_item().col_scale


def test_a_graph_keeps_nothing_of_its_input():
    users, items = np.array([1, 0, 1], np.int32), np.array([0, 1, 1], np.int32)
    before = users.copy(), items.copy()
    graph = BipartiteGraph.from_edges(users, items, 2, 2)
    np.testing.assert_array_equal((users, items), before)
    users[:], items[:] = 0, 0
    assert (graph.user_items.tolist(), graph.item_users.tolist()) == ([1, 0, 1], [1, 0, 1])


def test_a_graph_takes_read_only_and_strided_arrays():
    column = np.arange(8, dtype=np.int64).reshape(4, 2)
    column.flags.writeable = False
    graph = BipartiteGraph.from_edges(column[:, 0], column[::-1, 1], 7, 8)
    assert graph.user_items.tolist() == [7, 5, 3, 1]


@pytest.mark.parametrize(
    ("users", "items", "counts", "message"),
    [
        ([0, 4], [0, 0], (4, 5), "users must lie within 0 and 3, got 0 to 4"),
        ([0, -1], [0, 0], (4, 5), "users must lie within 0 and 3, got -1 to 0"),
        ([0, 0], [2, 5], (4, 5), "items must lie within 0 and 4, got 2 to 5"),
        ([0], [2**40], (4, 5), f"items must lie within 0 and 4, got {2**40}"),
        ([0], [0], (0, 5), "users must lie within 0 and -1, got 0 to 0"),
        ([0.0], [0], (4, 5), r"users must be a one-dimensional integer array, got float64 \[1\]"),
        ([0], [True], (4, 5), r"items must be a one-dimensional integer array, got bool \[1\]"),
        (["a"], [0], (4, 5), r"users must be a one-dimensional integer array, got <U1 \[1\]"),
        ([[0]], [0], (4, 5), r"users must be a one-dimensional integer array, got int64 \[1, 1\]"),
        ([0, 1], [0], (4, 5), "users has 2 entries where items has 1"),
        ([], [], (MAX_INT32, 1), f"within 0 and {MAX_INT32} together, got {MAX_INT32} and 1"),
        ([], [], (-1, 1), "together, got -1 and 1"),
    ],
)
def test_a_graph_names_what_it_cannot_use(users, items, counts, message):
    with pytest.raises(ValueError, match=message):
        BipartiteGraph.from_edges(users, items, *counts)


@given(edges())
def test_from_coo_and_its_transpose_against_scipy(given_edges):
    row, col, shape = given_edges
    scales = [torch.arange(1, n + 1, dtype=torch.float32) for n in shape]
    matrix = SparseMatrix.from_coo(row, col, shape=shape, row_scale=scales[0], col_scale=scales[1])
    expected = scales[0].numpy()[:, None] * scipy_csr(*given_edges).toarray() * scales[1].numpy()
    assert (matrix.shape, matrix.nnz) == (shape, len(row))
    assert (matrix.indptr.dtype, matrix.indices.dtype) == (torch.int64, torch.int32)
    np.testing.assert_array_equal(dense(matrix, torch.float64), expected)
    np.testing.assert_array_equal(dense(matrix.T, torch.float64), expected.T)
    assert matrix.T is matrix.T
    assert matrix.T.T is matrix
    assert matrix.T.row_scale is scales[1]
    assert matrix.T.col_scale is scales[0]
    rows_of_transpose = np.split(matrix.T.indices.numpy(), matrix.T.indptr.numpy()[1:-1]) if shape[1] else []
    assert all((np.diff(columns) >= 0).all() for columns in rows_of_transpose)


@given(edges(), st.sampled_from(["list", "torch", *INTEGERS]))
def test_from_csr_against_scipy(given_edges, kind):
    expected = scipy_csr(*given_edges)
    indptr, indices = expected.indptr, expected.indices
    if kind == "list":
        indptr, indices = indptr.tolist(), indices.tolist()
    elif kind == "torch":
        indptr, indices = torch.from_numpy(indptr), torch.from_numpy(indices)
    else:
        indptr, indices = indptr.astype(kind), indices.astype(kind)
    matrix = SparseMatrix.from_csr(indptr, indices, shape=expected.shape)
    assert (matrix.indptr.dtype, matrix.indices.dtype) == (torch.int64, torch.int32)
    np.testing.assert_array_equal(dense(matrix, torch.float64), expected.toarray() > 0)
    assert not matrix.symmetric


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0], (2, 3)), r"indptr must hold rows \+ 1 = 3 numbers .* got shape \(2,\) from \[0\] to \[1\]"),
        (([0, 1, 2], [0], (2, 3)), r"from 0 to nnz = 1, got .* from \[0\] to \[2\]"),
        (([1, 1, 1], [0], (2, 3)), r"from 0 to nnz = 1, got .* from \[1\] to \[1\]"),
        (([0, 3, 2], [0, 1], (2, 3)), "indptr must not fall, but does at row 1"),
        (([], [], (2, 3)), r"got shape \(0,\)"),
        (([0, 1, 1], [3], (2, 3)), "indices must lie within 0 and 2, got 3 to 3"),
        (([0, 1, 1], [-1], (2, 3)), "indices must lie within 0 and 2, got -1 to -1"),
        (([0, 1, 1], [2**32], (2, 3)), f"indices must lie within 0 and 2, got {2**32}"),
        (([0, 1, 1], [0.5], (2, 3)), r"indices must be a one-dimensional integer array, got float64 \[1\]"),
        (([0, 1, 1], [[0]], (2, 3)), r"indices must be a one-dimensional integer array, got int64 \[1, 1\]"),
        (([0.0, 1.0, 1.0], [0], (2, 3)), r"indptr must be a one-dimensional integer array, got float64 \[3\]"),
        (([0], [], (-1, 3)), r"shape must lie within 0 and \d+, got \(-1, 3\)"),
        (([0], [], (0, 2**31)), f"shape must lie within 0 and {MAX_INT32}, got .0, {2**31}"),
    ],
)
def test_from_csr_names_what_it_cannot_use(arguments, message):
    indptr, indices, shape = arguments
    with pytest.raises(ValueError, match=message):
        SparseMatrix.from_csr(indptr, indices, shape=shape)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"row_scale": torch.ones(3)}, r"row_scale must be float32 \[2\], got torch.float32 \[3\]"),
        ({"col_scale": torch.ones(2)}, r"col_scale must be float32 \[3\], got torch.float32 \[2\]"),
        ({"col_scale": torch.ones(3).double()}, r"col_scale must be float32 \[3\], got torch.float64 \[3\]"),
        ({"row_scale": torch.ones(2, 1)}, r"row_scale must be float32 \[2\], got torch.float32 \[2, 1\]"),
    ],
)
def test_scales_must_fit(scales, message):
    with pytest.raises(ValueError, match=message):
        SparseMatrix.from_csr([0, 1, 1], [0], shape=(2, 3), **scales)
    with pytest.raises(ValueError, match=message):
        SparseMatrix.from_coo([0], [0], shape=(2, 3), **scales)


@pytest.mark.parametrize(
    ("rows", "cols", "message"),
    [
        ([2], [0], "rows must lie within 0 and 1, got 2 to 2"),
        ([0], [3], "cols must lie within 0 and 2, got 3 to 3"),
        ([0], [2**32], f"cols must lie within 0 and 2, got {2**32}"),
        ([-1, 0], [0, 0], "rows must lie within 0 and 1, got -1 to 0"),
        ([0.0], [0], "rows must be a one-dimensional integer array, got float64"),
        ([0], [1.5], "cols must be a one-dimensional integer array, got float64"),
        ([0, 1], [0], "rows has 2 entries where cols has 1"),
    ],
)
def test_from_coo_names_what_it_cannot_use(rows, cols, message):
    with pytest.raises(ValueError, match=message):
        SparseMatrix.from_coo(rows, cols, shape=(2, 3))


@given(
    st.sampled_from([0, 1, 2, 15, 16, 17, 32, 1000, 4096, 5000]),
    st.sampled_from([0, 1, 50, 10**6]),
    st.integers(0, 2**32),
)
def test_chunks_cover_all_rows_in_about_equal_parts(rows, heaviest, seed):
    degrees = np.random.default_rng(seed).zipf(1.3, rows).clip(max=10**6) % (heaviest + 1)
    indptr = torch.from_numpy(np.concatenate([[0], degrees.cumsum()]).astype(np.int64))
    borders = balanced_chunks(indptr)
    chunks = len(borders) - 1
    assert borders.dtype == torch.int64
    assert (borders[0], borders[-1]) == (0, rows)
    assert (borders.diff() >= 0).all()
    assert 1 <= chunks <= MAX_CHUNKS
    short = np.where(degrees > LONG, 0, degrees)  # long rows are work of their own
    work = np.concatenate([[0], (short + ROW_COST).cumsum()])
    longest_row = short.max(initial=0) + ROW_COST
    assert np.diff(work[borders.numpy()]).max() <= work[-1] / chunks + 1 + longest_row


def test_enough_chunks_to_share():
    assert len(balanced_chunks(torch.arange(100_001) * 3)) == MAX_CHUNKS + 1
    assert balanced_chunks(torch.arange(33)).tolist() == [0, 16, 32]


@pytest.mark.parametrize(("row_bytes", "rows"), [(0, 64), (64, 64), (128, 64), (256, 32), (512, 16), (1024, 16)])
def test_narrow_rows_are_asked_for_further_ahead(row_bytes, rows):
    assert prefetch_distance(row_bytes) == rows


@given(st.lists(st.sampled_from([0, 1, LONG - 1, LONG, LONG + 1, 2 * LONG, 7 * LONG + 3]), max_size=20))
def test_long_rows_are_cut_where_they_reach_the_limit(lengths):
    indptr = torch.tensor([0, *lengths]).cumsum(0)
    pieces, long = long_rows(indptr)
    expected = [
        [row, start, min(start + LONG, int(indptr[row + 1]))]
        for row, length in enumerate(lengths)
        if length > LONG
        for start in range(int(indptr[row]), int(indptr[row + 1]), LONG)
    ]
    assert pieces.tolist() == expected
    assert long[:, 0].tolist() == [row for row, length in enumerate(lengths) if length > LONG]
    for row, first, end in long.tolist():
        assert all(piece[0] == row for piece in expected[first:end])
        assert end - first == -(-lengths[row] // LONG)


def test_a_giant_row_does_not_unbalance_the_others():
    degrees = torch.ones(640, dtype=torch.int64)
    degrees[300] = 100_000
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), degrees.cumsum(0)])
    assert balanced_chunks(indptr).diff().max() <= 17


def test_25_million_interactions_fit_time_and_memory(peak_memory):
    blocks, num_users, num_items, repeated = 25, 1_000_000, 200_000, 1_000
    rng = np.random.default_rng(0)
    shuffled_items = rng.permutation(num_items).astype(np.int32)
    users, items = np.empty((2, blocks, num_users), np.int32)
    for block in range(blocks):  # every user once, in random order, with another item in every block
        users[block] = rng.permutation(num_users)
        items[block] = shuffled_items[(users[block] + block * 7919) % num_items]
    users, items = users.reshape(-1), items.reshape(-1)
    users[-repeated:], items[-repeated:] = users[:repeated], items[:repeated]

    BipartiteGraph.from_edges(users[:9], items[:9], num_users, num_items)  # compiles
    start = time.process_time()  # of one thread, whatever else the machine does
    graph, peak = peak_memory(lambda: BipartiteGraph.from_edges(users, items, num_users, num_items))
    assert time.process_time() - start <= 6
    assert graph.num_edges == blocks * num_users - repeated
    assert peak <= 4 * (graph.user_indptr.nbytes + graph.user_items.nbytes)
    assert peak >= graph.user_items.nbytes + graph.item_users.nbytes  # the measuring works
