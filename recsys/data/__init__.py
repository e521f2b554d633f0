"""Recommender data: tables of clicks or ratings encoded for models, published data by name, and a generator.

>>> from graphlossy.recsys.data import load
>>> data = load("zipf", rows=1_000, vocab=(100, 20))
>>> data.note.split(":")[0], [field.num_tokens for field in data.fields]
('synthetic', [101, 21])
"""

from graphlossy.recsys.data._ctr import CTRData, Field
from graphlossy.recsys.data._encoder import Encoder
from graphlossy.recsys.data._errors import DataError
from graphlossy.recsys.data._layouts import avazu_schema, criteo_schema
from graphlossy.recsys.data._load import default_name, load, names
from graphlossy.recsys.data._negatives import sample_negatives
from graphlossy.recsys.data._packages import fetch, find, licence
from graphlossy.recsys.data._schema import Column, Schema, read_schema
from graphlossy.recsys.data._split import Batches, Split
from graphlossy.recsys.data._vocabulary import Vocabulary
from graphlossy.recsys.data._zipf import zipf

__all__ = [
    "Batches",
    "CTRData",
    "Column",
    "DataError",
    "Encoder",
    "Field",
    "Schema",
    "Split",
    "Vocabulary",
    "avazu_schema",
    "criteo_schema",
    "default_name",
    "fetch",
    "find",
    "licence",
    "load",
    "names",
    "read_schema",
    "sample_negatives",
    "zipf",
]
