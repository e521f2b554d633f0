"""Compress the tables of a torchrec ``EmbeddingBagCollection``, here of its DLRM, and train.

Run it with ``python examples/recsys_torchrec.py``; needs ``torchrec`` and ``fbgemm-gpu-cpu`` (or ``fbgemm-gpu``).
"""

import torch
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from graphlossy.recsys.compress import compress_embeddings

USERS, ITEMS = 1000, 2000


def build():
    """Items and the history of items, a bag of any length, share a table."""
    sizes = {"num_embeddings": USERS, "embedding_dim": 16, "pooling": PoolingType.SUM}
    tables = [
        EmbeddingBagConfig(name="t_user", feature_names=["user"], **sizes),
        EmbeddingBagConfig(name="t_item", feature_names=["item", "history"], **sizes | {"num_embeddings": ITEMS}),
    ]
    collection = EmbeddingBagCollection(tables=tables, device=torch.device("cpu"))
    return DLRM(collection, dense_in_features=4, dense_arch_layer_sizes=[32, 16], over_arch_layer_sizes=[32, 1])


def batches(model, size=250, count=16):
    """Synthetic clicks: popular ids are small, and odd users and items are clicked more."""
    draw, found = torch.Generator().manual_seed(0), []
    for _ in range(count):
        user = (torch.rand(size, generator=draw) ** 3 * USERS).long()
        item = (torch.rand(size, generator=draw) ** 3 * ITEMS).long()
        label = ((user % 2 + item % 2) > torch.rand(size, generator=draw)).float()
        lengths = torch.randint(0, 6, (size,), generator=draw)  # empty histories too
        history = (torch.rand(int(lengths.sum()), generator=draw) ** 3 * ITEMS).long()
        features = KeyedJaggedTensor.from_lengths_sync(
            keys=["user", "item", "history"],
            values=torch.cat([user, item, history]),
            lengths=torch.cat([torch.ones(2 * size, dtype=torch.int64), lengths]),
        )
        found.append((torch.rand((size, 4), generator=draw), features, label))
    return found


def loss_fn(model, batch):
    dense, features, label = batch
    return torch.nn.functional.binary_cross_entropy_with_logits(model(dense, features).squeeze(1), label)


def train(model, epochs=4):
    """One process; `DistributedModelParallel` would shard tables of torch's own kind only."""
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    model.train()
    for _ in range(epochs):
        total = 0.0
        for batch in batches(model):
            loss = loss_fn(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / 16)
    return losses


def main():
    model = build()
    print(compress_embeddings(model, batches(model), loss_fn, "pme", budget="1/8", match="*embedding_bags.*"))
    print("loss by epoch:", [round(loss, 4) for loss in train(model)])


if __name__ == "__main__":
    main()
