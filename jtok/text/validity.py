"""Which tokens can come next in the encoding of some text."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Bool, Integer

from jtok.errors import UnsupportedPretokenizerError
from jtok.text import _tokenizer_json as tj
from jtok.text._byte_grammar import ByteGrammar
from jtok.text._piece_grammar import PieceGrammar
from jtok.text._spines import Merges
from jtok.text._splits import KINDS, splits_of
from jtok.text.vocabulary import Vocabulary

__all__ = ["Grammar", "grammar_of", "valid_next"]


@runtime_checkable
class Grammar(Protocol):
    """What may follow what: an automaton over the ordinary tokens of a vocabulary.

    Attributes:
      start: the configurations before any token, and after a special one.
      table: the bytes of every id; empty for gaps and special tokens.
      prefix: bytes that the tokenizer puts before a text.
      free: configurations of which any text may follow.
      any_bytes: whether texts may be no UTF-8.
    """

    start: tuple[Any, ...]
    free: tuple[Any, ...]
    any_bytes: bool
    table: list[bytes]
    prefix: bytes

    def step(self, opens: tuple[Any, ...], token: int) -> tuple[Any, ...]:
        """The configurations after one more token; none where it cannot follow."""

    def row(self, opens: tuple[Any, ...]) -> np.ndarray:
        """`[size]` bool: the ordinary tokens that can follow."""

    def ends(self, opens: tuple[Any, ...]) -> bool:
        """Whether the text may end here."""


def valid_next(
    vocabulary: Vocabulary,
    ids: Iterable[SupportsIndex] | Integer[np.ndarray, " tokens"],
) -> Bool[np.ndarray, " size"]:
    """The tokens that can follow a token sequence in the encoding of some text.

    A token is valid when there is a text whose encoding begins with the sequence and
    the token. Special tokens are hard boundaries: valid where the text may end, and
    after one a new text begins. Text that spells a special token counts as ordinary
    text, as in tiktoken's `encode_ordinary`. Without a split pattern texts are any
    bytes; with one, and for SentencePiece, they are UTF-8.

    Cost: the merge trees and the classes of all tokens are worked out once a vocabulary
    (about 4 s for 128k tokens on one core). A row is kept for each last token and state
    of the split pattern, the last 1024 of them, and the merges' part of it for the last
    4096 tokens; making one takes under a millisecond of merges and, once for every
    state, some milliseconds of the pattern.

    Args:
      vocabulary: byte-level BPE without a split pattern or with that of GPT-2, Llama 3
        or Qwen 2, or SentencePiece BPE with byte fallback.
      ids: `[tokens]` ids from the start of a text; those that a tokenizer puts there
        (BOS) may stand before.

    Returns:
      `[size]` bool; all False where the sequence itself cannot be.

    Raises:
      ArgumentError: an id is out of range.
      UnsupportedPretokenizerError: another kind of vocabulary; it is named.

    Source: Phan et al. 2025, arXiv 2410.09303, section 3 (valid encodings). Differs:
    split patterns are followed with all they look ahead for.

    Example:
      >>> vocabulary = Vocabulary.train_bpe(["the the the"], 259)
      >>> row = valid_next(vocabulary, [vocabulary.id_of(b"t")])
      >>> bool(row[vocabulary.id_of(b"he")]), bool(row[vocabulary.id_of(b"o")])
      (False, True)
    """
    grammar = grammar_of(vocabulary)
    opens, nothing = grammar.start, np.zeros(vocabulary.size, bool)
    for id_ in vocabulary.checked_ids(ids):
        if id_ in vocabulary.special_ids:
            opens = grammar.start if grammar.ends(opens) else ()
        else:
            opens = grammar.step(opens, id_)
        if not opens:
            return nothing
    valid = grammar.row(opens)
    valid[list(vocabulary.special_ids)] = grammar.ends(opens)
    return valid


_GRAMMARS: "weakref.WeakKeyDictionary[Vocabulary, dict[bool, Grammar]]" = (
    weakref.WeakKeyDictionary()
)


def grammar_of(vocabulary: Vocabulary, *, metaspace: bool = False) -> Grammar:
    """The automaton behind `valid_next`; made once a vocabulary and kept.

    Args:
      vocabulary: as for `valid_next`.
      metaspace: spell spaces as the three bytes of U+2581; for SentencePiece only.

    Returns:
      `Grammar`.

    Raises:
      UnsupportedPretokenizerError: another kind of vocabulary; it is named.
    """
    kept = _GRAMMARS.setdefault(vocabulary, {})
    if metaspace not in kept:
        _check(vocabulary)
        byte_level = vocabulary.kind == "byte_bpe"
        made = _byte_level(vocabulary) if byte_level else _pieces(vocabulary, metaspace)
        kept[metaspace] = made
    return kept[metaspace]


def _check(vocabulary: Vocabulary) -> None:
    spec = vocabulary._spec
    kind, name = vocabulary.kind, vocabulary.pretokenizer
    known = ("none", *KINDS) if kind == "byte_bpe" else ("none", "metaspace")
    why = ""
    if kind not in ("byte_bpe", "sentencepiece_bpe"):
        why = f"a {kind} vocabulary"
    elif name not in known or (name == "metaspace" and not _whole_text(spec)):
        why = f"the pretokeniser {name!r} of a {kind} vocabulary"
    elif not vocabulary.round_trips:
        why = f"a {kind} vocabulary that rewrites text or lacks some byte"
    elif kind == "byte_bpe" and any(
        leaf.get("add_prefix_space") for leaf in _leaves(spec, "pre_tokenizer")
    ):
        why = "the pretokeniser option add_prefix_space"
    if why:
        raise UnsupportedPretokenizerError(
            f"vocabulary: got {why}, which cannot be followed; expected byte-level BPE "
            f"with one of {', '.join(('none', *KINDS))}, or SentencePiece BPE with "
            "byte fallback."
        )


def _leaves(spec: dict[str, Any], step: str) -> Iterator[dict[str, Any]]:
    return tj.parts(spec.get(step), tj._STEPS[step])


def _whole_text(spec: dict[str, Any]) -> bool:
    """Whether a metaspace pretokeniser leaves the text in one piece."""
    leaves = list(_leaves(spec, "pre_tokenizer"))
    return len(leaves) == 1 and leaves[0].get("split") is False


def _byte_level(vocabulary: Vocabulary) -> ByteGrammar:
    table = _ordinary(vocabulary)
    ids: dict[bytes, int] = {}
    for id_, token in enumerate(table):
        ids.setdefault(token, id_)
    rules = {
        (ids[left], ids[right]): (rank, ids[left + right])
        for rank, (left, right) in reversed(list(enumerate(vocabulary.merges or ())))
    }
    letters = {bytes([byte]): ids[bytes([byte])] for byte in range(256)}
    merges = Merges(vocabulary.size, letters, rules)
    name = vocabulary.pretokenizer
    splits = None if name == "none" else splits_of(name)
    whole = bool(vocabulary._spec["model"].get("ignore_merges"))
    return ByteGrammar(table, merges, splits, whole)


def _ordinary(vocabulary: Vocabulary) -> list[bytes]:
    """The bytes of every id, none for special tokens and gaps."""
    special = vocabulary.special_ids
    return [b"" if i in special else t for i, t in enumerate(vocabulary.token_bytes)]


def _pieces(vocabulary: Vocabulary, metaspace: bool) -> PieceGrammar:
    spelled = _ordinary(vocabulary)
    pieces: list[bytes] = [b""] * vocabulary.size
    byte_ids: dict[int, int] = {}
    for id_ in range(vocabulary.size):
        surface = vocabulary.surface_of(id_)
        if surface is None or id_ in vocabulary.special_ids:
            continue
        if tj.is_byte_token(surface):
            byte_ids[id_] = spelled[id_][0]
            pieces[id_] = spelled[id_]
        else:
            pieces[id_] = surface.encode()
    ids = {token: i for i, token in enumerate(pieces) if token and i not in byte_ids}
    rules: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, (left, right) in enumerate(tj.merge_pairs(vocabulary._spec)):
        pair = ids[left.encode()], ids[right.encode()]
        rules.setdefault(pair, (rank, ids[(left + right).encode()]))
    letters = {token: id_ for token, id_ in ids.items() if len(token.decode()) == 1}
    merges = Merges(vocabulary.size, letters, rules)
    table = pieces if metaspace else spelled
    space = "\u2581".encode() if metaspace else b" "
    prefix = space if _dummy_prefix(vocabulary._spec) else b""
    return PieceGrammar(table, pieces, byte_ids, merges, prefix)


def _dummy_prefix(spec: dict[str, Any]) -> bool:
    """Whether every text gets a space before it."""
    prepends = any(leaf["type"] == "Prepend" for leaf in _leaves(spec, "normalizer"))
    schemes = [
        leaf.get("prepend_scheme", "always")
        for leaf in _leaves(spec, "pre_tokenizer")
        if leaf["type"] == "Metaspace"
    ]
    return prepends or any(scheme != "never" for scheme in schemes)
