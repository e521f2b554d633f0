"""What cannot be trained on is refused with one line that says what, where and what to do."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data

from graphlossy.datasets import DatasetError, check_data


def good(**changes: object) -> Data:
    node = torch.arange(6)
    values: dict[str, object] = {
        "x": torch.arange(12.0).reshape(6, 2),
        "edge_index": torch.stack([node, (node + 1) % 6]),
        "y": node % 3,
        "train_mask": node < 2,
        "val_mask": node == 2,
        "test_mask": node > 2,
        "name": "six",
    }
    return Data(**{name: value for name, value in (values | changes).items() if value is not None})


def with_values(positions: dict[tuple[int, int], float]) -> torch.Tensor:
    x = torch.zeros(6, 2)
    for position, value in positions.items():
        x[position] = value
    return x


nan, inf = float("nan"), float("inf")
BAD = {
    "no x": ({"x": None}, "six: x is missing; x, edge_index, y and train_mask, val_mask, test_mask must be tensors"),
    "x a list": ({"x": [1.0]}, "x is a list"),
    "x flat": ({"x": torch.zeros(6)}, r"x has shape \[6\]; it must be \[nodes, features\]"),
    "no nodes": ({"x": torch.zeros(0, 2)}, r"x has shape \[0, 2\]; there must be at least one node"),
    "no features": ({"x": torch.zeros(6, 0)}, "at least one node and one feature"),
    "x integer": ({"x": torch.zeros(6, 2, dtype=torch.int64)}, "x is torch.int64; it must be floating"),
    "one NaN": ({"x": with_values({(4, 1): nan})}, "1 NaN or infinite value, at node 4, feature 1; every feature must"),
    "NaN and inf": (
        {"x": with_values({(5, 0): -inf, (2, 1): inf, (3, 0): nan})},
        "3 NaN or infinite values, the first at node 2, feature 1",
    ),
    "edges float": ({"edge_index": torch.zeros(2, 3)}, r"type torch.float32; it must be \[2, edges\] and torch.int64"),
    "edges turned": ({"edge_index": torch.zeros(3, 2, dtype=torch.int64)}, r"edge_index has shape \[3, 2\]"),
    "edge too high": (
        {"edge_index": torch.tensor([[0, 1, 7], [1, 6, 0]])},
        r"2 edges with an end out of range, the first at column 1 \(1, 6\); node numbers of 6 nodes go from 0 to 5",
    ),
    "edge negative": ({"edge_index": torch.tensor([[0], [-1]])}, r"1 edge with an end out of range, at column 0"),
    "y short": ({"y": torch.zeros(5, dtype=torch.int64)}, r"y has shape \[5\]; it must be \[6\]"),
    "y float": ({"y": torch.zeros(6)}, "y is torch.float32; class numbers must be torch.int64"),
    "y negative": (
        {"y": torch.tensor([0, -1, 1, -1, 0, 0])},
        r"2 labels out of range, the first at node 1 \(-1\); labels must go from 0 to 5 \(no graph has more classes",
    ),
    "y over classes": (
        {"y": torch.tensor([0, 1, 2, 0, 1, 3]), "num_classes": 3},
        r"1 label out of range, at node 5 \(3\); labels must go from 0 to 2 \(there are 3 classes\)",
    ),
    "y many": ({"y": torch.tensor([0, 1, 2, 3, 4, 6])}, "from 0 to 5"),
    "tasks": ({"y": torch.tensor([[0.0], [1], [0], [nan], [0.5], [1]])}, r"y\[4, 0\] is 0.5; labels of several tasks"),
    "no mask": ({"val_mask": None}, "val_mask is missing"),
    "mask integer": (
        {"train_mask": torch.ones(6, dtype=torch.int64)},
        "type torch.int64; all masks must be torch.bool",
    ),
    "mask short": ({"test_mask": torch.zeros(5, dtype=torch.bool)}, r"test_mask has shape \[5\]"),
    "overlap": (
        {"test_mask": torch.tensor([False, True, False, True, True, True])},
        "train_mask and test_mask share 1 node, namely node 1; a node may be in one mask only",
    ),
    "no training": ({"train_mask": torch.zeros(6, dtype=torch.bool)}, "there are no training nodes; train_mask must"),
}


@pytest.mark.parametrize("case", BAD)
def test_each_fault_is_named(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(DatasetError, match=message) as caught:
        check_data(good(**changes))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("six: ")


def test_good_data_pass() -> None:
    check_data(good())
    check_data(good(edge_index=torch.zeros(2, 0, dtype=torch.int64)))
    check_data(good(y=torch.tensor([[0.0, 1.0]] * 5 + [[nan, 1.0]])))
    check_data(good(x=torch.zeros(6, 2, dtype=torch.bfloat16), num_classes=3))


def test_a_split_without_training_nodes_is_found_among_several() -> None:
    masks = {name: getattr(good(), name)[:, None].repeat(1, 3) for name in ("train_mask", "val_mask", "test_mask")}
    check_data(good(**masks))
    masks["train_mask"][:, 1] = False
    with pytest.raises(DatasetError, match="no training nodes in split 1;"):
        check_data(good(**masks))


def test_it_is_a_value_error_and_takes_another_name() -> None:
    with pytest.raises(ValueError, match="^mine: y is missing"):
        check_data(good(y=None), "mine")


def test_features_are_looked_at_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    import graphlossy.datasets._check as module

    monkeypatch.setattr(module, "_CHUNK", 4)  # two nodes at a time
    with pytest.raises(DatasetError, match="3 NaN or infinite values, the first at node 1, feature 1;"):
        check_data(good(x=with_values({(1, 1): nan, (2, 0): nan, (5, 0): nan})))
