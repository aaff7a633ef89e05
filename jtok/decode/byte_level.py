"""Exact probabilities of the next byte from a model of tokens, without training."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from jtok.decode import _byte_covers as covers_of
from jtok.decode._byte_covers import Block, Book, Cover, Covers, Node, Search, Tables
from jtok.decode._byte_models import CachedTarget, NextToken, PlainFunction
from jtok.decode.byte_model import ByteModel, as_bytes, listed, pushed
from jtok.errors import ArgumentError, NoCoverError, VocabMismatchError, check
from jtok.models import Model, Target, split_layers
from jtok.text import Vocabulary
from jtok.text._utf8 import split_tail
from jtok.text.byte_order import ByteOrder
from jtok.text.validity import grammar_of

__all__ = ["ByteLevel", "ByteState", "byte_level"]

PyTree = Any
_CHUNK = 64  # contexts of one call while a prompt is read
_SPACE = "\u2581".encode()


@dataclasses.dataclass(frozen=True)
class ByteState:
    """What is known of some texts; a value, never changed.

    Attributes:
      rows: covers of each text.
      memory: what the model keeps of the contexts that it saw last.
      absolute: whether weights count from the start of the text.
      calls: how often the model was asked so far, for all rows at once.
    """

    rows: tuple[Covers, ...]
    memory: Any
    absolute: bool = False
    calls: int = 0

    def unresolved(self) -> "ByteState":
        """The same, for a text before which something could not be encoded as it is."""
        rows = tuple(row._replace(resolved=False) for row in self.rows)
        return dataclasses.replace(self, rows=rows)


class ByteLevel(ByteModel):
    """A model of tokens, read byte by byte; made by `byte_level`.

    Attributes:
      vocabulary: the tokenizer.
      tables: what the covers need of it.
      symbols: ids of the special tokens with a symbol of their own, ascending.

    Example:
      >>> from jtok.decode import byte_level
      >>> from jtok.testing import tiny_vocabulary
      >>> by_byte = byte_level(lambda ids: np.zeros(280), tiny_vocabulary())
      >>> state = by_byte.push(by_byte.start("th"), ord("e"))
      >>> by_byte.distribution(state).shape, by_byte.is_exact(state).tolist()
      ((1, 257), [True])
    """

    def __init__(
        self,
        lm: NextToken,
        vocabulary: Vocabulary,
        tables: Tables,
        prefix_ids: tuple[int, ...] | None,
        opening: str,
        most: int | None,
        prune: float,
        official: bool,
    ) -> None:
        self.vocabulary, self.tables = vocabulary, tables
        self.symbols = tuple(int(id_) for id_ in tables.specials)
        self._lm, self._prefix_ids = lm, prefix_ids
        self._opening, self._most, self._prune = opening, most, prune
        self._official = official

    # ---- the three functions

    def start(
        self,
        prompts: Any,
        *,
        special_prefix_ids: Sequence[int] | None = None,
        absolute: bool = False,
    ) -> ByteState:
        """The state after some prompts.

        Args:
          prompts: text or bytes, or a list of them. An empty one is the start of a
            text. Bytes may end inside a character.
          special_prefix_ids: ids before each prompt, which no token crosses; None for
            what the tokenizer puts before a text, or its BOS or EOS.
          absolute: count weights from the start of the text, which asks the model for
            every position; else from where the covers part.

        Returns:
          `ByteState`.

        Raises:
          ArgumentError: no UTF-8, or bytes that no token spells.
          NoCoverError: no token sequence spells a prompt.
        """
        texts, _ = listed(prompts)
        before = self._before(special_prefix_ids)
        found = [self._search(before, text) for text in texts]
        if self._opening != "covers":
            return self._start_naive(found)
        nodes = [covers_of.asked(row, whole=absolute) for row in found]
        rows, memory, calls = self._ask(nodes)
        made = []
        for row, asked in zip(found, nodes, strict=True):
            books: dict[int, Book] = {}
            for node in asked:
                log_probs = rows[node.ids]
                books[id(node)] = covers_of.weigh(self.tables, node, books, log_probs)
            ends = {id(node): rows[node.ids] for node in row.ends}
            made.append(self._limited(covers_of.opened(self.tables, row, books, ends)))
        return ByteState(tuple(made), memory, absolute, calls)

    def push(self, state: ByteState, bytes_: int | bytes | Sequence[int]) -> ByteState:
        """The state after one byte more in every row: one call of the model.

        Args:
          state: from `start` or `push`.
          bytes_: a byte for each row, or one for all.

        Returns:
          `ByteState`.

        Raises:
          ArgumentError: other than one byte a row.
          NoCoverError: a byte that cannot come.
        """
        step = pushed(bytes_, len(state.rows))
        rows, memory = covers_of.step_covers(
            self.tables, state.rows, step, self._lm, state.memory
        )
        for covers, byte in zip(rows, step, strict=True):
            if not covers.blocks:
                raise NoCoverError(
                    f"bytes_: no valid cover, the byte {byte:#04x} cannot come here."
                )
        limited = tuple(self._limited(row) for row in rows)
        calls = state.calls + any(b.depth == 0 for row in rows for b in row.blocks)
        return dataclasses.replace(state, rows=limited, memory=memory, calls=calls)

    def distribution(self, state: ByteState) -> Float[np.ndarray, "rows 257"]:
        """Log-probabilities of the next byte.

        Args:
          state: from `start` or `push`.

        Returns:
          `[rows, 257]` float32 nats; 256 is the end of the text: any special token.
        """
        probs = self._probabilities(state)
        folded = np.concatenate(
            [probs[:, :256], probs[:, 256:].sum(-1, keepdims=True)], axis=-1
        )
        with np.errstate(divide="ignore"):
            return np.log(folded).astype(np.float32)

    # ---- more of the same

    def symbol_logprobs(self, state: ByteState) -> Float[np.ndarray, "rows symbols"]:
        """Log-probabilities with a symbol for each special token, in `symbols`' order.

        Args:
          state: from `start` or `push`.

        Returns:
          `[rows, 256 + len(symbols)]` float32 nats.
        """
        with np.errstate(divide="ignore"):
            return np.log(self._probabilities(state)).astype(np.float32)

    def logprob(
        self, texts: Any, *, special_prefix_ids: Sequence[int] | None = None
    ) -> Any:
        """Log-probability that the text begins with some bytes: all covers' together.

        Args:
          texts: text or bytes, or a list of them.
          special_prefix_ids: as for `start`.

        Returns:
          Nats: a float, or `[rows]` float64 of a list. Of `renorm` they obey the chain
          rule: they are the sums of the next bytes' log-probabilities.
        """
        _, single = listed(texts)
        state = self.start(texts, special_prefix_ids=special_prefix_ids, absolute=True)
        logs = np.asarray([row.log_mass() for row in state.rows])
        return float(logs[0]) if single else logs

    def covers(self, state: ByteState) -> list[list[Cover]]:
        """The covers of every row: ids, the bytes that stick out, log-weights.

        Args:
          state: from `start` or `push`.

        Returns:
          A list of `Cover` for each row.
        """
        return [row.listed(self.tables) for row in state.rows]

    def is_exact(self, state: ByteState) -> Bool[np.ndarray, " rows"]:
        """Whether all mass was counted, and nothing else.

        Args:
          state: from `start` or `push`.

        Returns:
          `[rows]` bool: False with `masking="fast"`, for a baseline, where covers were
          dropped, and where what stands before the text could not be encoded as it is.
        """
        sure = self.tables.masking != "fast" and self._opening == "covers"
        exact = [
            sure and row.resolved and row.log_dropped == -np.inf for row in state.rows
        ]
        return np.asarray(exact, bool)

    def dropped(self, state: ByteState) -> Float[np.ndarray, " rows"]:
        """The share of mass that `max_covers` and `prune` have left out, `[rows]`."""
        logs = [row.log_dropped - np.logaddexp(row.log_dropped, row.log_mass())
                if row.log_dropped > -np.inf else -np.inf
                for row in state.rows]  # fmt: skip
        return np.exp(np.asarray(logs, np.float64))

    def encode(self, text: Any) -> tuple[tuple[int, ...], bool]:
        """Ids of bytes that end here, and whether they can end so.

        Args:
          text: text or bytes.

        Returns:
          The ids, without any before the text; and False where the bytes end inside a
          character, so that the ids are those of a text that goes on.

        Raises:
          ArgumentError: as `start`.
        """
        found = self._search((), text)
        node, closed = self._closed(found)
        return node.ids, closed

    # ---- parts

    def _probabilities(self, state: ByteState) -> np.ndarray:
        weights = np.stack([row.symbols(self.tables) for row in state.rows])
        total = weights.sum(-1, keepdims=True)
        if not (total > 0).all():
            raise NoCoverError("state: no valid cover, nothing can come next.")
        return weights / total

    def _limited(self, covers: Covers) -> Covers:
        return covers_of.limited(self.tables, covers, self._most, self._prune)

    def _before(self, given: Sequence[int] | None) -> tuple[int, ...]:
        if given is not None:
            ids = tuple(self.vocabulary.checked_ids(np.asarray(given, np.int64)))
        elif self._prefix_ids is not None:
            ids = self._prefix_ids
        else:
            ids = _text_start(self.vocabulary)
        check(
            len(ids) > 0, "special_prefix_ids", ids, "at least one id before the text"
        )
        return ids

    def _search(self, before: tuple[int, ...], text: Any) -> Search:
        data = as_bytes(text, "prompts")
        grammar = self.tables.grammar
        if not grammar.any_bytes and split_tail(data) is None:
            raise ArgumentError(f"prompts: got {data[:40]!r}, expected UTF-8.")
        if self.tables.metaspace:
            data = data.replace(b" ", _SPACE)
        start = grammar.free if self._official else grammar.start
        found = covers_of.search(self.tables, before, start, grammar.prefix + data)
        if not found.ends and not found.lefts:
            self._refuse(data)
        return found

    def _refuse(self, data: bytes) -> None:
        spelled = set(b"".join(self.tables.order.keys))
        odd = [byte for byte in data if byte not in spelled]
        if odd or _SPACE in data:
            what = (
                f"the byte {odd[0]:#04x}" if odd else "U+2581, which stands for space"
            )
            raise ArgumentError(
                f"prompts: got {what}, expected bytes that the tokenizer can write."
            )
        raise NoCoverError(
            f"prompts: no valid cover of {data[:40]!r}; expected text that this "
            "tokenizer can write."
        )

    def _ask(
        self, nodes: list[list[Node]]
    ) -> tuple[dict[tuple[int, ...], np.ndarray], Any, int]:
        """Log-probabilities after every context, what to keep, and calls.

        What the covers of a row have in common is run first, and once.
        """
        common = list(dict.fromkeys(row[0].ids for row in nodes if row))
        every = {node.ids for row in nodes for node in row}
        others = sorted(every.difference(common), key=len)
        parts = [common] + [
            others[first : first + _CHUNK] for first in range(0, len(others), _CHUNK)
        ]
        rows: dict[tuple[int, ...], np.ndarray] = {}
        memory = None
        for part in parts:
            made, memory = self._lm.log_probs(memory, part)
            rows.update(zip(part, made, strict=True))
        return rows, memory, len(parts)

    def _closed(self, found: Search) -> tuple[Node, bool]:
        """The encoding of a text that ends here, or of one that goes on."""
        for node in found.ends:
            if self.tables.grammar.ends(node.opens):
                return node, True
        if not found.ends:
            raise NoCoverError("prompts: no token sequence spells exactly these bytes.")
        return found.ends[0], False

    def _start_naive(self, found: list[Search]) -> ByteState:
        """The baselines: one context each."""
        contexts, texts = [], []
        for row in found:
            node, _ = self._closed(row)
            text = b""
            if self._opening == "healed" and node.parent is not None:
                text = self.tables.grammar.table[node.token]
                node = node.parent
            if not self._masked:
                node = dataclasses.replace(node, opens=self.tables.grammar.free)
            contexts.append(node)
            texts.append(text)
        rows, memory, calls = self._ask([[node] for node in contexts])
        blocks: list[list[Block]] = []
        heads: list[list[Node]] = []
        for node, text in zip(contexts, texts, strict=True):
            book = covers_of.make_book(self.tables, node, rows[node.ids], self._masked)
            some, whole = covers_of.forced(self.tables, book, text)
            blocks.append(some)
            heads.append(whole)
        asked = list(dict.fromkeys(node.ids for nodes in heads for node in nodes))
        if asked:
            made, memory = self._lm.log_probs(memory, asked)
            rows, calls = dict(zip(asked, made, strict=True)), calls + 1
        for own, whole in zip(blocks, heads, strict=True):
            for node in whole:
                logs = rows[node.ids]
                book = covers_of.make_book(self.tables, node, logs, self._masked)
                own.append(Block(book, 0, len(self.tables.order), 0))
        return ByteState(
            tuple(Covers(tuple(own)) for own in blocks), memory, False, calls
        )

    @property
    def _masked(self) -> bool:
        return self.tables.masking != "fast"


def _text_start(vocabulary: Vocabulary) -> tuple[int, ...]:
    """What the tokenizer puts before a text, else its BOS or EOS."""
    special = vocabulary.special_ids
    added = [int(id_) for id_ in vocabulary.encode("") if int(id_) in special]
    role = vocabulary.special.get("bos", vocabulary.special.get("eos"))
    ids = added[:1] or ([] if role is None else [role])
    if not ids:
        raise ArgumentError(
            "special_prefix_ids: got None, and the vocabulary has neither a BOS nor an "
            "EOS; expected the ids that stood before texts in training."
        )
    return tuple(ids)


def byte_level(
    lm: Model | Target | NextToken | Callable[[Any], Any],
    vocabulary: Vocabulary | None = None,
    *,
    params: PyTree = None,
    masking: Literal["renorm", "mask", "fast"] = "renorm",
    alphabet: Literal["bytes", "sentencepiece"] = "bytes",
    max_covers: int | None = None,
    prune: float = 0.0,
    special_prefix_ids: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    compat: Literal["official"] | None = None,
) -> ByteLevel:
    """Reads a model of tokens byte by byte: exact `P(next byte | bytes)`.

    The probability of a byte string is the sum over its covers, the valid token
    sequences whose last token reaches its end. The prompt costs one batched call for
    the contexts near its end, every further byte one step. A step moves `[vocab]`
    log-probabilities to the host, where covers are kept as ranges of the byte-sorted
    vocabulary. Weights are float64, so probabilities are as good as the model's own
    float32 log-softmax.

    Args:
      lm: a `Model`, a `Target` with its `params`, or a function from `[tokens]` ids to
        the `[vocab]` logits of the next one. Else an object with `vocab_size` and
        `log_probs(memory, contexts) -> ([contexts, vocab] log-probabilities, memory)`.
      vocabulary: the tokenizer; None for the model's.
      params: of a `Target`.
      masking: `renorm` normalises every token's distribution over the valid tokens and
        the special ones, so that the chain rule holds; `mask` leaves the product as it
        is; `fast` leaves invalid tokens in as long as they agree with the bytes.
      alphabet: of SentencePiece, `bytes` spells U+2581 as a space (0x20) and
        `sentencepiece` as its three bytes E2 96 81.
      max_covers: most covers of a text, the heaviest; None for all.
      prune: covers of less than this share of the mass are dropped, in [0, 1).
      special_prefix_ids: ids before every text; None for what the tokenizer puts there,
        or its BOS or EOS.
      ends: special ids that may end a text; None for all special tokens.
      compat: `official` counts the space that SentencePiece puts before a text as part
        of it, which may or may not come; None knows that it does.

    Returns:
      `ByteLevel`.

    Raises:
      ArgumentError: an option out of range, a model without a vocabulary.
      UnsupportedPretokenizerError: a tokenizer that cannot be followed; it is named.
      VocabMismatchError: the model has fewer ids than the tokenizer.

    Source: Phan et al. 2025, arXiv 2410.09303, algorithms 1 and 2. Differs: any split
    pattern of GPT-2, Llama 3 and Qwen 2, prompts that end inside a character, special
    tokens before the text, several contexts where the pattern looks ahead.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> by_byte = byte_level(lambda ids: np.zeros(280), tiny_vocabulary())
      >>> float(np.exp(by_byte.next_byte_logprobs(b"th")).sum().round(3))
      1.0
    """
    return _made(
        lm, vocabulary, params, masking, alphabet, max_covers, prune,
        special_prefix_ids, ends, compat, "covers",
    )  # fmt: skip


def _made(
    lm: Any, vocabulary: Vocabulary | None, params: PyTree, masking: str,
    alphabet: str, max_covers: int | None, prune: float,
    prefix_ids: Sequence[int] | None, ends: Sequence[int] | None,
    compat: str | None, opening: str,
) -> ByteLevel:  # fmt: skip
    known = ("renorm", "mask", "fast")
    check(masking in known, "masking", masking, f"one of {', '.join(known)}")
    spelled = ("bytes", "sentencepiece")
    check(alphabet in spelled, "alphabet", alphabet, f"one of {', '.join(spelled)}")
    good = max_covers is None or max_covers >= 1
    check(good, "max_covers", max_covers, "None or at least 1")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    check(0 <= prune < 1, "prune", prune, "a share in [0, 1)")
    if vocabulary is None:
        vocabulary = getattr(lm, "vocabulary", None)
    if vocabulary is None:
        raise ArgumentError("vocabulary: got None, expected one: the model has none.")
    model = _next_token(lm, params, vocabulary)
    tables = _tables(vocabulary, alphabet, masking, model.vocab_size)
    if ends is not None:
        chosen = sorted(set(vocabulary.checked_ids(np.asarray(ends, np.int64))))
        odd = [id_ for id_ in chosen if id_ not in vocabulary.special_ids]
        check(not odd, "ends", odd, "ids of special tokens")
        tables = dataclasses.replace(tables, specials=np.asarray(chosen, np.int64))
    before = None
    if prefix_ids is not None:
        before = tuple(vocabulary.checked_ids(np.asarray(prefix_ids, np.int64)))
    return ByteLevel(
        model, vocabulary, tables, before, opening, max_covers, prune,
        compat == "official",
    )  # fmt: skip


def _next_token(lm: Any, params: PyTree, vocabulary: Vocabulary) -> NextToken:
    if isinstance(lm, Model):
        return CachedTarget(lm.target(), split_layers(lm.params))
    if isinstance(lm, Target):
        check(params is not None, "params", params, "the parameters of the target")
        return CachedTarget(lm, params)
    if hasattr(lm, "log_probs"):
        return lm
    check(callable(lm), "lm", type(lm).__name__, "a Model, a Target or a function")
    return PlainFunction(lm, vocabulary.size)


def _tables(
    vocabulary: Vocabulary, alphabet: str, masking: str, vocab_size: int
) -> Tables:
    if vocab_size < vocabulary.size:
        raise VocabMismatchError(
            f"vocabulary: got one of {vocabulary.size} ids, expected at most "
            f"{vocab_size}, as many as the model has."
        )
    metaspace = alphabet == "sentencepiece"
    check(
        not metaspace or vocabulary.kind == "sentencepiece_bpe", "alphabet", alphabet,
        f"'bytes' for a {vocabulary.kind} vocabulary",
    )  # fmt: skip
    grammar = grammar_of(vocabulary, metaspace=metaspace)
    order = _sorted(vocabulary, metaspace)
    places = np.full(vocabulary.size, -1, np.int64)
    places[order.ids] = np.arange(len(order))
    specials = np.asarray(sorted(vocabulary.special_ids), np.int64)
    return Tables(grammar, order, places, specials, masking, metaspace)


@functools.lru_cache(maxsize=8)
def _sorted(vocabulary: Vocabulary, metaspace: bool) -> ByteOrder:
    return ByteOrder(grammar_of(vocabulary, metaspace=metaspace).table)
