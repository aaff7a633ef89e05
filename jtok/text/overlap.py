"""Which tokens two vocabularies share, compared by the bytes that they stand for."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Int32

from jtok.errors import check
from jtok.text import _tokenizer_json as tj
from jtok.text.vocabulary import Vocabulary

__all__ = [
    "ROLES",
    "Overlap",
    "numeric_scheme",
    "numeric_warning",
    "overlap",
    "prefix_matches",
    "spelled_bytes",
    "token_keys",
]

ROLES = ("bos", "eos", "pad", "unk", "mask", "sep", "cls")
NUMBERS = ("7", "42", "123", "1234", "12345")

Key = tuple[str, str | bytes]
Compat = Literal["official"]


@dataclasses.dataclass(frozen=True)
class Overlap:
    """The tokens of a target vocabulary that a source vocabulary has, too.

    Attributes:
      source_ids: `[shared]` int32, the partner of each shared token; may repeat.
      target_ids: `[shared]` int32, ascending.
      first: `[shared]` bool: no better pair has the same source token. What is fitted
        to shared tokens is fitted to these.
      new_ids: `[new]` int32 ascending: target tokens without a partner.
      roles: role -> (source id, target id) of the tokens that were matched by role.
    """

    source_ids: np.ndarray
    target_ids: np.ndarray
    first: np.ndarray
    new_ids: np.ndarray
    roles: Mapping[str, tuple[int, int]]

    def keep(self, kept: np.ndarray) -> "Overlap":
        """Leaves only some of the pairs; the other target tokens become new.

        Args:
          kept: `[shared]` bool.
        """
        new = np.union1d(self.new_ids, self.target_ids[~kept]).astype(np.int32)
        left = set(self.target_ids[kept].tolist())
        roles = {role: pair for role, pair in self.roles.items() if pair[1] in left}
        pairs = (self.source_ids[kept], self.target_ids[kept], self.first[kept])
        return Overlap(*pairs, new, roles)


def spelled_bytes(vocabulary: Vocabulary) -> tuple[bytes, ...]:
    """The bytes of every id, with the space before a word where a file leaves it out.

    `token_bytes`, but that tokens of WordPiece and word-level vocabularies that begin
    a word have a space before them, as byte-level and metaspace tokens do.

    Args:
      vocabulary: any.

    Returns:
      Bytes by id; special tokens have their text, gaps have none.

    Example:
      >>> spelled_bytes(Vocabulary.train_bpe(["a b"], 258))[-1]
      b' b'
    """
    table = vocabulary.token_bytes
    if vocabulary.kind not in ("wordpiece", "wordlevel"):
        return table
    starts = vocabulary.word_starts
    return tuple(b" " * bool(starts[id_]) + text for id_, text in enumerate(table))


def token_keys(
    vocabulary: Vocabulary, *, compat: Compat | None = None
) -> tuple[Key | None, ...]:
    """A key for every id: tokens of two vocabularies with equal keys mean the same.

    Special tokens that begin, end, fill and the like have `("role", name)`, the first
    of `ROLES` that they have; other special tokens `("special", text)`; tokens spelled
    `<0xNN>` that stand for a byte `("byte", that byte)`; all others
    `("bytes", spelled bytes)`.

    Args:
      vocabulary: any.
      compat: "official" compares printed forms, not bytes: `("word", rest)` after the
        mark of a word's start, `("role", name)`, else `("text", printed form)`.

    Returns:
      Keys by id; None for gaps.

    Source: Goddard and Fernandes Neto 2025, arXiv 2506.06607, and its code, where
      tokens of one text with another spelling never match. Differs: bytes.

    Example:
      >>> token_keys(Vocabulary.train_bpe(["a b"], 258))[:2]
      (('role', 'bos'), ('bytes', b'!'))
    """
    return tuple(next(iter(keys), None) for keys in _own_keys(vocabulary, compat))


def _own_keys(vocabulary: Vocabulary, compat: str | None) -> list[list[Key]]:
    """All keys of every id, the best first."""
    roles: dict[int, list[Key]] = {}
    for role in ROLES:
        if role in vocabulary.special:
            roles.setdefault(vocabulary.special[role], []).append(("role", role))
    if compat == "official":
        return _printed_keys(vocabulary, roles)
    fallback = vocabulary.kind in ("sentencepiece_bpe", "unigram")
    fallback = fallback and tj.has_byte_fallback(vocabulary._spec)
    keys: list[list[Key]] = []
    for id_, text in enumerate(spelled_bytes(vocabulary)):
        surface = vocabulary.surface_of(id_)
        own = list(roles.get(id_, ()))
        if surface is None:
            pass
        elif id_ in vocabulary.special_ids:
            own.append(("special", surface))
        elif id_ in vocabulary._added:
            own += [("bytes", text), ("special", surface)]
        elif fallback and tj.is_byte_token(surface):
            own.append(("byte", text))
        else:
            own.append(("bytes", text))
        keys.append(own)
    return keys


def _printed_keys(
    vocabulary: Vocabulary, roles: Mapping[int, list[Key]]
) -> list[list[Key]]:
    mark = "Ġ" if vocabulary.kind == "byte_bpe" else tj.METASPACE
    keys: list[list[Key]] = []
    for id_ in range(vocabulary.size):
        surface = vocabulary.surface_of(id_)
        if surface is None:
            keys.append([])
        elif surface.startswith(mark):
            keys.append([("word", surface[1:])])
        else:
            keys.append(roles.get(id_, [("text", surface)])[:1])
    return keys


def _second_keys(key: Key, compat: str | None) -> Iterator[Key]:
    """Keys of the other spelling of a byte: `<0xNN>` or the plain character."""
    kind, text = key
    if compat == "official":
        if kind != "text" or not isinstance(text, str):
            return
        if tj.is_byte_token(text):
            yield kind, chr(int(text[3:5], 16))
        elif len(text) == 1 and ord(text) < 256:
            yield kind, f"<0x{ord(text):02X}>"
    elif kind == "byte":
        yield "bytes", text
    elif kind == "bytes" and len(text) == 1:
        yield "byte", text


def overlap(
    source: Vocabulary,
    target: Vocabulary,
    *,
    byte_match: bool = True,
    compat: Compat | None = None,
) -> Overlap:
    """Finds the tokens that two vocabularies share.

    Special tokens match by role (beginning, end, padding, unknown, mask, separator,
    class; of a token with several roles the first that both have), then by text; all
    others by bytes. Where several source tokens have one key, the lowest id is taken.
    A `<0xNN>` token and the plain token of that byte match where the other side has
    only one of them; where it has both, each takes its own kind.

    Args:
      source: the vocabulary whose tokens have vectors.
      target: the vocabulary that wants them.
      byte_match: let `<0xNN>` match a plain token at all.
      compat: "official" compares printed forms, see `token_keys`; bytes then match by
        code point, as in the code of the paper.

    Returns:
      `Overlap`, by ascending target id.

    Source: Goddard and Fernandes Neto 2025, arXiv 2506.06607, section 3. Differs: bytes
      in place of printed forms; only single roles match, so that several additional
      special tokens stay apart; the lowest of equal ids, not the last.

    Example:
      >>> vocabulary = Vocabulary.train_bpe(["a b"], 258)
      >>> overlap(vocabulary, Vocabulary.train_bpe(["a c"], 258)).new_ids
      array([257], dtype=int32)
    """
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    known: dict[Key, int] = {}
    for id_, keys in enumerate(_own_keys(source, compat)):
        for key in keys:
            known.setdefault(key, id_)
    pairs: list[tuple[int, int, bool]] = []
    new, roles = [], {}
    for id_, keys in enumerate(_own_keys(target, compat)):
        found = next((key for key in keys if key in known), None)
        direct = found is not None
        if found is None and byte_match:
            others = (other for key in keys for other in _second_keys(key, compat))
            found = next((key for key in others if key in known), None)
        if found is not None:
            pairs.append((known[found], id_, direct))
            if found[0] == "role":
                roles[str(found[1])] = (known[found], id_)
        elif keys:
            new.append(id_)
    columns = np.array(pairs, np.int32).reshape(-1, 3)
    first = _first_of_each(columns)
    if compat == "official":  # which fits nothing to tokens that match by byte
        first &= columns[:, 2] == 1
    new_ids = np.array(new, np.int32)
    return Overlap(columns[:, 0], columns[:, 1], first, new_ids, roles)


def _first_of_each(columns: Int32[np.ndarray, "shared 3"]) -> np.ndarray:
    """Marks one pair of every source id: a direct one, then the lowest target id."""
    seen: set[int] = set()
    first = np.zeros(len(columns), bool)
    for place in np.lexsort((columns[:, 1], -columns[:, 2])).tolist():
        source = int(columns[place, 0])
        first[place] = source not in seen
        seen.add(source)
    return first


def prefix_matches(
    source: Vocabulary,
    target: Vocabulary,
    ids: Int32[np.ndarray, " new"],
    *,
    compat: Compat | None = None,
) -> Int32[np.ndarray, " new"]:
    """The source token that is the longest proper prefix of each target token.

    Args:
      source: the vocabulary whose tokens have vectors.
      target: the vocabulary of `ids`.
      ids: `[new]` target ids.
      compat: "official" cuts characters of printed forms, not bytes.

    Returns:
      `[new]` int32 source ids; -1 where there is none, where only white space is left
      of the prefix, and for special tokens.

    Source: the option `--prefix-match` of the code of arXiv 2506.06607.

    Example:
      >>> source = Vocabulary.train_bpe(["ab"], 258)
      >>> target = Vocabulary.train_bpe(["abc"], 259)
      >>> source.token_bytes[prefix_matches(source, target, np.int32([258]))[0]]
      b'ab'
    """
    known: dict[Key, int] = {}
    for id_, keys in enumerate(_own_keys(source, compat)):
        for key in keys:
            known.setdefault(key, id_)
    target_keys = token_keys(target, compat=compat)
    found = [_longest_prefix(target_keys[id_], known) for id_ in ids.tolist()]
    return np.array(found, np.int32)


def _longest_prefix(key: Key | None, known: Mapping[Key, int]) -> int:
    kind, text = key or ("special", "")
    if kind in ("role", "special"):
        return -1
    for end in range(len(text) - 1, 0, -1):
        if not text[:end].strip():
            return -1
        if (kind, text[:end]) in known:
            return known[kind, text[:end]]
    return -1


def numeric_scheme(vocabulary: Vocabulary) -> dict[str, tuple[int, ...]]:
    """How a tokenizer cuts numbers: digits in each token of a few of them.

    Args:
      vocabulary: any.

    Returns:
      Number -> digits of its tokens, in order; tokens without a digit are left out.

    Source: arXiv 2506.06607, section 5, where arithmetic is lost between schemes.

    Example:
      >>> numeric_scheme(Vocabulary.train_bpe(["a b"], 258))["123"]
      (1, 1, 1)
    """
    return {number: _digits(vocabulary, number) for number in NUMBERS}


def _digits(vocabulary: Vocabulary, number: str) -> tuple[int, ...]:
    pieces = vocabulary.encode(number, specials=False)
    table = vocabulary.token_bytes
    counts = (sum(48 <= byte < 58 for byte in table[id_]) for id_ in pieces.tolist())
    return tuple(count for count in counts if count)


def numeric_warning(source: Vocabulary, target: Vocabulary) -> str | None:
    """Says where two tokenizers cut numbers differently.

    Args:
      source: the vocabulary that a model was trained with.
      target: the one that it gets.

    Returns:
      A sentence, or None where they agree.

    Example:
      >>> vocabulary = Vocabulary.train_bpe(["a b"], 258)
      >>> numeric_warning(vocabulary, vocabulary) is None
      True
    """
    old, new = numeric_scheme(source), numeric_scheme(target)
    differing = [number for number in NUMBERS if old[number] != new[number]]
    if not differing:
        return None
    shown = ", ".join(
        f"{number} as {_cut(number, old)}, now {_cut(number, new)}"
        for number in differing
    )
    return (
        "The new tokenizer cuts numbers in another way than the one that the model was "
        f"trained with ({shown}): expect arithmetic to suffer."
    )


def _cut(number: str, scheme: Mapping[str, tuple[int, ...]]) -> str:
    pieces, start = [], 0
    for count in scheme[number]:
        pieces.append(number[start : start + count])
        start += count
    return " ".join(pieces) or "nothing"
