"""Byte-level BPE whose words are random chunks, so that tokens can span words.

Source: Sharthak et al. 2025, arXiv 2505.09738, section on supertokens.
"""

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import tokenizers

from jtok.errors import ArgumentTypeError, check
from jtok.text import _specs
from jtok.text import _tokenizer_json as tj
from jtok.text.chunking import (
    ChunkLaw,
    Draws,
    chunk_lengths,
    insert_separators,
    unused_separator,
)
from jtok.text.merging import PairMerger
from jtok.text.vocabulary import Vocabulary

__all__ = ["train_supertokens", "train_word_bpe", "training_words"]

Compat = Literal["official"]
_RUN = r"(.)\1{6}"
_GPT2 = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)


def training_words(
    lines: Iterable[str], separator: str | None, *, compat: Compat | None = None
) -> Counter[str]:
    """The words that BPE is trained on, in GPT-2's printable characters, counted.

    Lines are brought to Unicode's form NFC; text that is encoded later is not.

    Args:
      lines: the corpus; no word spans two.
      separator: stands between words and is dropped; None splits by GPT-2's rule.
      compat: "official" drops every run of 7 equal characters (not newlines) and cuts
        there, too: long indentation is never learnt. A run that ends in a separator's
        first characters takes them, and the separator's rest stays.

    Returns:
      Word -> how often it stands there.

    Raises:
      ArgumentError: an empty separator.
      ArgumentTypeError: `lines` is one string.

    Source: Sharthak et al. 2025, arXiv 2505.09738, training pre-tokenizer. Differs: by
    default runs stay.

    Example:
      >>> training_words(["a b|a b", "c"], "|")
      Counter({'aĠb': 2, 'c': 1})
    """
    if isinstance(lines, str):
        raise ArgumentTypeError("lines: got one string, expected several in a list.")
    check(separator != "", "separator", separator, "None or a text that is not empty")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    words: Counter[str] = Counter()
    for line in lines:
        normal = unicodedata.normalize("NFC", line)
        if separator is None:
            pieces = _GPT2.pre_tokenize_str(normal) if normal else []
            words.update(piece for piece, _ in pieces)
        else:
            words.update(
                _specs.byte_text(piece.encode())
                for piece in _chunks(normal, separator, compat)
                if piece
            )
    return words


def _chunks(line: str, separator: str, compat: Compat | None) -> list[str]:
    if compat is None:
        return line.split(separator)
    # One pattern, read from the left: a run may take the beginning of a separator. The
    # odd items of `split` are what its group caught.
    return re.split(f"{re.escape(separator)}|{_RUN}", line)[::2]


def train_word_bpe(
    words: Mapping[str, int],
    size: int,
    *,
    specials: Sequence[str] = ("<|endoftext|>",),
    min_count: int = 2,
    max_token_length: int | None = 30,
    split: Literal["none", "gpt2"] = "none",
    trainer: Literal["jtok", "tokenizers"] = "jtok",
    compat: Compat | None = None,
) -> Vocabulary:
    """Trains a byte-level BPE on counted words, deterministically.

    Ids: the specials in order, then the 256 bytes, then the merges. The most frequent
    pair is merged first; ties go to the smaller pair of ids.

    Args:
      words: word in GPT-2's printable characters -> count, from `training_words`.
      size: number of ids; fewer when no pair is left that may be merged.
      specials: control tokens; the first has the roles `bos`, `eos` and `pad`.
      min_count: rarer pairs are not merged.
      max_token_length: bytes of the longest token that merging makes; None for any.
      split: how the vocabulary splits text that it encodes: "none" makes one word of
        a whole text (`tokenizers` encodes it in O(n log n)), "gpt2" splits by GPT-2's
        rule.
      trainer: "tokenizers" finds the same merges in compiled code, for large corpora.
      compat: "official" is the trainer of `tokenizers`, whose tokens stay one byte
        below `max_token_length` (but for pairs of bytes).

    Returns:
      The vocabulary.

    Raises:
      ArgumentError: `size` without room for the bytes and the specials, specials that
        are empty or repeated, a word of other characters, or an option out of range.

    Source: Sharthak et al. 2025, arXiv 2505.09738, and Sennrich et al. 2016.

    Example:
      >>> words = training_words(["on the|on the|one"], "|")
      >>> train_word_bpe(words, 262).token_bytes[-2:]
      (b' the', b'on the')
    """
    names = _first_names(specials, size)
    check(split in ("none", "gpt2"), "split", split, "'none' or 'gpt2'")
    check(min_count >= 1, "min_count", min_count, "at least 1")
    good = max_token_length is None or max_token_length >= 2
    check(good, "max_token_length", max_token_length, "None or at least 2")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    if max_token_length is not None and compat == "official":
        max_token_length = max(2, max_token_length - 1)
    check(trainer in ("jtok", "tokenizers"), "trainer", trainer, "'jtok', 'tokenizers'")
    for word, count in words.items():
        check(set(word) <= tj.byte_alphabet().keys(), "words", word, "GPT-2's letters")
        check(count >= 1, "words", {word: count}, "counts of at least 1")
    find = _merges if trainer == "jtok" else _merges_of_tokenizers
    merges = find(words, names, size, min_count, max_token_length)
    model = {"type": "BPE", "vocab": {name: id_ for id_, name in enumerate(names)}}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    spec = _specs.specification(
        {**model, "merges": [list(pair) for pair in merges]},
        pre_tokenizer={**level, "use_regex": split == "gpt2"},
        decoder={**level, "use_regex": True},
    )
    _specs.add_specials(spec, {name: id_ for id_, name in enumerate(specials)})
    roles = {f"{r}_token": specials[0] for r in ("bos", "eos", "pad") if specials}
    return Vocabulary.from_json(tj.dump(spec), roles)


def _first_names(specials: Sequence[str], size: int) -> list[str]:
    """The tokens that stand before the merges."""
    check(all(specials), "specials", specials, "no empty token")
    check(len(set(specials)) == len(specials), "specials", specials, "no token twice")
    names = [*specials, *sorted(tj.byte_alphabet())]
    least = len(names)
    check(len(set(names)) == least, "specials", specials, "no single byte")
    check(size >= least, "size", size, f"at least {least}: 256 bytes and specials")
    return names


def _merges(
    words: Mapping[str, int],
    names: list[str],
    size: int,
    min_count: int,
    max_length: int | None,
) -> list[tuple[str, str]]:
    """The merges in order; puts their tokens behind `names`."""
    ids = {name: id_ for id_, name in enumerate(names)}

    def combine(left: int, right: int) -> int:
        return ids.setdefault(names[left] + names[right], len(names))

    merger = PairMerger(
        [[ids[letter] for letter in word] for word in words],
        multiplicities=list(words.values()),
        combine=combine,
        min_count=min_count,
        lengths=None if max_length is None else [1] * len(names),
        max_length=max_length,
    )
    merges: dict[tuple[str, str], None] = {}
    while len(names) < size and (step := next(merger, None)) is not None:
        pair = names[step.left], names[step.right]
        # Another way to spell a token may bring back a pair that was merged.
        merges.setdefault(pair)
        if step.new == len(names):
            names.append("".join(pair))
    return list(merges)


def _merges_of_tokenizers(
    words: Mapping[str, int],
    names: list[str],
    size: int,
    min_count: int,
    max_length: int | None,
) -> list[tuple[str, str]]:
    """As `_merges`, by the trainer of `tokenizers`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    # No word holds a space: it is written as another character.
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "removed")
    letters = tj.byte_alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_count,
        max_token_length=None if max_length is None else max_length + 1,
        special_tokens=[name for name in names if name not in letters],
        initial_alphabet=sorted(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_repeated(words), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    names[:] = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return [(left, right) for left, right in model["merges"]]


def _repeated(words: Mapping[str, int]) -> Iterator[str]:
    for word, count in words.items():
        for done in range(0, count, 1000):
            yield " ".join(itertools.repeat(word, min(1000, count - done)))


def train_supertokens(
    texts: Iterable[str],
    size: int,
    draws: Draws | int,
    *,
    law: ChunkLaw | None = None,
    separator: str | None = None,
    specials: Sequence[str] = ("<|endoftext|>",),
    min_count: int = 2,
    max_token_length: int = 30,
    trainer: Literal["jtok", "tokenizers"] = "jtok",
    compat: Compat | None = None,
) -> Vocabulary:
    """Trains a vocabulary whose tokens may span words, from random chunks of text.

    Only the training is random. The vocabulary encodes a whole text as one word.

    Args:
      texts: the corpus.
      size: number of ids; fewer when no pair is left that may be merged.
      draws: a seed, or what `chunk_lengths` draws from.
      law: lengths of the chunks; None for the published bins, normalised.
      separator: put between chunks on the way; None finds one that no text holds.
      specials: as for `train_word_bpe`, and so the next two.
      min_count: rarer pairs are not merged.
      max_token_length: bytes of the longest token.
      trainer: as for `train_word_bpe`.
      compat: "official" drops runs of 7 equal characters from the corpus, see
        `training_words`, and makes tokens one byte shorter, see `train_word_bpe`.

    Returns:
      The vocabulary; `save` writes a `tokenizer.json`.

    Raises:
      ArgumentError: as for `train_word_bpe` and `insert_separators`.
      ArgumentTypeError: `texts` is one string.

    Source: Sharthak et al. 2025, arXiv 2505.09738, section on supertokens. Differs: an
    unused separator, runs are kept, the published bins are normalised.

    Example:
      >>> train_supertokens(["of the day, of the sea"] * 9, 300, 0).pretokenizer
      'none'
    """
    if isinstance(texts, str):
        raise ArgumentTypeError("texts: got one string, expected several in a list.")
    corpus = list(texts)
    law = ChunkLaw.normalised() if law is None else law
    draws = np.random.default_rng(draws) if isinstance(draws, int) else draws
    separator = unused_separator(corpus) if separator is None else separator
    lines = (
        insert_separators(text, chunk_lengths(len(text), law, draws), separator)
        for text in corpus
    )
    return train_word_bpe(
        training_words(lines, separator, compat=compat),
        size,
        specials=specials,
        min_count=min_count,
        max_token_length=max_token_length,
        trainer=trainer,
        compat=compat,
    )
