"""What state vectors carry: exported, and probed for smoothness, topics and classes.

Source: Walker 2024, arXiv 2410.18160 (smooth state vectors, classification, topics).
Differs: cosines are given raw and centred, as a common direction inflates the raw ones.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import ArgumentError, check
from jtok.ops.sharding import to_host
from jtok.predict.targets import safe_mean

__all__ = [
    "RidgeProbe",
    "adjacent_cosine",
    "logistic_probe",
    "next_bag",
    "ridge_probe",
    "smoothness",
    "state_vectors",
    "token_share",
    "topic_coherence",
]

Encode = Callable[[Array, Array], Array]


def state_vectors(
    encode: Encode,
    rows: Sequence[Any],
    *,
    pool: Literal["last", "mean"] | None = None,
    batch_size: int = 16,
) -> Any:
    """State vectors of texts of any lengths, on the host: for probes and retrieval.

    Args:
      encode: `(ids[batch, seq], mask[batch, seq]) -> [batch, seq, dim]`, such as
        `jax.jit(lambda ids, mask: model.encode(ids, mask=mask))`.
      rows: ids of every text, none empty.
      pool: None gives every vector, "last" that of the last token, "mean" their mean.
      batch_size: texts a call; lengths are rounded up, so that few are compiled.

    Returns:
      A list of `[length, dim]` float32 arrays, or `[rows, dim]` where they are pooled.

    Raises:
      ArgumentError: no text or an empty one, or another `pool`.

    Source: Walker 2024, arXiv 2410.18160.

    Example:
      >>> encode = lambda ids, mask: jnp.stack([ids, 2 * ids], -1).astype(float)
      >>> state_vectors(encode, [[1, 2], [5]], pool="last").tolist()
      [[2.0, 4.0], [5.0, 10.0]]
    """
    check(pool in (None, "last", "mean"), "pool", pool, "None, 'last' or 'mean'")
    check(batch_size >= 1, "batch_size", batch_size, "at least 1")
    lengths = [len(row) for row in rows]
    check(bool(lengths), "rows", [], "at least one text")
    check(min(lengths) > 0, "rows", "an empty text", "at least one token each")
    order = np.argsort(lengths, kind="stable")
    found: list[Any] = [None] * len(rows)
    for begin in range(0, len(rows), batch_size):
        some = order[begin : begin + batch_size]
        width = 1 << int(np.ceil(np.log2(max(lengths[i] for i in some))))
        ids = np.zeros((batch_size, width), np.int32)
        mask = np.zeros((batch_size, width), bool)
        for slot, row in enumerate(some):
            ids[slot, : lengths[row]] = rows[row]
            mask[slot, : lengths[row]] = True
        vectors = to_host(encode(jnp.asarray(ids), jnp.asarray(mask)))
        for slot, row in enumerate(some):
            found[row] = np.asarray(vectors[slot, : lengths[row]], np.float32)
    if pool is None:
        return found
    return np.stack([x[-1] if pool == "last" else x.mean(0) for x in found])


def adjacent_cosine(
    states: Float[Array, "batch seq dim"],
    valid: Bool[Array, "batch seq"] | None = None,
    *,
    centre: Float[Array, " dim"] | None = None,
) -> Float[Array, "batch pairs"]:
    """Cosine between the vectors of neighbouring tokens.

    Args:
      states: `[batch, seq, dim]`.
      valid: `[batch, seq]` True for real tokens, None for all.
      centre: `[dim]` taken from every vector first, or None.

    Returns:
      `[batch, seq - 1]` float32; 0 where one of the two is not real.

    Source: Walker 2024, arXiv 2410.18160 (smooth state vectors).

    Example:
      >>> x = jnp.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
      >>> adjacent_cosine(x).tolist()
      [[1.0, 0.0]]
    """
    x = states.astype(jnp.float32)
    if centre is not None:
        x = x - jnp.broadcast_to(centre.astype(jnp.float32), x.shape)
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    cosine = jnp.sum(x[:, 1:] * x[:, :-1], axis=-1)
    return cosine if valid is None else jnp.where(_pairs(valid), cosine, 0.0)


def _pairs(valid: Array) -> Array:
    return valid[:, 1:] & valid[:, :-1]


def smoothness(
    states: Float[Array, "batch seq dim"], valid: Bool[Array, "batch seq"] | None = None
) -> dict[str, Array]:
    """How little a state vector changes from one token to the next.

    Args:
      states: `[batch, seq, dim]`.
      valid: `[batch, seq]` True for real tokens, None for all.

    Returns:
      Mean cosines of neighbours, float32: "raw", and "centred", after the mean of all
      vectors is taken away. Compare two models by the centred one: vectors that all
      share a direction look smooth whatever they say.

    Source: Walker 2024, arXiv 2410.18160.

    Example:
      >>> states = jnp.array([[[1.0, 9.0], [-1.0, 9.0]]])
      >>> {k: round(float(v), 2) for k, v in smoothness(states).items()}
      {'raw': 0.98, 'centred': -1.0}
    """
    real = jnp.ones(states.shape[:2], bool) if valid is None else valid
    wide = jnp.broadcast_to(real[..., None], states.shape)
    centre = safe_mean(states, wide, axis=(0, 1))
    means = {
        "raw": adjacent_cosine(states, real),
        "centred": adjacent_cosine(states, real, centre=centre),
    }
    return {name: safe_mean(value, _pairs(real)) for name, value in means.items()}


def token_share(
    states: Float[Array, "batch seq dim"],
    ids: Int[Array, "batch seq"],
    *,
    vocab_size: int,
    valid: Bool[Array, "batch seq"] | None = None,
) -> Float[Array, ""]:
    """Share of the variance of the vectors that the identity of their token explains.

    Args:
      states: `[batch, seq, dim]`.
      ids: `[batch, seq]` int32 token of each.
      vocab_size: number of ids (static).
      valid: `[batch, seq]` True for real tokens, None for all.

    Returns:
      float32 in [0, 1].

    Source: Walker 2024, arXiv 2410.18160 (vectors of a topic, not of a token).

    Example:
      >>> states = jnp.array([[[1.0], [3.0], [1.0], [3.0]]])
      >>> ids = jnp.array([[0, 1, 0, 1]])
      >>> round(float(token_share(states, ids, vocab_size=2)), 3)
      1.0
    """
    x = states.reshape(-1, states.shape[-1]).astype(jnp.float32)
    keep = jnp.ones(x.shape[0], bool) if valid is None else valid.reshape(-1)
    weight = keep.astype(jnp.float32)[:, None]
    centre = jnp.sum(x * weight, 0) / jnp.maximum(jnp.sum(weight), 1.0)
    x = (x - jnp.broadcast_to(centre, x.shape)) * weight
    flat = ids.reshape(-1)
    sums = jnp.zeros((vocab_size, x.shape[1])).at[flat].add(x)
    counts = jnp.zeros((vocab_size, 1)).at[flat].add(weight)
    between = jnp.sum(sums * sums / jnp.maximum(counts, 1.0))
    return between / jnp.maximum(jnp.sum(x * x), 1e-12)


def next_bag(
    ids: Int[Array, "batch seq"], *, count: int, vocab_size: int
) -> Float[Array, "batch places vocab"]:
    """How often each id stands among the next tokens, for the ridge probe.

    Args:
      ids: `[batch, seq]` int32.
      count: tokens ahead (static), fewer than `seq`.
      vocab_size: number of ids (static).

    Returns:
      `[batch, seq - count, vocab]` float32 counts, of the positions that have so many.

    Raises:
      ArgumentError: `count` out of range.

    Source: Walker 2024, arXiv 2410.18160 (future tokens as a set).

    Example:
      >>> next_bag(jnp.array([[0, 1, 1]]), count=2, vocab_size=2).tolist()
      [[[0.0, 2.0]]]
    """
    seq = ids.shape[1]
    check(1 <= count < seq, "count", count, f"1 to {seq - 1}")
    hot = jax.nn.one_hot(ids, vocab_size)
    upto = jnp.cumsum(hot, axis=1)
    return upto[:, count:] - upto[:, : seq - count]


class RidgeProbe(NamedTuple):
    """A linear map that was fitted, and how well it does on other data.

    Attributes:
      weight: `[dim, outputs]` float32.
      bias: `[outputs]` float32.
      r2: share of the variance of all outputs that it explains there; may be negative.
    """

    weight: jax.Array
    bias: jax.Array
    r2: jax.Array


def ridge_probe(
    states: Float[Array, "train dim"],
    outputs: Float[Array, "train outputs"],
    test_states: Float[Array, "test dim"],
    test_outputs: Float[Array, "test outputs"],
    *,
    penalty: float = 1.0,
) -> RidgeProbe:
    """A linear map from vectors to numbers, fitted to some and tried on others.

    Vectors are standardised by the mean and spread of the fitted ones.

    Args:
      states: `[train, dim]`.
      outputs: `[train, outputs]`.
      test_states: `[test, dim]`.
      test_outputs: `[test, outputs]`.
      penalty: on squared weights, a row's worth each; > 0.

    Returns:
      `RidgeProbe`.

    Raises:
      ArgumentError: a penalty that is not positive.

    Source: Walker 2024, arXiv 2410.18160 (what the vectors hold).

    Example:
      >>> x = jnp.linspace(-1, 1, 40)[:, None]
      >>> round(float(ridge_probe(x, 3 * x, x, 3 * x, penalty=0.01).r2), 3)
      1.0
    """
    check(penalty > 0, "penalty", penalty, "above 0")
    x, mean, spread = _standardised(states)
    target = outputs.astype(jnp.float32)
    centre = jnp.mean(target, axis=0)
    moved = target - jnp.broadcast_to(centre, target.shape)
    gram = x.T @ x + penalty * jnp.eye(x.shape[1])
    inner = jnp.linalg.solve(gram, x.T @ moved)
    weight = inner / spread[:, None]
    bias = centre - mean @ weight
    wanted = test_outputs.astype(jnp.float32)
    got = test_states.astype(jnp.float32) @ weight
    missed = wanted - got - jnp.broadcast_to(bias, wanted.shape)
    about = wanted - jnp.broadcast_to(jnp.mean(wanted, axis=0), wanted.shape)
    r2 = 1 - jnp.sum(missed**2) / jnp.maximum(jnp.sum(about**2), 1e-12)
    return RidgeProbe(weight, bias, r2)


def _standardised(states: Array) -> tuple[Array, Array, Array]:
    x = states.astype(jnp.float32)
    mean, spread = jnp.mean(x, axis=0), jnp.maximum(jnp.std(x, axis=0), 1e-6)
    return (x - jnp.broadcast_to(mean, x.shape)) / spread[None], mean, spread


def logistic_probe(
    states: Float[Array, "train dim"],
    labels: Int[Array, " train"],
    test_states: Float[Array, "test dim"],
    test_labels: Int[Array, " test"],
    *,
    num_classes: int,
    penalty: float = 1e-3,
    steps: int = 300,
) -> Float[Array, ""]:
    """Accuracy on other data of a logistic regression from vectors to classes.

    All data at once, from zero, so that the result is the same every time.

    Args:
      states: `[train, dim]`; standardised by their own mean and spread.
      labels: `[train]` int32 in 0..num_classes - 1.
      test_states: `[test, dim]`.
      test_labels: `[test]` int32.
      num_classes: at least 2 (static).
      penalty: on squared weights, beside the mean loss; >= 0.
      steps: updates (static).

    Returns:
      float32 share of `test_labels` that are right.

    Raises:
      ArgumentError: a number out of range.

    Source: Walker 2024, arXiv 2410.18160 (text classification from the vectors).

    Example:
      >>> x = jnp.array([[-2.0], [-1.0], [1.0], [2.0]])
      >>> float(logistic_probe(x, jnp.array([0, 0, 1, 1]), x, jnp.array([0, 0, 1, 1]),
      ...     num_classes=2))
      1.0
    """
    check(num_classes >= 2, "num_classes", num_classes, "at least 2")
    check(penalty >= 0, "penalty", penalty, "at least 0")
    check(steps >= 1, "steps", steps, "at least 1")
    return _logistic(
        states, labels, test_states, test_labels, num_classes, penalty, steps
    )


def _logistic(
    states: Array, labels: Array, test_states: Array, test_labels: Array,
    num_classes: int, penalty: float, steps: int,
) -> Array:  # fmt: skip
    x, mean, spread = _standardised(states)
    weight = jnp.zeros((x.shape[1], num_classes))
    weights = {"kernel": weight, "bias": jnp.zeros(num_classes)}
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, steps))

    def scores(weights: Any, x: Array) -> Array:
        y = x @ weights["kernel"]
        return y + jnp.broadcast_to(weights["bias"], y.shape)

    def loss(weights: Any) -> Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            scores(weights, x), labels
        )
        return jnp.mean(losses) + penalty * jnp.sum(weights["kernel"] ** 2)

    def update(carry: Any, _: None) -> tuple[Any, None]:
        weights, state = carry
        change, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return (optax.apply_updates(weights, change), state), None

    carry = (weights, optimizer.init(weights))
    (weights, _), _ = jax.lax.scan(update, carry, None, length=steps)
    tested = test_states.astype(jnp.float32)
    tested = (tested - jnp.broadcast_to(mean, tested.shape)) / spread[None]
    right = jnp.argmax(scores(weights, tested), axis=-1) == test_labels
    return jnp.mean(right.astype(jnp.float32))


def topic_coherence(
    prompts: Float[Array, "rows dim"], windows: Float[Array, "rows windows dim"]
) -> Float[Array, " windows"]:
    """How near a continuation stays to its prompt, by distance.

    Args:
      prompts: `[rows, dim]` embedding of each prompt, of any model or count of words.
      windows: `[rows, windows, dim]` of the pieces of its continuation, in order.

    Returns:
      `[windows]` float32 mean cosine.

    Raises:
      ArgumentError: another number of rows or dimensions.

    Source: Walker 2024, arXiv 2410.18160 (topic coherence of generated text).

    Example:
      >>> prompts = jnp.array([[1.0, 0.0]])
      >>> windows = jnp.array([[[2.0, 0.0], [0.0, 3.0]]])
      >>> topic_coherence(prompts, windows).tolist()
      [1.0, 0.0]
    """
    expected = "[rows, windows, dim] as the prompts' [rows, dim]"
    good = (windows.shape[0], windows.shape[-1]) == prompts.shape
    if not good:
        raise ArgumentError(
            f"windows: got shape {windows.shape}, expected {expected} {prompts.shape}."
        )

    def unit(x: Array) -> Array:
        x = x.astype(jnp.float32)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    return jnp.mean(jnp.einsum("rd,rwd->rw", unit(prompts), unit(windows)), axis=0)
