"""Covers of a byte string: the valid token sequences whose last token reaches its end.

Covers with the same tokens but the last stand side by side in the byte-sorted
vocabulary, so they are kept as a `Block`: a context, the weights of all its next
tokens, and the range of those that agree with the bytes read since. A byte narrows
every range; a token that is read to its end becomes a context of its own.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jtok.decode._byte_models import NextToken
from jtok.text.byte_order import ByteOrder
from jtok.text.validity import Grammar

__all__ = [
    "Block",
    "Book",
    "Cover",
    "Covers",
    "Node",
    "Search",
    "Tables",
    "asked",
    "forced",
    "limited",
    "make_book",
    "opened",
    "search",
    "step_covers",
    "weigh",
]

NOTHING = -np.inf


@dataclasses.dataclass(frozen=True)
class Tables:
    """What covers need of a vocabulary.

    Attributes:
      grammar: which token can follow which.
      order: the ordinary tokens, sorted by bytes.
      places: `[size]` place of every id in that order, -1 for others.
      specials: ids with a symbol of their own after the 256 bytes, ascending.
      masking: `renorm`, `mask` or `fast`.
      metaspace: whether spaces are spelled as U+2581.
    """

    grammar: Grammar
    order: ByteOrder
    places: np.ndarray
    specials: np.ndarray
    masking: str
    metaspace: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A token sequence, as its last token and the sequence before.

    Attributes:
      opens: configurations of the grammar after it.
      parent: the sequence without its last token, None of an empty text.
      token: the last token, -1 of an empty text.
      before: ids that stand before the text, of an empty one.
      weight: log-probability of the sequence, from a common beginning; nats.
    """

    opens: tuple[Any, ...]
    parent: "Node | None" = None
    token: int = -1
    before: tuple[int, ...] = ()
    weight: float = 0.0

    @functools.cached_property
    def ids(self) -> tuple[int, ...]:
        """All ids, with those before the text."""
        path, node = [], self
        while node.parent is not None:
            path.append(node.token)
            node = node.parent
        return (*node.before, *reversed(path))


class Book(NamedTuple):
    """Weights of what may follow a context.

    Attributes:
      node: the context.
      log_weights: `[tokens]` float64 in the sorted order, nats; -inf where masked.
      mass: the same as numbers, divided by `exp(top)`.
      top: greatest of all, nats.
      specials: `[specials]` float64 log-weights of the special tokens.
    """

    node: Node
    log_weights: np.ndarray
    mass: np.ndarray
    top: float
    specials: np.ndarray


class Block(NamedTuple):
    """Covers that share all tokens but the last: the range `start:end` of a book.

    `depth` bytes of their last tokens have been read; at 0 the context itself is the
    cover, and special tokens may follow it.
    """

    book: Book
    start: int
    end: int
    depth: int


class Cover(NamedTuple):
    """One cover.

    Attributes:
      ids: with what stands before the text.
      remainder: bytes that stick out.
      log_weight: nats.
    """

    ids: tuple[int, ...]
    remainder: bytes
    log_weight: float


class Covers(NamedTuple):
    """All covers of one byte string.

    Attributes:
      blocks: disjoint; those of depth 0 first are contexts of the whole string.
      log_dropped: mass that was left out of the sum, nats; -inf for none.
      resolved: whether everything before the text could be encoded as it stands.
    """

    blocks: tuple[Block, ...]
    log_dropped: float = NOTHING
    resolved: bool = True

    def log_mass(self) -> float:
        """Log-weight of all covers together, nats."""
        parts = [
            block.book.node.weight if block.depth == 0 else _log_range(block)
            for block in self.blocks
        ]
        return float(np.logaddexp.reduce(parts)) if parts else NOTHING

    def symbols(self, tables: Tables) -> np.ndarray:
        """`[256 + specials]` float64 weights of what may follow, not normalised."""
        out = np.zeros(256 + len(tables.specials))
        top = max((block.book.top for block in self.blocks), default=0.0)
        for block in self.blocks:
            book, part = block.book, slice(block.start, block.end)
            scale = np.exp(book.top - top)
            column = tables.order.column(block.depth)[part]
            out[:256] += scale * np.bincount(
                column, weights=book.mass[part], minlength=256
            )
            if block.depth == 0:
                out[256:] += np.exp(book.specials - top)
        return out

    def listed(self, tables: Tables) -> list[Cover]:
        """Every cover by itself, in the order of the blocks."""
        found = []
        for block in self.blocks:
            node = block.book.node
            if block.depth == 0:
                found.append(Cover(node.ids, b"", node.weight))
                continue
            for place in range(block.start, block.end):
                weight = float(block.book.log_weights[place])
                if weight > NOTHING:
                    ids = (*node.ids, int(tables.order.ids[place]))
                    rest = tables.order.keys[place][block.depth :]
                    found.append(Cover(ids, rest, weight))
        return found


def _log_range(block: Block) -> float:
    mass = block.book.mass[block.start : block.end].sum()
    return block.book.top + float(np.log(mass)) if mass > 0 else NOTHING


def make_book(tables: Tables, node: Node, log_probs: np.ndarray, masked: bool) -> Book:
    """Weights of what may follow a context, from the model's log-probabilities."""
    order, grammar = tables.order, tables.grammar
    tokens = log_probs[order.ids].astype(np.float64)
    specials = log_probs[tables.specials].astype(np.float64)
    if masked:
        tokens[~grammar.row(node.opens)[order.ids]] = NOTHING
        if not grammar.ends(node.opens):
            specials[:] = NOTHING
    top = float(max(tokens.max(initial=NOTHING), specials.max(initial=NOTHING)))
    mass = np.exp(tokens - top) if top > NOTHING else np.zeros_like(tokens)
    shift = node.weight
    if tables.masking == "renorm" and top > NOTHING:
        total = mass.sum() + np.exp(specials - top).sum()
        shift -= top + float(np.log(total))
    return Book(node, tokens + shift, mass, top + shift, specials + shift)


def advance(
    tables: Tables, covers: Covers, byte: int
) -> tuple[list[Block], list[Node]]:
    """Covers of the string and one more byte: what sticks out, and new contexts."""
    order, blocks, nodes = tables.order, [], []
    for block in covers.blocks:
        column = order.column(block.depth)[block.start : block.end]
        low, high = np.searchsorted(column, (byte, byte + 1)) + block.start
        start, end, depth = int(low), int(high), block.depth + 1
        while start < end and order.lengths[start] == depth:
            node = _child(tables, block.book, start)
            if node is not None:
                nodes.append(node)
            start += 1
        if start < end and block.book.mass[start:end].max() > 0:
            blocks.append(Block(block.book, start, end, depth))
    return blocks, nodes


def _child(tables: Tables, book: Book, place: int) -> Node | None:
    """A context and one more token; None where it has no mass or cannot be."""
    weight, token = float(book.log_weights[place]), int(tables.order.ids[place])
    if weight == NOTHING:
        return None
    opens = tables.grammar.step(book.node.opens, token)
    return Node(opens, book.node, token, weight=weight) if opens else None


def limited(
    tables: Tables, covers: Covers, most: int | None, prune: float
) -> Covers:  # fmt: skip
    """The heaviest covers; the mass of the others is counted as dropped."""
    if most is None and prune <= 0:
        return covers
    total = covers.log_mass()
    parts = [
        np.asarray([b.book.node.weight]) if b.depth == 0
        else b.book.log_weights[b.start : b.end] for b in covers.blocks
    ]  # fmt: skip
    weights = np.concatenate(parts) if parts else np.zeros(0)
    least = total + np.log(prune) if prune > 0 else NOTHING
    alive = weights[weights > NOTHING]
    if most is not None and len(alive) > most:
        least = max(least, float(np.sort(alive)[-most]))
    least = min(least, float(alive.max(initial=NOTHING)))  # the heaviest stays
    dropped, blocks = [covers.log_dropped], []
    for block, part in zip(covers.blocks, parts, strict=True):
        light = part < least
        if not light.any():
            blocks.append(block)
            continue
        dropped.append(float(np.logaddexp.reduce(part[light])))
        if not light.all() and block.depth:
            blocks.append(_thinned(block, light))
    log_dropped = float(np.logaddexp.reduce(dropped))
    return covers._replace(blocks=tuple(blocks), log_dropped=log_dropped)


def _thinned(block: Block, light: np.ndarray) -> Block:
    part = slice(block.start, block.end)
    log_weights, mass = block.book.log_weights.copy(), block.book.mass.copy()
    log_weights[part][light], mass[part][light] = NOTHING, 0.0
    book = block.book._replace(log_weights=log_weights, mass=mass)
    return block._replace(book=book)


def forced(tables: Tables, book: Book, text: bytes) -> tuple[list[Block], list[Node]]:
    """The covers whose next token begins with some bytes: those of token healing."""
    start, end = tables.order.prefix_range(text)
    nodes = []
    while text and start < end and tables.order.lengths[start] == len(text):
        token, weight = int(tables.order.ids[start]), float(book.log_weights[start])
        opens = tables.grammar.free
        if tables.masking != "fast":
            opens = tables.grammar.step(book.node.opens, token)
        nodes.append(Node(opens, book.node, token, weight=weight))
        start += 1
    block = Block(book, start, end, len(text))
    return ([block] if start < end else []), nodes


# ---- the covers of a prompt


class Search(NamedTuple):
    """The contexts that the covers of a prompt need, before a model was asked.

    Attributes:
      ends: sequences that spell the whole prompt.
      lefts: sequences that spell a part of it, with the range of the tokens that
        cover the rest and stick out, and how many bytes of the rest they cover.
    """

    ends: list[Node]
    lefts: list[tuple[Node, int, int, int]]


def search(
    tables: Tables, before: tuple[int, ...], opens: tuple[Any, ...], text: bytes
) -> Search:
    """All valid sequences that spell a text or a beginning of it, left to right."""
    order, grammar, size = tables.order, tables.grammar, len(text)
    at: list[list[Node]] = [[] for _ in range(size + 1)]
    at[0].append(Node(opens, before=before))
    lefts = []
    for start in range(size):
        nodes = at[start]
        if not nodes:
            continue
        for token, end in order.inside(text, start):
            for node in nodes:
                opens = grammar.step(node.opens, token)
                if opens:
                    at[end].append(Node(opens, node, token))
        if size - start <= order.longest:
            lefts += _sticking_out(tables, nodes, text[start:])
    return Search(at[size], lefts)


def _sticking_out(
    tables: Tables, nodes: list[Node], rest: bytes
) -> list[tuple[Node, int, int, int]]:
    start, end = tables.order.prefix_range(rest)
    while start < end and tables.order.lengths[start] == len(rest):
        start += 1
    if start == end:
        return []
    ids = tables.order.ids[start:end]
    return [
        (node, start, end, len(rest))
        for node in nodes
        if tables.grammar.row(node.opens)[ids].any()
    ]


def asked(found: Search, *, whole: bool) -> list[Node]:
    """The contexts that a model must be asked for, shortest first.

    Args:
      found: of one prompt.
      whole: from the start of the text on, for the absolute weight; else from the last
        context that all covers have in common.
    """
    needed = {id(n): n for n in found.ends}
    needed |= {id(left[0]): left[0] for left in found.lefts}
    paths = [_path(node) for node in needed.values()]
    if not paths:
        return []
    common = 0
    if not whole:
        shortest = min(map(len, paths))
        while common < shortest and len({id(path[common]) for path in paths}) == 1:
            common += 1
        common -= 1
    nodes = {id(node): node for path in paths for node in path[common:]}
    return sorted(nodes.values(), key=lambda node: len(node.ids))


def _path(node: Node) -> list[Node]:
    path = [node]
    while (parent := path[-1].parent) is not None:
        path.append(parent)
    return path[::-1]


def weigh(
    tables: Tables, node: Node, books: dict[int, Book], log_probs: np.ndarray
) -> Book:
    """The book of a context whose parent has one, or that begins the chain."""
    weight = 0.0
    parent = None if node.parent is None else books.get(id(node.parent))
    if parent is not None:
        weight = float(parent.log_weights[tables.places[node.token]])
    # The initial search masks in every variant; `fast` only leaves the contexts of
    # the whole prompt as they are, which `finish` makes anew.
    return make_book(tables, dataclasses.replace(node, weight=weight), log_probs, True)


def opened(
    tables: Tables, found: Search, books: dict[int, Book],
    rows: dict[int, np.ndarray],
) -> Covers:  # fmt: skip
    """The covers of a prompt, from the books of its contexts."""
    blocks = []
    for node in found.ends:
        book = books[id(node)]
        if tables.masking == "fast":
            book = make_book(tables, book.node, rows[id(node)], False)
        blocks.append(Block(book, 0, len(tables.order), 0))
    blocks += [
        Block(books[id(node)], start, end, depth)
        for node, start, end, depth in found.lefts
    ]
    return Covers(tuple(blocks))


def step_covers(
    tables: Tables, covers: Sequence[Covers], bytes_: Sequence[int], lm: NextToken,
    memory: Any,
) -> tuple[list[Covers], Any]:  # fmt: skip
    """Every row and one byte more: one call of the model for all new contexts."""
    moved = [
        advance(tables, row, byte) for row, byte in zip(covers, bytes_, strict=True)
    ]
    contexts = list(dict.fromkeys(n.ids for _, nodes in moved for n in nodes))
    rows: dict[tuple[int, ...], np.ndarray] = {}
    if contexts:
        made, memory = lm.log_probs(memory, contexts)
        rows = dict(zip(contexts, made, strict=True))
    out = []
    masked = tables.masking != "fast"
    for old, (blocks, nodes) in zip(covers, moved, strict=True):
        heads = [
            Block(make_book(tables, node, rows[node.ids], masked), 0,
                  len(tables.order), 0)
            for node in nodes
        ]  # fmt: skip
        out.append(old._replace(blocks=(*heads, *blocks)))
    return out, memory
