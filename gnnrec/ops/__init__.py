"""Operators: propagation and scoring kernels with their gradients, each in a folder of its own.

A new operator is one folder and one line in OPS; tests and benchmarks walk that list.
"""

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import lightgcn_propagate as _lightgcn_propagate
from gnnrec.ops import spmm as _spmm
from gnnrec.ops import topk_scores as _topk_scores
from gnnrec.ops._numba import set_num_threads

OPS = (_spmm.OP, _lightgcn_propagate.OP, _topk_scores.OP)

spmm = _spmm.spmm
lightgcn_propagate = _lightgcn_propagate.lightgcn_propagate
topk_scores = _topk_scores.topk_scores
topk_dense = _topk_scores.topk_dense

__all__ = ["OPS", "SparseMatrix", "lightgcn_propagate", "set_num_threads", "spmm", "topk_dense", "topk_scores"]
