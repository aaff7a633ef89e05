"""A smaller model of another vocabulary drafts: text is what the two have in common.

Before every step the host spells each row's text in the draft model's tokens, lets it
continue greedily, and cuts what it wrote into tokens of the target. Those drafts are
point masses, which the verifier takes or leaves: what is emitted stays what plain
decoding emits, whatever the temperature.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jtok.decode.host import drafter_of_rows
from jtok.decode.types import Drafter
from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.models import Model, StepInput, Target, split_layers
from jtok.ops import Want
from jtok.ops.sharding import to_host
from jtok.text import Vocabulary

__all__ = ["Translator", "draft_across"]

PyTree = Any

_ROLES = ("bos", "eos", "pad", "unk", "mask", "sep", "cls")
_ANCHORS = 8  # newest tokens among which the text of drafts is joined to the context
_NARROW, _WIDE = 16, 128  # tokens that the draft model reads at once
_ROUND = 256  # slots of its cache come in multiples of this


def draft_across(
    model: Model | Target,
    vocabulary: Vocabulary,
    *,
    draft_tokens: int = 6,
    depth: int = 12,
    nodes: int | None = None,
    draft_vocabulary: Vocabulary | None = None,
    params: PyTree = None,
) -> Drafter:
    """Drafts with a model of another vocabulary than the target's.

    The loop stops after every step (`Stats.host_syncs`). The draft model keeps its
    cache: what a row's text shares with the step before is not read again. A text that
    outgrows the draft model's positions gets no more drafts.

    Args:
      model: what drafts, a `Model`, or a `Target` together with `params` and
        `draft_vocabulary`.
      vocabulary: of the target.
      draft_tokens: tokens that the draft model writes before each step.
      depth: tokens of the target that are drafted at most.
      nodes: nodes of a call, the root included; None is `depth + 1`, which leaves room
        for a second way to cut the drafted text where the first is short.
      draft_vocabulary: of `model`; None takes its own.
      params: parameters of a `Target`.

    Returns:
      `Drafter`; its drafts are point masses, so that the guarantee is "token".

    Raises:
      ArgumentError: a number out of range, no vocabulary to draft in, or a model that
        cannot forget tokens (recurrent ones).
      ArgumentTypeError: `model` is neither a `Model` nor a `Target`, or `vocabulary` is
        no `Vocabulary`.
      VocabMismatchError: when it is used, another vocabulary than `vocabulary`.

    Source: Timor et al. 2025, arXiv 2502.05202, string-level exact matching. Differs:
      drafts are greedy and verified by the target's own noise, so the output equals
      plain decoding token by token, at any temperature; batches; the join is searched
      among the newest tokens.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> from jtok.text import Vocabulary
      >>> words = Vocabulary.train_bpe(["a cat, a hat"], 260)
      >>> letters = Vocabulary.train_bpe(["b"], 257)
      >>> small = tiny_model(vocab_size=257).replace(vocabulary=letters)
      >>> large = tiny_model(vocab_size=260).replace(vocabulary=words)
      >>> drafter = draft_across(small, words, draft_tokens=2)
      >>> generate(large, "a cat", max_new_tokens=4, drafter=drafter).guarantee
      'token'
    """
    if not isinstance(vocabulary, Vocabulary):
        raise ArgumentTypeError(
            f"vocabulary: got {type(vocabulary).__name__}, expected a Vocabulary."
        )
    check(draft_tokens >= 1, "draft_tokens", draft_tokens, "at least 1")
    check(depth >= 1, "depth", depth, "at least 1")
    target, own, params = _drafting(model, draft_vocabulary, params)
    translator = Translator.between(vocabulary, own)
    writer = _Writer(target, params, draft_tokens)

    def find(rows: Sequence[np.ndarray | None]) -> list[list[list[int]]]:
        texts = [None if ids is None else translator.to_draft(ids) for ids in rows]
        drafts = writer.continue_(texts)
        return [
            [] if ids is None else translator.to_target(ids, draft)
            for ids, draft in zip(rows, drafts, strict=True)
        ]

    nodes = depth + 1 if nodes is None else nodes
    made = drafter_of_rows(find, nodes=nodes, depth=depth)
    return made._replace(vocabulary=vocabulary.hash)


def _drafting(
    model: Any, vocabulary: Vocabulary | None, params: PyTree
) -> tuple[Target, Vocabulary, PyTree]:
    if isinstance(model, Model):
        check(params is None, "params", "parameters", "None: the model has its own")
        target, params = model.target(), split_layers(model.params)
        vocabulary = vocabulary or model.vocabulary
    elif isinstance(model, Target):
        target = model
    else:
        raise ArgumentTypeError(
            f"model: got {type(model).__name__}, expected a Model or a Target."
        )
    if vocabulary is None:
        raise ArgumentError("draft_vocabulary: got None, and the model has none.")
    if target.rewind is None:
        raise ArgumentError(
            "model: got one that cannot forget tokens (a recurrent one), expected one "
            "whose cache can be cut: the end of a text is spelled anew in every step."
        )
    return target, vocabulary, params


class _Writer:
    """A model that continues a batch of texts, and remembers what it has read."""

    def __init__(self, target: Target, params: PyTree, tokens: int) -> None:
        self._target, self._params, self._tokens = target, params, tokens
        self._write = _compiled(target, tokens)
        self._cache: PyTree = None
        self._capacity = 0
        self._read: list[np.ndarray] = []  # tokens of each row in the cache

    def continue_(self, texts: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """What follows each text, greedily; nothing where there is none or no room."""
        most = self._target.info.max_len
        short = [
            None if text is None or (most and len(text) + self._tokens > most) else text
            for text in texts
        ]
        self._make_room(short)
        todo: list[np.ndarray] = []
        for row, text in enumerate(short):
            # All but the newest token is read; that one is fed when writing begins.
            known = self._read[row]
            same = 0 if text is None else _shared(known, text[:-1])
            self._read[row] = known[:same] if text is None else text[:-1]
            todo.append(self._read[row][same:])
        kept = [len(r) - len(t) for r, t in zip(self._read, todo, strict=True)]
        root = np.array([0 if t is None else t[-1] for t in short], np.int32)
        made, self._cache = self._run(todo, np.asarray(kept, np.int32), root)
        drafts = []
        for row, text in enumerate(short):
            drafts.append(made[row] if text is not None else made[row, :0])
            if text is not None:
                self._read[row] = np.concatenate([text, made[row, :-1]])
        return drafts

    def _make_room(self, texts: Sequence[np.ndarray | None]) -> None:
        longest = max((len(text) for text in texts if text is not None), default=1)
        need = longest + self._tokens + _WIDE
        if len(texts) == len(self._read) and need <= self._capacity:
            return
        self._capacity = -(-need // _ROUND) * _ROUND + _ROUND  # some to grow into
        # Compiled, so that no two leaves share a buffer: the cache is donated.
        make = jax.jit(self._target.init_cache, static_argnums=(1, 2))
        self._cache = make(self._params, len(texts), self._capacity)
        self._read = [np.zeros(0, np.int32)] * len(texts)

    def _run(
        self, todo: list[np.ndarray], kept: np.ndarray, root: np.ndarray
    ) -> tuple[np.ndarray, PyTree]:
        longest, cache, at = max(map(len, todo)), self._cache, 0
        while True:
            wide = _NARROW if longest - at <= _NARROW else _WIDE
            ids = np.zeros((len(todo), wide), np.int32)
            parts = [row[at : at + wide] for row in todo]
            for row, part in zip(ids, parts, strict=True):
                row[: len(part)] = part
            count = np.array([len(part) for part in parts], np.int32)
            last = at + wide >= longest
            made, cache = self._write(self._params, cache, ids, kept, count, root, last)
            if last:
                return to_host(made), cache
            kept, at = kept + count, at + wide


@functools.lru_cache(maxsize=32)
def _compiled(target: Target, tokens: int) -> Callable[..., tuple[Array, PyTree]]:
    """Reads a chunk of every row's text and, after the last one, writes on."""

    def feed(
        params: PyTree, cache: PyTree, ids: Array, start: Array, count: Array
    ) -> tuple[Array, PyTree]:
        batch, width = ids.shape
        order = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (batch, width))
        seen = jnp.broadcast_to(
            jnp.asarray(np.tri(width, dtype=bool)), (batch, width, width)
        )
        valid = order < count[:, None]
        out, cache = target.step(
            params, cache, StepInput(ids, start[:, None] + order, seen, valid)
        )
        return out.hidden, target.commit(cache, order, count)

    def run(
        params: PyTree,
        cache: PyTree,
        ids: Array,
        kept: Array,
        count: Array,
        root: Array,
        last: bool,
    ) -> tuple[Array, PyTree]:
        rewound = target.rewind(cache, kept) if target.rewind else cache
        _, cache = feed(params, rewound, ids, kept, count)
        made = jnp.zeros((ids.shape[0], tokens), jnp.int32)
        if not last:
            return made, cache
        one = jnp.ones_like(count)

        def write(step: Array, carry: tuple) -> tuple:
            made, root, cache = carry
            start = kept + count + step
            hidden, cache = feed(params, cache, root[:, None], start, one)
            best = target.readout(params, hidden, Want()).choice[:, 0]
            return made.at[:, step].set(best), best, cache

        made, _, cache = jax.lax.fori_loop(0, tokens, write, (made, root, cache))
        return made, cache

    return jax.jit(run, static_argnames="last", donate_argnums=1)


def _shared(one: np.ndarray, two: np.ndarray) -> int:
    """How many tokens two texts begin with alike."""
    size = min(len(one), len(two))
    different = np.flatnonzero(one[:size] != two[:size])
    return int(different[0]) if different.size else size


class Translator(NamedTuple):
    """Spells texts of one vocabulary in another, and drafts back.

    Attributes:
      target: the vocabulary of the model that verifies.
      draft: the vocabulary of the model that drafts.
      to_draft_special: special id of `target` -> that of `draft` with the same role,
        else with the same text.
      to_target_special: the other way.
      start: ids that `draft` puts before a text (BOS).
      adds_space: `target` puts a space before a text that has none.
    """

    target: Vocabulary
    draft: Vocabulary
    to_draft_special: dict[int, int]
    to_target_special: dict[int, int]
    start: tuple[int, ...]
    adds_space: bool

    @classmethod
    def between(cls, target: Vocabulary, draft: Vocabulary) -> "Translator":
        """The translator of two vocabularies.

        Args:
          target: that of the model that verifies.
          draft: that of the model that drafts.

        Returns:
          `Translator`.

        Example:
          >>> one, two = (Vocabulary.train_bpe(["a b"], 257) for _ in "ab")
          >>> Translator.between(one, two).to_draft_special
          {0: 0}
        """
        framed = [int(i) for i in draft.encode("")]
        start = framed[:1] if framed[:1] == [draft.special.get("bos")] else []
        spaced = target.decode_bytes(target.encode("a", specials=False))
        return cls(
            target,
            draft,
            _special_map(target, draft),
            _special_map(draft, target),
            tuple(start),
            spaced.startswith(b" "),
        )

    def to_draft(self, ids: np.ndarray) -> np.ndarray:
        """A text in the draft model's tokens.

        Special tokens stay themselves where the draft model has them, else they are
        left out. Bytes that are no UTF-8 become U+FFFD; an unfinished character at the
        end is left out.

        Args:
          ids: `[tokens]` of the target.

        Returns:
          `[tokens]` int32 of the draft model, at least one.

        Example:
          >>> one = Vocabulary.train_bpe(["the cat"], 258)
          >>> two = Vocabulary.train_bpe(["b"], 257)
          >>> Translator.between(one, two).to_draft(one.encode("!!")).tolist()
          [1, 1]
        """
        made: list[int] = []
        specials, plain = self.target.special_ids, []
        for id_ in [*ids.tolist(), None]:
            if id_ is not None and id_ not in specials:
                plain.append(id_)
                continue
            if plain:
                text = self.target.decode_bytes(plain)
                # The tokenizer put that space there; the text has none.
                text = text.removeprefix(b" ") if self.adds_space else text
                made += self._spelled(text)
                plain = []
            if id_ in self.to_draft_special:
                made.append(self.to_draft_special[id_])
        if made[: len(self.start)] != list(self.start):
            made = [*self.start, *made]
        return np.asarray(made or [0], np.int32)

    def _spelled(self, text: bytes) -> list[int]:
        whole = text[: len(text) - len(_unfinished(text))].decode(errors="replace")
        return self.draft.encode(whole, specials=False).tolist()

    def to_target(self, ids: np.ndarray, drafted: np.ndarray) -> list[list[int]]:
        """A drafted continuation in the target's tokens.

        The text is cut together with the newest tokens of the context, so that both
        join as the tokenizer joins them; where its cut does not begin with those
        tokens, the continuation is cut alone. The text ends where the draft model
        ended it.

        Args:
          ids: `[tokens]` context of the target.
          drafted: `[drafts]` tokens of the draft model.

        Returns:
          Continuations, the likeliest first; none where nothing was drafted.

        Example:
          >>> one = Vocabulary.train_bpe(["the cat"], 258)
          >>> two = Vocabulary.train_bpe(["b"], 257)
          >>> across = Translator.between(one, two)
          >>> across.to_target(one.encode("!"), two.encode("!"))
          [[1]]
        """
        text, ended = self._written(drafted)
        begun = self._begun(ids)
        if not text.startswith(begun):
            return []  # the character that the context began is another one
        text = text[len(begun) :]
        text = text[: len(text) - len(_unfinished(begun + text))]
        cuts = [self._joined(ids, text), self._alone(text, begun)] if text else [[]]
        end = [] if ended is None else [ended]
        paths = [[*cut, *end] for cut in cuts if cut is not None]
        return [path for index, path in enumerate(paths) if path not in paths[:index]]

    def _written(self, drafted: np.ndarray) -> tuple[bytes, int | None]:
        """The text before the first special token, and the target's name of that."""
        specials = self.draft.special_ids
        for place, id_ in enumerate(drafted.tolist()):
            if id_ in specials:
                text = self.draft.decode_bytes(drafted[:place])
                return text, self.to_target_special.get(id_)
        return self.draft.decode_bytes(drafted), None

    def _begun(self, ids: np.ndarray) -> bytes:
        """What the newest tokens hold of an unfinished character."""
        tail = ids[-4:].tolist()
        for place in range(len(tail) - 1, -1, -1):
            if tail[place] in self.target.special_ids:
                tail = tail[place + 1 :]
                break
        return _unfinished(self.target.decode_bytes(tail))

    def _joined(self, ids: np.ndarray, text: bytes) -> list[int] | None:
        newest, specials = ids.tolist(), self.target.special_ids
        for size in range(1, min(_ANCHORS, len(newest)) + 1):
            anchor = newest[-size:]
            if anchor[0] in specials:
                return None
            both = self.target.decode_bytes(anchor) + text
            if self.adds_space:
                if not both.startswith(b" "):
                    continue
                both = both[1:]
            try:
                cut = self.target.encode(both, specials=False).tolist()
            except ArgumentError:
                continue  # the anchor begins inside a character
            if cut[:size] == anchor:
                return cut[size:]
        return None

    def _alone(self, text: bytes, begun: bytes) -> list[int] | None:
        if begun or (self.adds_space and not text.startswith(b" ")):
            return None
        text = text[1:] if self.adds_space else text
        try:
            return self.target.encode(text, specials=False).tolist()
        except ArgumentError:
            return None


def _unfinished(text: bytes) -> bytes:
    """The bytes at the end that begin a character of UTF-8 and do not finish it."""
    for size in range(1, min(3, len(text)) + 1):
        lead = text[-size]
        if lead >= 0xC0:
            needs = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return text[-size:] if size < needs else b""
        if lead < 0x80:
            return b""
    return b""


def _special_map(source: Vocabulary, other: Vocabulary) -> dict[int, int]:
    named = {other.token_bytes[id_]: id_ for id_ in sorted(other.special_ids)[::-1]}
    found = {
        id_: named[source.token_bytes[id_]]
        for id_ in sorted(source.special_ids)
        if source.token_bytes[id_] in named
    }
    for role in reversed(_ROLES):
        if role in source.special and role in other.special:
            found[source.special[role]] = other.special[role]
    return found
