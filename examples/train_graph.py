"""A plain PyTorch training loop in which one line makes training keep a fraction of the activations.

Run it with ``python examples/train_graph.py``. To use it for your own model, copy the marked line.
"""

import argparse

import torch
import torch.nn.functional as F
from torch_geometric.nn import SAGEConv

import graphlossy
from graphlossy.datasets import load


class Net(torch.nn.Module):
    """Any model will do: nothing in it knows of graphlossy."""

    def __init__(self, inputs, hidden, classes):
        super().__init__()
        self.conv1 = SAGEConv(inputs, hidden)
        self.norm1 = torch.nn.BatchNorm1d(hidden)
        self.conv2 = SAGEConv(hidden, classes)

    def forward(self, x, edge_index):
        x = F.relu(self.norm1(self.conv1(x, edge_index)))
        x = F.dropout(x, p=0.5, training=self.training)
        return self.conv2(x, edge_index)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="wordnet-verbs")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--bits", type=int, default=2)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load(args.dataset).to(device)
    model = Net(data.num_features, 128, int(data.y.max()) + 1).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    ledger = graphlossy.compress(model, bits=args.bits)  # the one line

    best = test = 0.0
    for epoch in range(1, args.epochs + 1):
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
        loss.backward()
        optimizer.step()

        model.eval()
        with torch.no_grad():
            right = model(data.x, data.edge_index).argmax(dim=1) == data.y
        valid = right[data.val_mask].float().mean().item()
        if valid > best:
            best, test = valid, right[data.test_mask].float().mean().item()
        if epoch % 10 == 0:
            print(f"epoch {epoch:3d}  loss {loss.item():.3f}  valid {valid:.3f}  test at best valid {test:.3f}")

    print(ledger)  # what was kept for the backward pass, tensor by tensor, and what that cost


if __name__ == "__main__":
    main()
