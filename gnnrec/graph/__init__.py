"""User-item graphs in compressed sparse rows, built once and never changed."""

from gnnrec.graph.bipartite import BipartiteGraph
from gnnrec.graph.reorder import Reordering
from gnnrec.graph.sparse import SparseMatrix

__all__ = ["BipartiteGraph", "Reordering", "SparseMatrix"]
