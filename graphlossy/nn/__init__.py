"""Graph layers whose own autograd keeps the least for the backward pass, with PyG's signatures and state_dict keys.

Importing this package does not import PyG; its layers, which derive from PyG's, are loaded when they are first named.

A full-batch GCN that keeps 3.125 bits per hidden element instead of PyG's 136:

>>> import torch
>>> from graphlossy.nn import GCNConv, NormActDropout
>>> conv1, act, conv2 = GCNConv(16, 32), NormActDropout(32, p=0.5), GCNConv(32, 4)
>>> x, edge_index = torch.randn(10, 16), torch.randint(10, (2, 40))
>>> conv2(act(conv1(x, edge_index)), edge_index).shape
torch.Size([10, 4])

In training these layers have first derivatives only: low-bit copies say nothing of the second, and a double backward
through them raises ``RuntimeError``. For a gradient penalty take ``bits=None`` in GCNConv, SAGEConv, GCN2Conv or
GINConv with torch's own activations between them, or PyG's layers under ``graphlossy.compress``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_HOME = {
    "BatchNorm": "batch_norm",
    "Dropout": "dropout",
    "GATConv": "gat_conv",
    "GCN2Conv": "gcn2_conv",
    "GCNConv": "gcn_conv",
    "GINConv": "gin_conv",
    "LayerNorm": "layer_norm",
    "LeakyReLU": "leaky_relu",
    "Linear": "linear",
    "NormActDropout": "norm_act_dropout",
    "ReLU": "relu",
    "SAGEConv": "sage_conv",
}

__all__ = [
    "BatchNorm",
    "Dropout",
    "GATConv",
    "GCN2Conv",
    "GCNConv",
    "GINConv",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "NormActDropout",
    "ReLU",
    "SAGEConv",
]

if TYPE_CHECKING:
    from graphlossy.nn.batch_norm import BatchNorm
    from graphlossy.nn.dropout import Dropout
    from graphlossy.nn.gat_conv import GATConv
    from graphlossy.nn.gcn2_conv import GCN2Conv
    from graphlossy.nn.gcn_conv import GCNConv
    from graphlossy.nn.gin_conv import GINConv
    from graphlossy.nn.layer_norm import LayerNorm
    from graphlossy.nn.leaky_relu import LeakyReLU
    from graphlossy.nn.linear import Linear
    from graphlossy.nn.norm_act_dropout import NormActDropout
    from graphlossy.nn.relu import ReLU
    from graphlossy.nn.sage_conv import SAGEConv


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(importlib.import_module(f"graphlossy.nn.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'graphlossy.nn' has no attribute {name!r}; its names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
