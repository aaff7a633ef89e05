"""More merges for a vocabulary that has some: the training of BPE, gone on with."""

import json
from collections import Counter
from collections.abc import Iterable

import numpy as np

from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.text import _tokenizer_json as tj
from jtok.text._specs import byte_text
from jtok.text.byte_tokens import byte_tokenizer
from jtok.text.merging import PairMerger
from jtok.text.vocabulary import Vocabulary

__all__ = ["grow_vocabulary"]


def grow_vocabulary(
    vocabulary: Vocabulary, texts: Iterable[str], size: int, *, min_count: int = 2
) -> Vocabulary:
    """Continues the merges of a byte-level BPE on a corpus.

    Old ids and merges stay; the new tokens follow. Equal counts go to the smaller pair
    of ids, so the result does not depend on the order of the texts.

    Args:
      vocabulary: of kind `byte_bpe`.
      texts: the corpus, read once.
      size: ids of the result; fewer where no pair occurs `min_count` times.
      min_count: occurrences that a pair needs.

    Returns:
      The larger vocabulary.

    Raises:
      ArgumentError: another kind of vocabulary, or a `size` below the present one.
      ArgumentTypeError: `texts` is one string.

    Source: Feher et al. 2024, arXiv 2411.18553v1, section 3.3 (32 thousand to a
    million).

    Example:
      >>> small = Vocabulary.train_bpe(["the cat, the hat"], 258)
      >>> grow_vocabulary(small, ["the cat, the hat"], 260).token_bytes[258:]
      (b'he', b'the')
    """
    if isinstance(texts, str | bytes):
        raise ArgumentTypeError("texts: got one string, expected several in a list.")
    base = byte_tokenizer(vocabulary)
    check(size >= vocabulary.size, "size", size, f"at least {vocabulary.size}")
    counts: Counter[tuple[int, ...]] = Counter()
    for text in texts:
        for unit in base.split(text):
            counts[tuple(base.pieces(unit.encode()))] += 1
    words = sorted(counts)
    ids = {token: id_ for id_, token in enumerate(base.token_bytes) if token}
    fresh: list[bytes] = []
    merges: list[tuple[bytes, bytes]] = []
    spelled = lambda id_: (
        base.token_bytes[id_] if id_ < base.size else fresh[id_ - base.size]
    )

    def combine(left: int, right: int) -> int:
        token = spelled(left) + spelled(right)
        merges.append((spelled(left), spelled(right)))
        if token not in ids:
            ids[token] = base.size + len(fresh)
            fresh.append(token)
        return ids[token]

    if base.size != vocabulary.size:
        raise ArgumentError("vocabulary: it lacks bytes, expected one with all 256.")
    merger = PairMerger(
        [np.asarray(word, np.int64) for word in words],
        multiplicities=[counts[word] for word in words],
        combine=combine,
        min_count=min_count,
    )
    while vocabulary.size + len(fresh) < size and next(merger, None) is not None:
        pass
    return _with(vocabulary, fresh, merges)


def _with(
    vocabulary: Vocabulary, fresh: list[bytes], merges: list[tuple[bytes, bytes]]
) -> Vocabulary:
    spec = json.loads(vocabulary.tokenizer_json())
    listed = spec["model"]["merges"]
    paired = not listed or not isinstance(listed[0], str)
    for left, right in merges:
        pair = [byte_text(left), byte_text(right)]
        listed.append(pair if paired else " ".join(pair))
    for place, token in enumerate(fresh):
        spec["model"]["vocab"][byte_text(token)] = vocabulary.size + place
    return Vocabulary.from_json(tj.dump(spec), vocabulary.tokenizer_config)
