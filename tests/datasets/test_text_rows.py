"""Tokens as rows: packed blocks, one document a row, and examples for classifiers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.datasets import DatasetError
from graphlossy.datasets import _text_rows as rows_module
from graphlossy.datasets.text import Document, blocks, classes, examples, rows

END, PAD, FIRST = 0, 9, 7


class Letters:
    """A token a letter; the special tokens go around the text and stay when it is cut."""

    eos_token_id: int | None = END
    pad_token_id: int | None = PAD

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, texts: list[str], add_special_tokens: bool, **options: Any) -> dict[str, list[list[int]]]:
        self.calls.append(len(texts))
        found = [[ord(letter) for letter in text] for text in texts]
        if add_special_tokens:
            assert options["truncation"]
            found = [[FIRST, *ids][: options["max_length"]] for ids in found]
        return {"input_ids": found}


class Bare(Letters):
    eos_token_id = pad_token_id = None


TEXTS = st.lists(st.text(st.characters(min_codepoint=20, max_codepoint=400), max_size=30), max_size=20)


def stream(texts: list[str]) -> list[int]:
    return [token for text in texts for token in [*map(ord, text), END]]


@given(TEXTS, st.integers(2, 12), st.integers(1, 7))
def test_packing_loses_doubles_and_reorders_nothing(texts: list[str], length: int, batch: int) -> None:
    expected = stream(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_BATCH", batch)
        if not any(texts):
            with pytest.raises(DatasetError, match="the text is empty: the tokenizer makes no token of it"):
                blocks(texts, Letters(), length)
            return
        if len(expected) < length:
            with pytest.raises(DatasetError, match=rf"has {len(expected)} tokens, fewer than one block of {length};"):
                blocks(texts, Letters(), length)
            return
        found = blocks([Document(str(i), text) for i, text in enumerate(texts)], Letters(), length)
    assert found.dtype == torch.int64 and found.shape == (len(expected) // length, length)
    assert found.flatten().tolist() == expected[: found.numel()] and len(expected) - found.numel() < length


@given(TEXTS.filter(any), st.integers(2, 12))
def test_rows_lose_double_and_reorder_nothing(texts: list[str], length: int) -> None:
    found = rows(texts, Letters(), length)
    ids, mask, labels = found["input_ids"], found["attention_mask"], found["labels"]
    assert ids.dtype == mask.dtype == labels.dtype == torch.int64 and ids.shape == mask.shape == labels.shape
    assert ids.shape[1] <= length and mask.sum(1).max() == ids.shape[1]
    assert ids[mask == 1].tolist() == stream(texts)
    assert (ids[mask == 0] == PAD).all() and (labels[mask == 0] == -100).all()
    assert torch.equal(labels[mask == 1], ids[mask == 1])
    assert (mask.diff(dim=1) <= 0).all()  # padding is on the right
    assert len(ids) == sum(-(-(len(text) + 1) // length) for text in texts)
    ends = (ids == END) & (mask == 1)
    assert ends.sum() == len(texts)
    last = mask.sum(1) - 1
    assert all((row.nonzero().flatten() == place).all() for row, place in zip(ends, last, strict=True))  # one a row


def test_an_end_token_that_is_the_padding_too() -> None:
    """As in SmolLM2: the real end token has a part in the loss, the padding has none."""
    tokenizer = Letters()
    tokenizer.pad_token_id = END
    found = rows(["ab", "c"], tokenizer, 4)
    assert found["input_ids"].tolist() == [[97, 98, END], [99, END, END]]
    assert found["labels"].tolist() == [[97, 98, END], [99, END, -100]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_special_tokens_by_number() -> None:
    assert blocks(["ab", "cd"], Bare(), 3, end=5).tolist() == [[97, 98, 5], [99, 100, 5]]
    found = rows(["ab", "c"], Bare(), 3, end=5)
    assert found["input_ids"].tolist() == [[97, 98, 5], [99, 5, 5]] and found["labels"][1, 2] == -100
    assert rows(["ab", "c"], Bare(), 3, end=5, pad=6)["input_ids"].tolist() == [[97, 98, 5], [99, 5, 6]]
    for function in (blocks, rows):
        with pytest.raises(ValueError, match=r"the tokenizer has no end token; give the number of one as end"):
            function(["ab"], Bare(), 3)
    with pytest.raises(ValueError, match=r"the tokenizer has no padding token; give the number of one as pad"):
        examples([Document("a", "a", 0)], Bare(), 3, [0, 1])


def test_documents_go_to_the_tokenizer_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_BATCH", 3)
    tokenizer = Letters()
    blocks(["ab"] * 7, tokenizer, 3)
    assert tokenizer.calls == [3, 3, 1]


@pytest.mark.parametrize("function", [blocks, rows, lambda *a, **k: examples(*a, [0, 1], **k)])
@pytest.mark.parametrize(
    ("length", "limit", "error", "words"),
    [
        (9000, 8192, ValueError, "length must be at most 8,192 tokens, which is the model's limit, got 9,000"),
        (0, None, ValueError, "length must be at least [12] tokens?, got 0"),
        (-4, 8, ValueError, "length must be at least"),
        (2.0, None, TypeError, "length must be a number of tokens, got 2.0"),
        (True, None, TypeError, "length must be a number of tokens, got True"),
        (4, "8192", TypeError, "limit must be a number of tokens, got '8192'"),
    ],
)
def test_lengths_that_are_wrong(function: Any, length: Any, limit: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        function([Document("a", "abc", 0)], Letters(), length, limit=limit)


def test_a_length_that_is_the_limit() -> None:
    assert blocks(["abcd"], Letters(), 4, limit=4).shape == (1, 4)


def test_no_text() -> None:
    for texts in ([], ["", ""]):
        with pytest.raises(DatasetError, match="the text is empty"):
            rows(texts, Letters(), 4)


def labelled(*labels: Any) -> list[Document]:
    return [Document(str(i), "abcdef"[: i + 1], label) for i, label in enumerate(labels)]


def test_examples() -> None:
    documents = labelled("spam", "ham", "spam")
    assert classes(documents) == ["ham", "spam"] and classes(labelled(7, 3, 7)) == [3, 7]
    found = examples(documents, Letters(), 3, classes(documents))
    assert found["labels"].tolist() == [1, 0, 1] and found["labels"].dtype == torch.int64
    assert found["input_ids"].tolist() == [[FIRST, 97, PAD], [FIRST, 97, 98], [FIRST, 97, 98]]
    assert found["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert examples(labelled(3, 7), Letters(), 3, [3, 7])["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, "a"], "some labels are numbers, such as 1, others texts, such as 'a'"),
        ([1, 1], "all labels are 1; a classifier needs two classes or more"),
        ([], "there is no document; a classifier needs"),
        ([1, None], r"document 'ab' has no label; read it with label_field from a .jsonl file"),
        ([1, True], r"document 'ab' has the label True, which is no whole number and no text"),
        ([1, 0.5], r"has the label 0.5, which is no"),
    ],
)
def test_labels_that_are_wrong(labels: list[Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        classes(labelled(*labels))


def test_examples_that_are_wrong() -> None:
    with pytest.raises(DatasetError, match=r"label 'eggs' of document 'a' is none of the 2 classes \('ham', 'spam'\)"):
        examples(labelled("eggs"), Letters(), 3, ["ham", "spam"])
    with pytest.raises(DatasetError, match=r"of document 'aaaa.*\.\.\.' is none of the 9 classes \(.*, 7, \.\.\.\)"):
        examples([Document("a", "a" * 99, 11)], Letters(), 3, list(range(9)))
    with pytest.raises(DatasetError, match="there is no document"):
        examples([], Letters(), 3, [0, 1])

    class Deaf(Letters):
        def __call__(self, texts: list[str], add_special_tokens: bool, **options: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[1], []]}

    with pytest.raises(DatasetError, match="the tokenizer makes no token of document 'ab'; leave it out"):
        examples(labelled(0, 1), Deaf(), 3, [0, 1])


def test_tokenizers_of_transformers() -> None:
    """A byte-level one for language models, and one with BERT's special tokens for classification."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {token: i for i, token in enumerate(["<end>", "[CLS]", "[SEP]", *letters])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", model_max_length=4)
    texts = ["Ünicode text,\n", "and more"]
    ids = blocks(texts, tokenizer, 5).flatten().tolist()
    assert tokenizer.decode(ids).startswith("Ünicode text,\n<end>and m") and len(ids) == 5 * (26 // 5)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    bert = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token="[CLS]", sep_token="[SEP]", pad_token="<end>"
    )
    found = examples([Document("a", "abcdef", 0), Document("b", "a", 1)], bert, 4, [0, 1])
    a, b = words["a"], words["b"]
    assert found["input_ids"].tolist() == [[1, a, b, 2], [1, a, 2, 0]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
