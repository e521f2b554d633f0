"""Compress the tables of a DeepCTR-Torch model, then train it with the model's own ``fit``.

Run it with ``python examples/recsys_deepctr_torch.py``; needs ``deepctr-torch``.
"""

import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DeepFM

from graphlossy.recsys.compress import compress_embeddings

USERS, ITEMS, LENGTH = 1000, 2000, 5


def clicks(rows=4000):
    """Synthetic clicks: popular ids are small, and odd users and items are clicked more."""
    rng = np.random.default_rng(0)
    user = (rng.random(rows) ** 3 * USERS).astype("int64")
    item, history = ((rng.random(n) ** 3 * ITEMS).astype("int64") for n in (rows, (rows, LENGTH)))
    return {"user": user, "item": item, "history": history}, ((user % 2 + item % 2) > rng.random(rows)).astype(
        "float32"
    )


def build():
    """Items and the history of items share a table."""
    item = SparseFeat("item", ITEMS, embedding_dim=16)
    history = SparseFeat("history", ITEMS, embedding_dim=16, embedding_name="item")
    columns = [SparseFeat("user", USERS, embedding_dim=16), item, VarLenSparseFeat(history, LENGTH)]
    return DeepFM(columns, columns, dnn_hidden_units=(32,), device="cpu", init_std=0.01)


def batches(model):
    """The float matrix that ``fit`` makes, in pieces."""
    features, label = clicks()
    columns = [features[name].reshape(len(label), -1) for name in model.feature_index]
    matrix = torch.from_numpy(np.concatenate(columns, axis=1)).float()
    return list(zip(matrix.split(500), torch.from_numpy(label).split(500), strict=True))


def loss_fn(model, batch):
    return torch.nn.functional.binary_cross_entropy(model(batch[0]).squeeze(1), batch[1])


def train(model, epochs=4):
    """The framework's own loop."""
    features, label = clicks()
    model.compile(torch.optim.Adam(model.parameters(), lr=0.01), "binary_crossentropy", metrics=["auc"])
    return model.fit(features, label, batch_size=250, epochs=epochs, verbose=0).history["loss"]


def main():
    model = build()
    # The tables of width 1, weights of the linear part, stay; before `compile`, which makes the optimizer.
    report = compress_embeddings(model, batches(model), loss_fn, "pme", budget="1/8", match="embedding_dict.*")
    print(report)
    print("loss by epoch:", [round(loss, 4) for loss in train(model)])


if __name__ == "__main__":
    main()
