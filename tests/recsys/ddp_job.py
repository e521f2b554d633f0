"""One of two processes that train a small model with DDP: ``ddp_job.py RANK FOLDER``; its parameters go to a file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from graphlossy.recsys import MultiSizeEmbedding, MultiSizeEmbeddingBag

STEPS, BATCH = 3, 16


class Model(nn.Module):
    """A user's row times the sum of the rows of items."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        sizes = torch.tensor([6, 2, 0, 2]).repeat(25)
        self.user = MultiSizeEmbedding(100, 6, sizes=sizes, shared_rows=5, padding_idx=1)
        self.item = MultiSizeEmbeddingBag(100, 6, sizes=sizes, mode="sum", projection="per_size")
        self.plain = nn.Linear(6, 1)

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return self.plain(self.user(users) * self.item(items)).squeeze(1)


def train(model: nn.Module, part: slice) -> dict[str, torch.Tensor]:
    """Three steps of SGD on a share of every batch; the mean of the shares' gradients is that of the batch."""
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(STEPS):
        users = torch.randint(0, 100, (BATCH,), generator=generator)[part]
        items = torch.randint(0, 100, (BATCH, 3), generator=generator)[part]
        target = torch.randn(BATCH, generator=generator)[part]
        loss = (model(users, items) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name.removeprefix("module."): p.detach().clone() for name, p in model.named_parameters()}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = Model()
    if rank:
        with torch.no_grad():  # DDP must send the parameters of rank 0
            for p in model.parameters():
                p.add_(1.0)
    wrapped = nn.parallel.DistributedDataParallel(model)
    half = BATCH // 2
    torch.save(train(wrapped, slice(rank * half, (rank + 1) * half)), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
