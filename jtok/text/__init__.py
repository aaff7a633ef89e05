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
from jtok.text.chunking import (
    PUBLISHED_BINS,
    ChunkLaw,
    chunk_lengths,
    insert_separators,
    unused_separator,
)
from jtok.text.detokenize import Detokenizer
from jtok.text.lexicon import (
    GramCounts,
    Lexicon,
    build_lexicon,
    count_grams,
    gram_scores,
    load_lexicon,
    merge_counts,
    save_lexicon,
)
from jtok.text.matching import Grams, match_grams
from jtok.text.measure import Compression, compression, spans_words
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
from jtok.text.supertokens import train_supertokens, train_word_bpe, training_words
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
    "PUBLISHED_BINS",
    "Alphabet",
    "ChunkLaw",
    "Compression",
    "Detokenizer",
    "GramCounts",
    "Grams",
    "Lexicon",
    "Overlap",
    "PairMerge",
    "PairMerger",
    "Pieces",
    "Units",
    "Vocabulary",
    "build_lexicon",
    "byte_alphabet",
    "char_alphabet",
    "chunk_lengths",
    "clean_words",
    "compression",
    "count_grams",
    "decompose",
    "frequency_groups",
    "gram_scores",
    "insert_separators",
    "join_words",
    "load_lexicon",
    "match_grams",
    "merge_counts",
    "numeric_scheme",
    "numeric_warning",
    "overlap",
    "prefix_matches",
    "same_word",
    "save_lexicon",
    "spans_words",
    "spelled_bytes",
    "split_words",
    "subword_alphabet",
    "token_keys",
    "train_supertokens",
    "train_word_bpe",
    "training_words",
    "units",
    "unused_separator",
    "word_ids",
    "words_of",
]
