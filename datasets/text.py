"""Text to fine-tune language models on: documents, their split into parts, and their tokens as rows of one length.

Example:
    >>> from graphlossy.datasets import text
    >>> parts = text.split(text.documents("pydoc"), valid=0.1, test=0.1)
    >>> [document.name for document in parts.test][:2]
    ['topic:assignment', 'topic:atom-identifiers']
"""

from graphlossy.datasets._text_documents import Document, documents
from graphlossy.datasets._text_rows import blocks, classes, examples, rows
from graphlossy.datasets._text_split import Parts, split

__all__ = ["Document", "Parts", "blocks", "classes", "documents", "examples", "rows", "split"]
