"""Who sees whom where a row holds more than its tokens: packed blocks, prefixes.

A block is a run of k mask tokens behind some token of a row: it sees the row up to
that token, and itself. Packed, every token's block runs in one forward pass. The masks
are made from small integer arrays; where the slots are the tokens and then all blocks,
`block_attention` needs no mask of all slots by all slots at all.

Source: arXiv 2507.11851, section 3 (several sub-prompts in one).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.ops.implementation import target_platform
from jtok.predict.targets import IGNORE, future_labels

__all__ = [
    "Packed",
    "allow_blocks",
    "allow_prefix",
    "block_attention",
    "choose_blocks",
    "interleave",
    "pack_blocks",
]

_MASKED = -1e30
_QUERIES = 128  # of mask tokens whose scores exist at a time


@struct.dataclass
class Packed:
    """A batch of rows, each with its blocks; `slots` is tokens and mask tokens.

    Attributes:
      ids: `[batch, slots]` int32; mask token j of a block is `vocab_size + j - 1`.
      positions: `[batch, slots]` int32 of the model.
      block: `[batch, slots]` int32 index of the token that the slot hangs off; its
        own of a token, -1 where there is nothing.
      offset: `[batch, slots]` int32, 0 for tokens, j for the j-th mask token, -1 where
        there is nothing.
      labels: `[batch, slots]` int32 what the slot predicts, `IGNORE` for nothing.
      prev_tokens: `[batch, slots]` int32 the token right before the label, 0 where
        that is beyond the row.
      valid: `[batch, slots]` bool.
      weight: `[batch, slots]` float32; blocks that were chosen count for the others.
      segments: `[batch, seq]` int32 of packed documents, or None.
      targets: `[batch, seq]` int32 mask tokens with a label that stand at each token's
        place, those of blocks that were not chosen too; None in another order.
      seq: tokens of a row, which come first; 0 where slots are in another order.
      k: mask tokens of a block.
      vocab_size: number of ids.
    """

    ids: jax.Array
    positions: jax.Array
    block: jax.Array
    offset: jax.Array
    labels: jax.Array
    prev_tokens: jax.Array
    valid: jax.Array
    weight: jax.Array
    segments: jax.Array | None = None
    targets: jax.Array | None = None
    seq: int = struct.field(pytree_node=False, default=0)
    k: int = struct.field(pytree_node=False, default=0)
    vocab_size: int = struct.field(pytree_node=False, default=0)


def choose_blocks(
    key: jax.Array,
    labels: Int[Array, "batch seq"],
    num_blocks: int,
    *,
    segments: Int[Array, "batch seq"] | None = None,
) -> Int[Array, "batch blocks"]:
    """Draws some of the tokens that can have a block, without replacement.

    Args:
      key: typed PRNG key, consumed.
      labels: `[batch, seq]` int32 of each token, negative where it is no target.
      num_blocks: how many, 1 to seq (static).
      segments: `[batch, seq]` int32 of packed documents, None for one a row.

    Returns:
      `[batch, num_blocks]` int32 ascending indices of tokens whose next token is a
      target; -1 at the end where there are fewer.

    Raises:
      ArgumentError: `num_blocks` out of range.

    Example:
      >>> labels = jnp.array([[-100, -100, 7, 8]])
      >>> choose_blocks(jax.random.key(0), labels, 3).tolist()
      [[1, 2, -1]]
    """
    seq = labels.shape[1]
    check(1 <= num_blocks <= seq, "num_blocks", num_blocks, f"1 to {seq}")
    _, good = future_labels(labels, 1, segments=segments)
    draws = jnp.where(good[..., 0], jax.random.uniform(key, labels.shape), -1.0)
    values, chosen = jax.lax.top_k(draws, num_blocks)
    return _ascending(jnp.where(values >= 0, chosen, -1))


def _ascending(blocks: Array) -> Array:
    last = jnp.iinfo(jnp.int32).max
    blocks = jnp.sort(jnp.where(blocks < 0, last, blocks), axis=1)
    return jnp.where(blocks == last, -1, blocks).astype(jnp.int32)


def pack_blocks(
    tokens: Int[Array, "batch seq"],
    k: int,
    *,
    vocab_size: int,
    labels: Int[Array, "..."] | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    positions: Int[Array, "batch seq"] | None = None,
    segments: Int[Array, "batch seq"] | None = None,
    blocks: Int[Array, "..."] | None = None,
    max_positions: int | None = None,
) -> Packed:
    """Lays out rows: first their tokens, then every block, k slots each.

    The token at index i predicts the label at i + 1, and the j-th mask token of its
    block the label at i + j + 1; both stand where the token right before it stands.

    Under `jit`, where values are not known, what would be refused is left out: a token
    that is no id counts as padding, a label that is no id as none, and slots at
    positions that the model lacks are not valid.

    Args:
      tokens: `[batch, seq]` int32.
      k: mask tokens of a block, 0 or more (static).
      vocab_size: number of ids; mask tokens follow them.
      labels: `[batch, seq]` int32 of each token, negative where it is no target; None
        takes the tokens.
      mask: `[batch, seq]` True for real tokens, None for all.
      positions: `[batch, seq]` int32, None counts from 0.
      segments: `[batch, seq]` int32 of packed documents, which do not see each other;
        None for one a row.
      blocks: `[batch, blocks]` int32 tokens that get one, -1 for none; None: all whose
        next token is a target.
      max_positions: of the model, None for no bound.

    Returns:
      `Packed` of `seq + blocks * k` slots.

    Raises:
      ArgumentError: `k` negative, no tokens, a wrong shape, or more positions than the
        model has; where values are known also a mask token among the tokens, a label
        that is no id, or a position that the model lacks.

    Source: arXiv 2507.11851, section 3. Differs: tokens come first, so that they run
    as an unchanged causal forward pass (`interleave` gives the paper's order).

    Example:
      >>> packed = pack_blocks(jnp.array([[5, 6, 7]]), 2, vocab_size=10)
      >>> packed.ids[0].tolist()
      [5, 6, 7, 10, 11, 10, 11, 10, 11]
      >>> packed.labels[0].tolist()
      [6, 7, -100, 7, -100, -100, -100, -100, -100]
    """
    batch, seq = tokens.shape
    check(k >= 0, "k", k, "at least 0")
    check(seq >= 1, "tokens", f"shape {tokens.shape}", "at least one token")
    for name, given in (
        ("labels", labels), ("mask", mask), ("positions", positions),
        ("segments", segments),
    ):  # fmt: skip
        good = given is None or given.shape == tokens.shape
        check(good, name, f"shape {getattr(given, 'shape', None)}", f"{tokens.shape}")
    _check_within("tokens", tokens, 0, vocab_size - 1)
    if labels is not None:
        _check_within("labels", labels, None, vocab_size - 1)
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), tokens.shape)
    places = index if positions is None else positions
    real, wanted = known_targets(tokens, vocab_size, labels=labels, mask=mask)
    if max_positions is not None:
        got = f"{seq} tokens and k={k}"
        check(seq + k <= max_positions, "tokens", got, f"{max_positions} positions")
        _check_within("positions", places, 0, max_positions - 1 - k)
        real = real & (places >= 0) & (places < max_positions)
    ahead, there = future_labels(wanted, range(1, k + 2), segments=segments)
    plain = Packed(
        ids=tokens,
        positions=places,
        block=jnp.where(real, index, -1),
        offset=jnp.where(real, 0, -1),
        labels=jnp.where(there[..., 0] & real, ahead[..., 0], IGNORE),
        prev_tokens=tokens,
        valid=real,
        weight=real.astype(jnp.float32),
    )
    starts = there[..., 0] & real
    if blocks is None:
        weight = jnp.ones(batch)
        blocks = jnp.where(starts, index, -1)
    else:
        good = blocks.ndim == 2 and blocks.shape[0] == batch
        check(good, "blocks", f"shape {blocks.shape}", f"[{batch}, blocks]")
        every = jnp.sum(starts, axis=1, dtype=jnp.float32)
        some = jnp.sum(blocks >= 0, axis=1, dtype=jnp.float32)
        weight = every / jnp.maximum(some, 1.0)
    every = starts[..., None] & there[..., 1:]
    behind = _blocks(tokens, k, vocab_size, plain, blocks, (ahead, there), weight)
    if max_positions is not None:
        within = behind.positions < max_positions
        behind = dataclasses.replace(
            behind,
            valid=behind.valid & within,
            labels=jnp.where(within, behind.labels, IGNORE),
        )
        reached = places[..., None] + jnp.arange(1, k + 1)[None, None] < max_positions
        every = every & reached
    joined = jax.tree.map(_join, plain, behind)
    return dataclasses.replace(
        joined, segments=segments, targets=_by_place(every), seq=seq, k=k,
        vocab_size=vocab_size,
    )  # fmt: skip


def known_targets(
    tokens: Array, vocab_size: int, *, labels: Any = None, mask: Any = None
) -> tuple[Array, Array]:
    """Which tokens are real ids, and labels: `IGNORE` where a token is no target."""
    good = lambda ids: (ids >= 0) & (ids < vocab_size)
    real = good(tokens)
    if mask is not None:
        real = real & mask.astype(bool)
    wanted = tokens if labels is None else labels
    return real, jnp.where(real & good(wanted), wanted, IGNORE)


def _by_place(every: Bool[Array, "batch seq k"]) -> Int[Array, "batch seq"]:
    """How many of the slots behind the tokens stand at each token's place."""
    seq, k = every.shape[1:]
    moved = [
        jnp.pad(every[:, : max(seq - j, 0), j - 1], ((0, 0), (min(j, seq), 0)))
        for j in range(1, k + 1)
    ]
    return sum(moved, jnp.zeros(every.shape[:2], jnp.int32))


def _join(left: Array, right: Array) -> Array:
    return jnp.concatenate([left, right.astype(left.dtype)], axis=1)


def _check_within(name: str, values: Array, least: int | None, most: int) -> None:
    """Refuses values out of a range, where they are known; None for no lower end."""
    if isinstance(values, jax.core.Tracer) or not values.size:
        return
    held = np.asarray(values)  # also where a closure brought it under `jit`
    low, high = int(held.min()), int(held.max())
    good = high <= most and (least is None or low >= least)
    expected = f"at most {most}" if least is None else f"{least} to {most}"
    check(good, name, f"{low} to {high}", expected)


def _blocks(
    tokens: Array, k: int, vocab_size: int, plain: Packed, blocks: Array,
    labels: tuple[Array, Array], weight: Array,
) -> Packed:  # fmt: skip
    """The slots of all blocks, one after the other."""
    batch, seq = tokens.shape
    count = blocks.shape[1]
    order = jnp.arange(1, k + 1, dtype=jnp.int32)[None, None]
    at = jnp.maximum(blocks, 0)
    exists = jnp.broadcast_to((blocks >= 0)[..., None], (batch, count, k))
    row = lambda x: jnp.take_along_axis(x, at, axis=1)
    ahead, there = (jnp.take_along_axis(x, at[..., None], axis=1) for x in labels)
    places = jnp.minimum(at[..., None] + order, seq - 1)
    within = (at[..., None] + order) < seq
    flat = lambda x: jnp.broadcast_to(x, (batch, count, k)).reshape(batch, count * k)
    before = jnp.take_along_axis(tokens, places.reshape(batch, -1), axis=1)
    before = before.reshape(places.shape)
    return Packed(
        ids=flat(vocab_size + order - 1),
        positions=flat(row(plain.positions)[..., None] + order),
        block=flat(jnp.where(exists, blocks[..., None], -1)),
        offset=flat(jnp.where(exists, order, -1)),
        labels=flat(jnp.where(there[..., 1:] & exists, ahead[..., 1:], IGNORE)),
        prev_tokens=flat(jnp.where(within, before, 0)),
        valid=flat(exists),
        weight=flat(jnp.where(exists, weight[:, None, None], 0.0)),
    )


def interleave(packed: Packed, slots: int | None = None) -> Packed:
    """The same slots in the order of the paper: each token, then its block.

    Args:
      packed: in any order.
      slots: how many to keep (static), None for all; what holds nothing goes last.

    Returns:
      `Packed` of `slots` slots.

    Example:
      >>> packed = pack_blocks(jnp.array([[5, 6, 7]]), 1, vocab_size=10)
      >>> interleave(packed, 5).ids.tolist()
      [[5, 10, 6, 10, 7]]
    """
    width = packed.offset.max() + 1
    place = jnp.where(packed.valid, packed.block * width + packed.offset, 2**30)
    order = jnp.argsort(place, axis=1, stable=True)[:, :slots]
    moved = dataclasses.replace(packed, segments=None, targets=None, seq=0)
    return jax.tree.map(lambda x: jnp.take_along_axis(x, order, axis=1), moved)


def allow_blocks(
    block: Int[Array, "batch slots"],
    offset: Int[Array, "batch slots"],
    valid: Bool[Array, "batch slots"],
) -> Bool[Array, "batch slots slots"]:
    """Which slot sees which, for slots in any order: a dense mask, for small inputs.

    A token sees the tokens up to itself; a mask token sees the tokens up to its
    block's and its block up to itself. What is not valid sees itself alone.

    Args:
      block: `[batch, slots]` int32 as in `Packed`.
      offset: `[batch, slots]` int32.
      valid: `[batch, slots]` bool.

    Returns:
      `[batch, slots, slots]` bool, row = query.

    Example:
      >>> packed = pack_blocks(jnp.array([[5, 6]]), 1, vocab_size=10)
      >>> allow = allow_blocks(packed.block, packed.offset, packed.valid)
      >>> allow[0].astype(int).tolist()
      [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    """
    rows = lambda x: x[:, :, None]
    columns = lambda x: x[:, None, :]
    tokens = (columns(offset) == 0) & (columns(block) <= rows(block))
    same = (columns(block) == rows(block)) & (columns(offset) <= rows(offset))
    own = same & (columns(offset) > 0) & (rows(offset) > 0)
    itself = jnp.eye(block.shape[1], dtype=bool)[None]
    return ((tokens | own) & rows(valid) & columns(valid)) | itself


def within_documents(
    mask: Bool[Array, "..."] | None, segments: Int[Array, "batch seq"] | None
) -> Bool[Array, "..."] | None:
    """What a model takes as its mask where rows hold several documents.

    Args:
      mask: `[batch, seq]` or `[batch, seq, seq]` as a model takes it, None for all.
      segments: `[batch, seq]` int32 of packed documents, None for one a row.

    Returns:
      `mask` itself without segments, else `[batch, seq, seq]`, causal.
    """
    if segments is None:
        return mask
    allow = jnp.tril(segments[:, :, None] == segments[:, None, :])
    if mask is None:
        return allow
    return allow & (mask[:, None, :] if mask.ndim == 2 else mask).astype(bool)


def allow_prefix(
    prefix: Int[Array, " batch"], seq: int
) -> Bool[Array, "batch seq seq"]:
    """A causal mask whose first tokens see each other both ways.

    Args:
      prefix: `[batch]` int32 tokens of the prefix; 0 is causal.
      seq: tokens of a row (static).

    Returns:
      `[batch, seq, seq]` bool, row = query.

    Example:
      >>> allow_prefix(jnp.array([2]), 3)[0].astype(int).tolist()
      [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """
    causal = jnp.asarray(np.tri(seq, dtype=bool))[None]
    return causal | (jnp.arange(seq)[None, None] < prefix[:, None, None])


def block_attention(
    query: Float[Array, "batch slots heads head_dim"],
    key: Float[Array, "batch kv_heads slots head_dim"],
    value: Float[Array, "batch kv_heads slots head_dim"],
    row_key: Float[Array, "batch kv_heads seq head_dim"],
    row_value: Float[Array, "batch kv_heads seq head_dim"],
    ends: Int[Array, "batch blocks"],
    *,
    scale: float,
    seen: Bool[Array, "batch seq"] | None = None,
    positions: Int[Array, "batch seq"] | None = None,
    segments: Int[Array, "batch seq"] | None = None,
    window: int | Int[Array, ""] | None = None,
    softcap: float | None = None,
    queries: int = _QUERIES,
) -> Float[Array, "batch slots heads head_dim"]:
    """Attention of blocks over the row before them and over themselves.

    Two parts, each with its own normaliser, are merged by log-sum-exp. Scores exist
    for `queries` slots at a time, in the backward pass too, so that memory grows with
    `queries * seq` and not with the square of all slots.

    Args:
      query: `[batch, slots, heads, head_dim]`, blocks one after the other.
      key: `[batch, kv_heads, slots, head_dim]` of the same slots.
      value: as `key`.
      row_key: `[batch, kv_heads, seq, head_dim]` of the row's tokens.
      row_value: as `row_key`.
      ends: `[batch, blocks]` int32 last token that each block sees; -1 sees none.
        `slots` is a multiple of `blocks`.
      scale: factor on the scores.
      seen: `[batch, seq]` bool tokens that may be seen, None for all.
      positions: `[batch, seq]` int32 of the tokens, None counts from 0; read where
        there is a window.
      segments: `[batch, seq]` int32 of packed documents, None for one a row.
      window: a slot at position p sees positions above `p - window`; None sees all.
      softcap: scores become `softcap * tanh(scores / softcap)`, None for no cap.
      queries: slots whose scores exist at a time, at least (static).

    Returns:
      `[batch, slots, heads, head_dim]` in the dtype of `query`.

    Raises:
      ArgumentError: `slots` is no multiple of `blocks`.

    Source: arXiv 2507.11851, section 3; Dao et al. 2022, arXiv 2205.14135 (merging).

    Example:
      >>> q, kv, row = (jnp.ones((1, *s, 8)) for s in ((4, 2), (1, 4), (1, 3)))
      >>> ends = jnp.array([[0, 1]])
      >>> block_attention(q, kv, kv, row, row, ends, scale=0.5).shape
      (1, 4, 2, 8)
    """
    batch, slots, heads, dim = query.shape
    blocks, kv_heads, seq = ends.shape[1], key.shape[1], row_key.shape[2]
    good = blocks > 0 and slots % blocks == 0
    check(good, "ends", f"{blocks} blocks", f"a divisor of {slots} slots")
    k = slots // blocks
    index = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (batch, seq))
    open_ = jnp.ones((batch, seq), bool) if seen is None else seen
    places = index if positions is None else positions
    at = jnp.maximum(ends, 0)
    start = jnp.take_along_axis(places, at, axis=1)
    document = None if segments is None else jnp.take_along_axis(segments, at, axis=1)
    # CPUs multiply not every shape of bfloat16 with a float32 result.
    wide = jnp.float32 if target_platform() == "cpu" else query.dtype
    steps = jnp.arange(k)
    causal = steps[None, :] <= steps[:, None]  # [query, key] of one block
    if window is not None:
        causal = causal & (steps[:, None] - steps[None, :] < window)

    def some(part: tuple[Array, ...]) -> Array:
        """Some blocks: arrays are `[batch, blocks, ...]`."""
        own_query, own_key, own_value, end, first, kind = part
        allow = (index[:, None] <= end[..., None]) & open_[:, None]
        if segments is not None:
            allow = allow & (segments[:, None] == kind[..., None])
        allow = jnp.broadcast_to(allow[:, :, None], (*end.shape, k, seq))
        if window is not None:
            place = first[..., None] + steps[None, None] + 1
            near = place[..., None] - places[:, None, None] < window
            allow = allow & near
        grouped = own_query.reshape(*end.shape, k, kv_heads, heads // kv_heads, dim)
        grouped = grouped.astype(wide)
        score = lambda form, keys: _capped(
            scale
            * jnp.einsum(
                form, grouped, keys.astype(wide), preferred_element_type=jnp.float32
            ),
            softcap,
        )
        over_row = score("bcjgrd,bgnd->bgrcjn", row_key)
        over_row = jnp.where(allow[:, None, None], over_row, -jnp.inf)
        over_own = score("bcjgrd,bcgld->bgrcjl", own_key)
        over_own = jnp.where(causal[None, None, None, None], over_own, _MASKED)
        best = jnp.maximum(over_row.max(-1), over_own.max(-1))[..., None]
        best = jax.lax.stop_gradient(best)
        weights, own_weights = jnp.exp(over_row - best), jnp.exp(over_own - best)
        total = weights.sum(-1) + own_weights.sum(-1)
        mix = lambda form, share, values: jnp.einsum(
            form,
            share.astype(values.dtype).astype(wide),
            values.astype(wide),
            preferred_element_type=jnp.float32,
        )
        mixed = mix("bgrcjn,bgnd->bcjgrd", weights, row_value)
        mixed = mixed + mix("bgrcjl,bcgld->bcjgrd", own_weights, own_value)
        mixed = mixed / total.transpose(0, 3, 4, 1, 2)[..., None]
        return mixed.reshape(*end.shape, k, heads, dim)

    by_block = lambda x: x.reshape(batch, kv_heads, blocks, k, dim).swapaxes(1, 2)
    parts = (
        query.reshape(batch, blocks, k, heads, dim),
        by_block(key),
        by_block(value),
        ends,
        start,
        ends if document is None else document,
    )
    size = max(1, queries // max(k, 1))
    if blocks <= size:
        mixed = some(parts)
    else:
        padding = -blocks % size

        def cut(x: Array) -> Array:
            """[batch, blocks, ...] -> [pieces, batch, size, ...]"""
            pads = [(0, padding if axis == 1 else 0) for axis in range(x.ndim)]
            x = jnp.pad(x, pads).reshape(batch, -1, size, *x.shape[2:])
            return x.swapaxes(0, 1)

        pieces = jax.lax.map(jax.checkpoint(some), jax.tree.map(cut, parts))
        mixed = pieces.swapaxes(0, 1).reshape(batch, -1, k, heads, dim)[:, :blocks]
    return mixed.reshape(query.shape).astype(query.dtype)


def _capped(scores: Array, softcap: float | None) -> Array:
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)
