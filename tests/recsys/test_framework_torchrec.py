"""torchrec: `EmbeddingBagCollection` over a KeyedJaggedTensor, alone and in its DLRM."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*:Warning:(torchrec|fbgemm_gpu|tensordict|pyre_extensions)"),
]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        pytest.importorskip("torchrec", exc_type=ImportError)
    except OSError as error:  # fbgemm's libraries are made for one version of torch
        pytest.skip(f"fbgemm does not go with this torch: {error}", allow_module_level=True)
    _spec = importlib.util.spec_from_file_location("framework_checks", Path(__file__).with_name("framework_checks.py"))
    checks = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(checks)
    pipeline = checks.example("torchrec")


@pytest.mark.parametrize("method", ["pme", "frequency"])
def test_dlrm(method: str) -> None:
    report = checks.check(pipeline, method, match="*embedding_bags.*")
    assert [table.name.rpartition(".")[2] for table in report.tables] == ["t_user", "t_item"]
    assert report.notes == ()


def collection(**options):
    from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    mean = {"pooling": PoolingType.MEAN, "feature_names": ["a"]}
    tables = [EmbeddingBagConfig(name="t", num_embeddings=300, embedding_dim=8, **{**mean, **options})]
    weighted = tables[0].pooling is PoolingType.SUM
    return EmbeddingBagCollection(tables=tables, device=torch.device("cpu"), is_weighted=weighted)


def features(weights: torch.Tensor | None = None, dtype: torch.dtype = torch.int64):
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    lengths = torch.tensor([2, 0, 3, 1], dtype=torch.int32)
    return KeyedJaggedTensor(
        keys=["a"], values=torch.tensor([1, 2, 3, 3, 0, 299], dtype=dtype), lengths=lengths, weights=weights
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_collection_gives_what_its_dense_tables_give(weighted: bool, dtype: torch.dtype) -> None:
    from torchrec.modules.embedding_configs import PoolingType

    ebc = collection(pooling=PoolingType.SUM if weighted else PoolingType.MEAN)
    kjt = features(torch.rand(6) if weighted else None, dtype)
    checks.compress_embeddings(
        ebc, [kjt], lambda model, batch: model(batch).values().square().mean(), "uniform", "1/2", progress=False
    )
    assert checks.compressed(ebc.embedding_bags["t"])
    out = ebc(kjt)
    assert out.keys() == ["a"] and out.values().shape == (4, 8) and not out.values()[1].any()
    found = out["a"].detach().clone()
    from graphlossy.recsys.compress import restore_dense

    assert restore_dense(ebc) == ["embedding_bags.t"]
    torch.testing.assert_close(ebc(kjt)["a"], found)


def test_ids_out_of_range_name_the_table() -> None:
    ebc, kjt = collection(), features()
    checks.compress_embeddings(
        ebc, [kjt], lambda model, batch: model(batch).values().square().mean(), "uniform", "1/2", progress=False
    )
    kjt = type(kjt)(keys=["a"], values=torch.tensor([300]), lengths=torch.tensor([1]))
    with pytest.raises(IndexError, match="feature 'embedding_bags.t': id 300 is not in the table of 300 tokens"):
        ebc(kjt)
