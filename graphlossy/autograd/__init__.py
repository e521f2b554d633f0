"""Autograd functions that keep the least for the backward pass, one operator family a file.

All forward values are exact. Whether a gradient is exact, unbiased or approximate is said in each module's head. None
of these functions can be differentiated twice: what they keep is too coarse for a second derivative, and torch says so.
"""

from graphlossy.autograd.activation import leaky_relu, relu
from graphlossy.autograd.attention import attention_weights, gat_attention
from graphlossy.autograd.dropout import dropout
from graphlossy.autograd.fused import norm_act_dropout, relu_dropout
from graphlossy.autograd.graph import CSRGraph
from graphlossy.autograd.graph_cache import GraphCache, cached_graph, clear_graph_cache
from graphlossy.autograd.layer_norm import layer_norm
from graphlossy.autograd.linear import linear
from graphlossy.autograd.norm import batch_norm
from graphlossy.autograd.residual import identity_linear, scaled_self
from graphlossy.autograd.spmm import spmm
from graphlossy.autograd.spmm_linear import spmm_linear

__all__ = [
    "CSRGraph",
    "GraphCache",
    "attention_weights",
    "batch_norm",
    "cached_graph",
    "clear_graph_cache",
    "dropout",
    "gat_attention",
    "identity_linear",
    "layer_norm",
    "leaky_relu",
    "linear",
    "norm_act_dropout",
    "relu",
    "relu_dropout",
    "scaled_self",
    "spmm",
    "spmm_linear",
]
