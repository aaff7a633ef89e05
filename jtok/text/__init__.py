"""Bytes and ids; knows no model."""

from jtok.text.detokenize import Detokenizer
from jtok.text.merging import PairMerge, PairMerger
from jtok.text.vocabulary import Vocabulary

__all__ = ["Detokenizer", "PairMerge", "PairMerger", "Vocabulary"]
