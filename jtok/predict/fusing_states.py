"""What a fusing draft stack computes: trigrams, estimated states, and readouts.

Source: Zeng et al. 2024, arXiv 2402.15758; see `jtok.predict.fusing`.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok import nn
from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.ops import Want, attention, readout
from jtok.predict.fusing import Base, Fusing, FusingConfig

__all__ = ["encode_trigrams", "fuse", "gram_ids", "head_hidden", "head_logits"]

PyTree = Any

# ---- the trigram encoder


def gram_ids(
    before: Int[Array, "batch seq 2"],
    ids: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
) -> Int[Array, "batch seq 3"]:
    """The three tokens that each token is encoded with.

    The first token of a text stands three times, the second twice.

    Args:
      before: `[batch, seq, 2]` int32 the two tokens before each, older first; what
        would lie before the text is not read.
      ids: `[batch, seq]` int32.
      positions: `[batch, seq]` int32 of the tokens in their text, from 0.

    Returns:
      `[batch, seq, 3]` int32.

    Source: arXiv 2402.15758, released code.

    Example:
      >>> before, places = jnp.array([[[0, 0], [0, 5]]]), jnp.array([[0, 1]])
      >>> gram_ids(before, jnp.array([[5, 6]]), places).tolist()
      [[[5, 5, 5], [5, 6, 6]]]
    """
    older, newer = before[..., 0], before[..., 1]
    oldest = jnp.where(positions == 0, ids, jnp.where(positions == 1, newer, older))
    middle = jnp.where(positions <= 1, ids, newer)
    return jnp.stack([oldest, middle, ids], axis=-1)


def encode_trigrams(
    fusing: Fusing,
    grams: Int[Array, "batch seq 3"],
    positions: Int[Array, "batch seq"],
) -> Float[Array, "batch seq dim"]:
    """Encodes each token with the two before it.

    Embeddings are scaled as the target scales them.

    "residual": `outer(g + silu(inner(g)))` of the three embeddings g, one after the
    other. "narrow": `outer(silu(inner(g)))`, where what lies before the text is zero.
    "token": the embedding of the last.

    Args:
      fusing: the draft stack.
      grams: `[batch, seq, 3]` int32, as `gram_ids` gives them.
      positions: `[batch, seq]` int32.

    Returns:
      `[batch, seq, dim]` in the layer's dtype; no gradient reaches the embedding.

    Source: arXiv 2402.15758; "residual" is the released code, "narrow" the text.

    Example:
      >>> from jtok.testing import tiny_model
      >>> fusing = init_fusing(tiny_model(), jax.random.key(0))
      >>> encode_trigrams(fusing, jnp.ones((1, 2, 3), int), jnp.array([[2, 3]])).shape
      (1, 2, 32)
    """
    config, params = fusing.config, fusing.params
    embed = jax.lax.stop_gradient(fusing.base.embed)
    rows = embed[grams].astype(config.layer.dtype)  # [batch, seq, 3, dim]
    if config.layer.embed_scale is not None:
        rows = rows * jnp.asarray(config.layer.embed_scale, rows.dtype)
    if config.trigram == "token":
        return rows[..., 2, :]
    if config.trigram == "narrow":
        there = positions[..., None] >= jnp.array([2, 1, 0])[None, None]
        rows = jnp.where(there[..., None], rows, 0)
    flat = rows.reshape(*grams.shape[:2], -1)
    inner = _linear(flat, params["trigram"]["inner"])
    mixed = jax.nn.silu(inner)
    if config.trigram == "residual":
        mixed = flat + mixed
    return _linear(mixed, params["trigram"]["outer"])


def _linear(x: Array, params: PyTree) -> Array:
    bias = "bias" in params
    layer = nn.Linear(params["kernel"].shape[-1], bias, params["kernel"].dtype.name)
    return layer.apply({"params": params}, x)  # type: ignore[return-value]


# ---- the full-context encoder


def stream_keys(fusing: Fusing, x: Array, positions: Array) -> tuple[Array, Array]:
    """Keys and values `[batch, kv_heads, seq, head_dim]` of a stream.

    The rest of the layer is dead code, which the compiler drops.
    """
    attend = lambda query, key, value: (jnp.zeros_like(query), (key, value))
    return run_layer(fusing, x, positions, attend)[1]


def run_layer(
    fusing: Fusing, x: Array, positions: Array, attend: Callable
) -> tuple[Array, Any]:
    """The one layer on the tokens of a stream."""
    block = nn.Block(fusing.config.layer)
    params = {"params": fusing.params["layer"]}
    return block.apply(params, x, positions, attend, lambda _, value: value)


def fuse(
    fusing: Fusing,
    hidden: Float[Array, "batch seq dim"],
    ids: Int[Array, "batch seq"],
    *,
    mask: Bool[Array, "batch seq"] | None = None,
    next_ids: Int[Array, " batch"] | None = None,
    own_tokens: bool = False,
    compat: Literal["official"] | None = None,
) -> Float[Array, "steps batch seq dim"]:
    """Estimates the target's states 1..steps positions ahead, at every position.

    `F^k_i` sees the states `H_0..H_i` and the trigrams `T_k..T_{i+k}`, so tokens up to
    i + k; those past the last real one are the target's own next token, of a padded row
    as of the row alone. From k = 2 on the trigrams get no gradient, and the states
    never do. One step exists at a time, in the backward pass too.

    Args:
      fusing: the draft stack.
      hidden: `[batch, seq, dim]` the target's states after its final norm.
      ids: `[batch, seq]` int32 tokens of these positions, at least 3.
      mask: `[batch, seq]` True for real tokens, which come first; others are never
        looked at. None lets all be real.
      next_ids: `[batch]` int32 the token after the last real one; None takes the
        target's arg-max there.
      own_tokens: step k >= 2 takes for the token at i + k what the head before it
        says, and not the text.
      compat: "official" lets the next token stand behind the padding, so that the last
        `steps` real places of a padded row look at padding.

    Returns:
      `[steps, batch, seq, dim]` in the layer's dtype.

    Raises:
      ArgumentError: fewer than 3 tokens, shapes that do not fit, or another `compat`.
      ArgumentTypeError: a mask that is not of bools.

    Source: arXiv 2402.15758, released code. Differs: see `compat`; only rows that are
    used are computed; of the tokens of `own_tokens` the layout in a trigram is
    inferred.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model, ids = tiny_model(), jnp.array([[1, 2, 3, 4]])
      >>> fusing = init_fusing(model, jax.random.key(0))
      >>> fuse(fusing, model(ids).hidden, ids).shape
      (4, 1, 4, 32)
    """
    config, (batch, seq) = fusing.config, ids.shape
    check_tokens(config.width, hidden, ids, mask)
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    hidden = jax.lax.stop_gradient(hidden).astype(config.layer.dtype)
    length = jnp.full(batch, seq, jnp.int32)
    if mask is not None and compat is None:
        length = jnp.sum(mask, axis=1, dtype=jnp.int32)
    if next_ids is None:
        last = jnp.maximum(length - 1, 0)[:, None, None]
        newest = jnp.take_along_axis(hidden, last, axis=1)
        next_ids = best_ids(fusing.base, newest, config)[:, 0]
    real = jnp.arange(seq + 1)[None] < length[:, None]
    padded = jnp.pad(ids, ((0, 0), (0, 1)))
    tokens = jnp.where(real, padded, next_ids[:, None].astype(ids.dtype))
    rows = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (batch, seq))
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((seq, seq), bool)), (batch, seq, seq))
    if mask is not None:
        causal = causal & mask[:, None]
    seen = [stream_keys(fusing, hidden, rows)] if config.states else []
    texts = _texts(fusing, tokens, length, config.steps)

    def trigrams(index: Array, own: Array) -> Array:
        if not own_tokens:
            return jax.lax.dynamic_slice_in_dim(texts, index + 1, seq, axis=1)
        at = rows + index + 1
        before = _before(tokens, at, length)
        return encode_trigrams(fusing, gram_ids(before, own, at), at)

    def step(carry: tuple[Array, Array], item: Any) -> tuple[Any, Array]:
        (own, made), (index, head) = carry, item
        x = trigrams(index, own)
        x = jnp.where(index == 0, x, jax.lax.stop_gradient(x))
        pairs, allow = list(seen), [causal] * len(seen)
        if config.own_states:
            pair, there = _own_keys(fusing, made, rows, index)
            pairs, allow = [*pairs, pair], [*allow, there]
        attend = _attending(config, pairs, jnp.concatenate([*allow, causal], axis=2))
        out, _ = run_layer(fusing, x, rows + index + 1, attend)
        if own_tokens:
            own = _own_choice(fusing, head, head_hidden(config, head, hidden, out))
        if config.own_states:
            made = made.at[index].set(jax.lax.stop_gradient(out))
        return (own, made), out

    num_made = config.steps if config.own_states else 0
    made = jnp.zeros((num_made, *hidden.shape), hidden.dtype)
    items = (jnp.arange(config.steps), fusing.params["heads"])
    carry = (tokens[:, 1:], made)
    return jax.lax.scan(jax.checkpoint(step), carry, items)[1]


def _attending(
    config: FusingConfig, pairs: list[tuple[Array, Array]], allow: Array
) -> Callable:
    """Attention to keys and values of other streams, and then to the layer's own."""

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, Any]:
        keys = jnp.concatenate([*(pair[0] for pair in pairs), key], axis=2)
        values = jnp.concatenate([*(pair[1] for pair in pairs), value], axis=2)
        scale, cap = config.layer.score_scale, config.layer.attn_softcap
        mixed = attention(query, keys, values, allow, scale=scale, softcap=cap)
        return mixed, (key, value)

    return attend


def check_tokens(width: int, hidden: Any, ids: Any, mask: Any) -> None:
    """Refuses states and tokens that do not belong together."""
    check(ids.ndim == 2 and ids.shape[1] >= 3, "ids", f"shape {ids.shape}",
          "[batch, seq] with at least 3 tokens")  # fmt: skip
    shape = (*ids.shape, width)
    check(hidden.shape == shape, "hidden", f"shape {hidden.shape}", f"{shape}")
    if mask is None:
        return
    check(mask.shape == ids.shape, "mask", f"shape {mask.shape}", f"{ids.shape}")
    if mask.dtype != bool:
        raise ArgumentTypeError(f"mask: got dtype {mask.dtype}, expected bools.")


def best_ids(base: Base, hidden: Array, config: FusingConfig) -> Array:
    """The target's own next token after every state, ties to the lower id."""
    cap = config.layer.final_softcap
    return readout(hidden, base.unembed, Want(), bias=base.bias, softcap=cap).choice


def _texts(fusing: Fusing, tokens: Array, length: Array, steps: int) -> Array:
    """`T_0 .. T_{seq+steps-1}`; past the token at a row's length its own repeats."""
    batch, count = tokens.shape
    places = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (batch, count))
    before = _before(tokens, places, length)
    made = encode_trigrams(fusing, gram_ids(before, tokens, places), places)
    at = jnp.minimum(jnp.arange(count + steps - 1)[None], length[:, None])
    return jnp.take_along_axis(made, at[..., None], axis=1)


def _before(tokens: Array, places: Array, length: Array) -> Array:
    """The two tokens before each place; none stands past a row's length."""

    def at(places: Array) -> Array:
        inside = jnp.clip(places, 0, length[:, None])
        return jnp.take_along_axis(tokens, inside, axis=1)

    return jnp.stack([at(places - 2), at(places - 1)], axis=-1)


def _own_keys(
    fusing: Fusing, made: Array, rows: Array, index: Array
) -> tuple[tuple[Array, Array], Array]:
    """Keys of the states that earlier steps estimated, each for its own row only."""
    steps, batch, seq, dim = made.shape
    flat = made.transpose(1, 0, 2, 3).reshape(batch, steps * seq, dim)
    ahead = jnp.repeat(jnp.arange(1, steps + 1, dtype=jnp.int32), seq)
    positions = jnp.tile(rows, (1, steps)) + ahead[None]
    same = jnp.tile(jnp.eye(seq, dtype=bool), (1, steps))
    there = same & (ahead <= index)[None]
    keys = stream_keys(fusing, flat, positions)
    return keys, jnp.broadcast_to(there[None], (batch, seq, steps * seq))


# ---- heads


def head_hidden(
    config: FusingConfig,
    head: PyTree,
    hidden: Float[Array, "batch seq dim"],
    state: Float[Array, "batch seq dim"],
) -> Float[Array, "batch seq wide"]:
    """What one head reads a token out of.

    Args:
      config: of the draft stack.
      head: the head's own parameters, without the leading axis.
      hidden: `[batch, seq, dim]` the target's state.
      state: `[batch, seq, dim]` the estimated one.

    Returns:
      `[batch, seq, 2 dim]` both, for full heads; `[batch, seq, dim]`, the target's
      state changed by a linear map of both, for light ones.

    Source: arXiv 2402.15758. Light heads are an addition.

    Example:
      >>> from jtok.testing import tiny_model
      >>> config, x = fusing_config(tiny_model()), jnp.ones((1, 2, 32))
      >>> head_hidden(config, {}, x, x).shape
      (1, 2, 64)
    """
    both = jnp.concatenate([hidden, state], axis=-1)
    return both if config.heads == "full" else hidden + _linear(both, head)


def head_weight(
    config: FusingConfig, base: Base, head: PyTree
) -> tuple[Array, Array | None]:
    """The rows that `head_hidden` is compared with, and their bias."""
    if config.heads == "full":
        return head["kernel"], head.get("bias")
    return base.unembed, base.bias


def _own_choice(fusing: Fusing, head: PyTree, narrow: Array) -> Array:
    weight, bias = head_weight(fusing.config, fusing.base, head)
    cap = fusing.config.layer.final_softcap
    narrow, weight = jax.lax.stop_gradient((narrow, weight))
    return readout(narrow, weight, Want(), bias=bias, softcap=cap).choice


def head_logits(
    fusing: Fusing,
    hidden: Float[Array, "batch seq dim"],
    states: Float[Array, "steps batch seq dim"],
) -> Float[Array, "steps batch seq vocab"]:
    """Logits of all heads, whole: for a look at a few tokens, not for training.

    Args:
      fusing: the draft stack.
      hidden: `[batch, seq, dim]` the target's states.
      states: `[steps, batch, seq, dim]` as `fuse` estimates them.

    Returns:
      `[steps, batch, seq, vocab]` float32; index k predicts the token k + 2 ahead.

    Raises:
      ArgumentError: another number of steps than the stack has heads.

    Source: arXiv 2402.15758.

    Example:
      >>> from jtok.testing import tiny_model
      >>> fusing = init_fusing(tiny_model(), jax.random.key(0))
      >>> head_logits(fusing, jnp.ones((1, 3, 32)), jnp.ones((4, 1, 3, 32))).shape
      (4, 1, 3, 96)
    """
    config = fusing.config
    if states.shape[0] != config.steps:
        raise ArgumentError(f"states: got {states.shape[0]}, expected {config.steps}.")
    hidden = hidden.astype(config.layer.dtype)

    def one(item: Any) -> Array:
        head, state = item
        narrow = head_hidden(config, head, hidden, state)
        weight, bias = head_weight(config, fusing.base, head)
        cap = config.layer.final_softcap
        made = readout(narrow, weight, Want(rows=True), bias=bias, softcap=cap)
        return made.rows  # type: ignore[return-value]

    return jax.lax.map(one, (fusing.params["heads"], states))
