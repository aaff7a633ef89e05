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
from jtok.text.byte_order import ByteOrder, byte_order
from jtok.text.byte_tokens import ByteTokenizer, byte_converted, byte_tokenizer
from jtok.text.chunking import (
    PUBLISHED_BINS,
    ChunkLaw,
    chunk_lengths,
    insert_separators,
    unused_separator,
)
from jtok.text.detokenize import Detokenizer
from jtok.text.dynamic_merging import MergedBatch, MergeRule, merge_batch, merge_rule
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
from jtok.text.longest_prefix import LongestPrefix
from jtok.text.matching import Grams, match_grams
from jtok.text.measure import Compression, compression, spans_words
from jtok.text.merge_budgets import reduction, reduction_bins, sample_merges
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
from jtok.text.sampled_vocabulary import (
    PieceQueue,
    SampledVocabulary,
    sample_vocabulary,
)
from jtok.text.supertokens import train_supertokens, train_word_bpe, training_words
from jtok.text.surface_forms import SurfaceForms, bytes_of_spelled, surface_forms
from jtok.text.validity import valid_next
from jtok.text.vocabulary import Vocabulary
from jtok.text.vocabulary_growth import grow_vocabulary
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
    "ByteOrder",
    "ByteTokenizer",
    "ChunkLaw",
    "Compression",
    "Detokenizer",
    "GramCounts",
    "Grams",
    "Lexicon",
    "LongestPrefix",
    "MergeRule",
    "MergedBatch",
    "Overlap",
    "PairMerge",
    "PairMerger",
    "PieceQueue",
    "Pieces",
    "SampledVocabulary",
    "SurfaceForms",
    "Units",
    "Vocabulary",
    "build_lexicon",
    "byte_alphabet",
    "byte_converted",
    "byte_order",
    "byte_tokenizer",
    "bytes_of_spelled",
    "char_alphabet",
    "chunk_lengths",
    "clean_words",
    "compression",
    "count_grams",
    "decompose",
    "frequency_groups",
    "gram_scores",
    "grow_vocabulary",
    "insert_separators",
    "join_words",
    "load_lexicon",
    "match_grams",
    "merge_batch",
    "merge_counts",
    "merge_rule",
    "numeric_scheme",
    "numeric_warning",
    "overlap",
    "prefix_matches",
    "reduction",
    "reduction_bins",
    "same_word",
    "sample_merges",
    "sample_vocabulary",
    "save_lexicon",
    "spans_words",
    "spelled_bytes",
    "split_words",
    "subword_alphabet",
    "surface_forms",
    "token_keys",
    "train_supertokens",
    "train_word_bpe",
    "training_words",
    "units",
    "unused_separator",
    "valid_next",
    "word_ids",
    "words_of",
]
