"""Bytes and ids; knows no model."""

from jtok.text.alphabets import (
    Alphabet,
    Units,
    byte_alphabet,
    char_alphabet,
    subword_alphabet,
    units,
    words_of,
)
from jtok.text.detokenize import Detokenizer
from jtok.text.merging import PairMerge, PairMerger
from jtok.text.overlap import (
    Overlap,
    numeric_scheme,
    numeric_warning,
    overlap,
    prefix_matches,
    spelled_bytes,
    token_keys,
)
from jtok.text.pieces import Pieces, decompose
from jtok.text.vocabulary import Vocabulary
from jtok.text.words import (
    clean_words,
    frequency_groups,
    join_words,
    same_word,
    split_words,
    word_ids,
)

__all__ = [
    "Alphabet",
    "Detokenizer",
    "Overlap",
    "PairMerge",
    "PairMerger",
    "Pieces",
    "Units",
    "Vocabulary",
    "byte_alphabet",
    "char_alphabet",
    "clean_words",
    "decompose",
    "frequency_groups",
    "join_words",
    "numeric_scheme",
    "numeric_warning",
    "overlap",
    "prefix_matches",
    "same_word",
    "spelled_bytes",
    "split_words",
    "subword_alphabet",
    "token_keys",
    "units",
    "word_ids",
    "words_of",
]
