"""Compress the tables of a torch-rechub model, then train it with the framework's trainer.

Run it with ``python examples/recsys_torch_rechub.py``; needs ``torch-rechub``.
"""

import tempfile

import torch
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.basic.initializers import RandomNormal
from torch_rechub.models.matching import DSSM
from torch_rechub.models.ranking import DeepFM
from torch_rechub.trainers import CTRTrainer

from graphlossy.recsys.compress import compress_embeddings
from graphlossy.recsys.frameworks.torch_rechub import regularize

USERS, ITEMS, LENGTH = 1000, 2000, 5


def clicks(rows=4000):
    """Synthetic clicks: popular ids are small, and odd users and items are clicked more."""
    draw = torch.Generator().manual_seed(0)
    user = (torch.rand(rows, generator=draw) ** 3 * USERS).long()
    item = (torch.rand(rows, generator=draw) ** 3 * ITEMS).long()
    history = (torch.rand((rows, LENGTH), generator=draw) ** 3 * ITEMS).long()
    label = ((user % 2 + item % 2) > torch.rand(rows, generator=draw)).float()
    return {"user": user, "item": item, "history": history}, label


def features():
    """Items and the history of items share a table."""
    start = RandomNormal(0, 0.1)
    user = [SparseFeature("user", USERS, 16, initializer=start)]
    user += [SequenceFeature("history", ITEMS, 16, pooling="mean", shared_with="item")]
    return user, [SparseFeature("item", ITEMS, 16, initializer=start)]


def build(name="deepfm"):
    user, item = features()
    tower = {"dims": [32, 16], "activation": "relu"}
    if name == "dssm":
        return DSSM(user, item, user_params=tower, item_params=tower)
    return DeepFM(deep_features=user + item, fm_features=user + item, mlp_params={"dims": [32], "activation": "relu"})


def batches(model, size=500):
    data, label = clicks()
    columns = {name: values.split(size) for name, values in data.items()}
    return [({name: parts[k] for name, parts in columns.items()}, y) for k, y in enumerate(label.split(size))]


def loss_fn(model, batch):
    return torch.nn.functional.binary_cross_entropy(model(batch[0]), batch[1])


def train(model, epochs=4):
    """The framework's own trainer."""
    penalty = {"embedding_l1": 0.0, "embedding_l2": 1e-5, "dense_l1": 0.0, "dense_l2": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        trainer = CTRTrainer(model, optimizer_params={"lr": 0.01}, regularization_params=penalty, model_path=folder)
        regularize(trainer)  # compressed tables are embeddings
        return [trainer.train_one_epoch(batches(model, 250)) for _ in range(epochs)]


def main():
    model = build()
    print(compress_embeddings(model, batches(model), loss_fn, "pme", budget="1/8"))
    print("loss by epoch:", [round(loss, 4) for loss in train(model)])


if __name__ == "__main__":
    main()
