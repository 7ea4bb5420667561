"""Operators: propagation and scoring kernels with their gradients, each in a folder of its own.

A new operator is one folder and one line in OPS; tests and benchmarks walk that list.
"""

from gnnrec.graph.sparse import SparseMatrix
from gnnrec.ops import adam as _adam
from gnnrec.ops import bpr_loss as _bpr_loss
from gnnrec.ops import edge_conv as _edge_conv
from gnnrec.ops import edge_softmax as _edge_softmax
from gnnrec.ops import gat_conv as _gat_conv
from gnnrec.ops import gmm_conv as _gmm_conv
from gnnrec.ops import lightgcn_propagate as _lightgcn_propagate
from gnnrec.ops import ngcf_layer as _ngcf_layer
from gnnrec.ops import perturb as _perturb
from gnnrec.ops import rgcn_conv as _rgcn_conv
from gnnrec.ops import sddmm as _sddmm
from gnnrec.ops import segment as _segment
from gnnrec.ops import softmax_loss as _softmax_loss
from gnnrec.ops import spmm as _spmm
from gnnrec.ops import topk_scores as _topk_scores
from gnnrec.ops import uniformity_loss as _uniformity_loss
from gnnrec.ops._numba import most_threads, set_num_threads
from gnnrec.ops.autotune import autotune
from gnnrec.ops.bpr_loss.panels import BPRPanels
from gnnrec.ops.ngcf_layer.blocks import NGCFBlocks

OPS = (
    _spmm.OP,
    _sddmm.OP,
    _edge_softmax.OP,
    _lightgcn_propagate.OP,
    _topk_scores.OP,
    _bpr_loss.OP,
    _perturb.OP,
    _adam.OP,
    _softmax_loss.OP,
    _uniformity_loss.OP,
    _ngcf_layer.OP,
    _gat_conv.OP,
    _edge_conv.OP,
    _gmm_conv.OP,
    _rgcn_conv.OP,
    *_segment.OPS,
)

spmm = _spmm.spmm
spmm_accumulate = _spmm.spmm_accumulate
sddmm = _sddmm.sddmm
lightgcn_propagate = _lightgcn_propagate.lightgcn_propagate
lightgcn_propagate_blocks = _lightgcn_propagate.lightgcn_propagate_blocks
lightgcn_propagate_into = _lightgcn_propagate.lightgcn_propagate_into
lightgcn_propagate_rows = _lightgcn_propagate.lightgcn_propagate_rows
topk_scores = _topk_scores.topk_scores
topk_dense = _topk_scores.topk_dense
bpr_loss = _bpr_loss.bpr_loss
perturb = _perturb.perturb
adam_step = _adam.adam_step
softmax_loss = _softmax_loss.softmax_loss
uniformity_loss = _uniformity_loss.uniformity_loss
ngcf_layer = _ngcf_layer.ngcf_layer
edge_conv = _edge_conv.edge_conv
gmm_conv = _gmm_conv.gmm_conv
rgcn_conv = _rgcn_conv.rgcn_conv
segment_reduce = _segment.segment_reduce
gather_segment_reduce = _segment.gather_segment_reduce
index_scatter = _segment.index_scatter
gat_conv = _gat_conv.gat_conv
edge_softmax = _edge_softmax.edge_softmax

__all__ = [
    "OPS",
    "BPRPanels",
    "NGCFBlocks",
    "SparseMatrix",
    "adam_step",
    "autotune",
    "bpr_loss",
    "edge_conv",
    "edge_softmax",
    "gat_conv",
    "gather_segment_reduce",
    "gmm_conv",
    "index_scatter",
    "lightgcn_propagate",
    "lightgcn_propagate_blocks",
    "lightgcn_propagate_into",
    "lightgcn_propagate_rows",
    "most_threads",
    "ngcf_layer",
    "perturb",
    "rgcn_conv",
    "sddmm",
    "segment_reduce",
    "set_num_threads",
    "softmax_loss",
    "spmm",
    "spmm_accumulate",
    "topk_dense",
    "topk_scores",
    "uniformity_loss",
]
