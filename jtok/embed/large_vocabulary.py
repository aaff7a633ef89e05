"""Generation over very many rows: few candidates are found, and one is drawn of them.

Source: Feher et al. 2024, arXiv 2411.18553v1, section 3.3. Differs: scores are the
logits themselves, the search is exact unless another is given, and what came before is
cached.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jtok.errors import ArgumentTypeError, check
from jtok.models import Model, Target
from jtok.ops import readout, sampling
from jtok.ops.readouts import Draw, Readout, Want, score_gap
from jtok.ops.row_search import RowClusters, approximate_top, probe_top

__all__ = [
    "Search",
    "approximate_search",
    "candidate_target",
    "cluster_search",
    "exact_search",
    "with_vocabulary",
]

PyTree = Any
Hidden = Float[Array, "batch nodes dim"]
Found = tuple[Float[Array, "batch nodes k"], Int[Array, "batch nodes k"]]
# (hidden, rows, bias or None, number of candidates) -> (scores, ids), best first
Search = Callable[[Hidden, Array, Any, int], Found]


def with_vocabulary(
    model: Model,
    given: Float[Array, "rows dim"],
    output: Float[Array, "rows dim"] | None = None,
    *,
    bias: Float[Array, " rows"] | None = None,
    vocabulary: Any = None,
    dtype: Any = jnp.bfloat16,
) -> Model:
    """The model with other rows, as many as there are.

    Args:
      model: a transformer decoder.
      given: `[rows, dim]` input rows.
      output: `[rows, dim]` output rows; None reads out with the input rows.
      bias: `[rows]` of the logits, or None.
      vocabulary: what the ids mean.
      dtype: of the rows; scores are float32 in any case.

    Returns:
      `Model`.

    Raises:
      ArgumentError: rows of another shape.

    Source: arXiv 2411.18553v1, section 3.3.

    Example:
      >>> from jtok.testing import tiny_model
      >>> with_vocabulary(tiny_model(), jnp.ones((500, 32))).config.vocab_size
      500
    """
    width = model.config.width
    good = given.ndim == 2 and given.shape[1] == width
    check(good, "given", f"shape {given.shape}", f"[rows, {width}]")
    params = {**model.params, "embed": {**model.params["embed"]}}
    params["embed"]["tokens"] = given.astype(dtype)
    params.pop("unembed", None)
    tied = output is None and bias is None
    if not tied:
        rows = given if output is None else output
        good = rows.shape == given.shape
        check(
            good, "output", f"shape {rows.shape}", f"{given.shape}, as the input rows"
        )
        params["unembed"] = {"kernel": rows.astype(dtype)}
    if bias is not None:
        good = bias.shape == given.shape[:1]
        check(good, "bias", f"shape {bias.shape}", f"{given.shape[:1]}")
        params["unembed"]["bias"] = bias.astype(jnp.float32)
    config = dataclasses.replace(model.config, vocab_size=given.shape[0], tied=tied)
    return dataclasses.replace(
        model, params=params, config=config, vocabulary=vocabulary
    )


def exact_search(
    hidden: Hidden, rows: Array, bias: Array | None, k: int
) -> tuple[Array, Array]:
    """All rows, block by block with a running list; on a mesh each device its part.

    Args:
      hidden: `[batch, nodes, dim]`.
      rows: `[rows, dim]`.
      bias: `[rows]` or None.
      k: how many.

    Returns:
      Float32 scores, best first, and int32 ids; ties to the lower id.

    Source: none.

    Example:
      >>> exact_search(jnp.eye(3)[None], jnp.eye(3), None, 1)[1][0, :, 0].tolist()
      [0, 1, 2]
    """
    found: Any = readout(hidden, rows, Want(top_k=k), bias=bias)
    return found.top_logits, found.top_ids


def approximate_search(recall: float = 0.95, *, block: int = 65536) -> Search:
    """The backend's approximate top-k in every block of rows.

    Args:
      recall: that is expected of a block.
      block: rows at a time.

    Returns:
      A search, see `jtok.ops.row_search.approximate_top`.

    Raises:
      ArgumentError: `recall` or `block` out of range.

    Source: none.

    Example:
      >>> search = approximate_search(0.9)
      >>> search(jnp.eye(3)[None], jnp.eye(3), None, 1)[1][0, :, 0].tolist()
      [0, 1, 2]
    """
    check(0 < recall <= 1, "recall", recall, "a share in (0, 1]")
    check(block >= 1, "block", block, "at least 1")

    def search(
        hidden: Hidden, rows: Array, bias: Array | None, k: int
    ) -> tuple[Array, Array]:
        return approximate_top(hidden, rows, k, bias=bias, recall=recall, block=block)

    return search


def cluster_search(clusters: RowClusters, probes: int) -> Search:
    """The leaves that point most like the hidden state.

    Args:
      clusters: of the output rows, see `jtok.ops.row_search.cluster_rows`.
      probes: leaves to read.

    Returns:
      A search, see `jtok.ops.row_search.probe_top`.

    Raises:
      ArgumentError: `probes` out of range.

    Source: arXiv 2411.18553v1, section 3.3.

    Example:
      >>> from jtok.ops.row_search import cluster_rows
      >>> search = cluster_search(cluster_rows(jnp.eye(3), 2, jax.random.key(0)), 2)
      >>> search(jnp.eye(3)[None], jnp.eye(3), None, 1)[1][0, :, 0].tolist()
      [0, 1, 2]
    """
    leaves = clusters.members.shape[0]
    check(1 <= probes <= leaves, "probes", probes, f"1 to {leaves} leaves")

    def search(
        hidden: Hidden, rows: Array, bias: Array | None, k: int
    ) -> tuple[Array, Array]:
        return probe_top(hidden, rows, clusters, k, probes=probes, bias=bias)

    return search


def candidate_target(
    model: Model,
    *,
    search: Search = exact_search,
    candidates: int = 20,
    bias_ids: Sequence[int] = (),
    bias: float | int = 0.0,
    repetition_penalty: float | int = 1.0,
    compat: Literal["official"] | None = None,
) -> Target:
    """The model as a target that draws among a few candidates of its vocabulary.

    Give it to `jtok.decode.generate` with `params=model.params`, and with
    `top_k=10, min_p=0.1, temperature=1.0` for the rule of the paper; penalties that
    `generate` is given fall on tokens that were seen. Logits of other tokens are -inf,
    and a log-sum-exp is one over the candidates.

    Args:
      model: a transformer decoder, see `with_vocabulary`.
      search: finds the candidates.
      candidates: how many.
      bias_ids: ids that get `bias`, such as the end of text.
      bias: added to their logits.
      repetition_penalty: with `compat`, divides positive logits and multiplies others.
      compat: "official" lays the penalty on every candidate, seen or not, which does
        little more than a temperature.

    Returns:
      `Target` of `model.params`.

    Raises:
      ArgumentError: fewer candidates than 1 or more than rows, an id out of range, or
        a penalty that is not above 0, or one without `compat`.
      ArgumentTypeError: no model.

    Source: arXiv 2411.18553v1, section 3.3. Differs: see `compat`.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model()
      >>> target = candidate_target(model, candidates=5)
      >>> out = generate(target, [1, 2], params=model.params, max_new_tokens=2)
      >>> len(out.tokens)
      2
    """
    if not isinstance(model, Model):
        raise ArgumentTypeError(f"model: got {type(model).__name__}, expected a Model.")
    size = model.config.vocab_size
    check(1 <= candidates <= size, "candidates", candidates, f"1 to {size} rows")
    good = all(0 <= id_ < size for id_ in bias_ids)
    check(good, "bias_ids", tuple(bias_ids), f"ids in 0..{size - 1}")
    check(repetition_penalty > 0, "repetition_penalty", repetition_penalty, "above 0")
    if compat is None:
        given = repetition_penalty == 1.0
        check(given, "repetition_penalty", repetition_penalty,
              "1.0; generate's own falls on seen tokens")  # fmt: skip
    base = model.target()
    shell = dataclasses.replace(model, params=None)
    cap = model.config.final_softcap

    def read_out(params: PyTree, hidden: jax.Array, want: Want) -> Readout:
        rows, bias_rows = dataclasses.replace(shell, params=params).unembedding()
        most = max(candidates, want.top_k)
        logits, ids = search(hidden, rows, bias_rows, most)
        if cap is not None:
            logits = cap * jnp.tanh(logits / cap)
        chosen = jnp.isin(ids, jnp.asarray(bias_ids, jnp.int32))
        logits = logits + jnp.where(chosen, bias, 0.0)
        harder = jnp.where(
            logits > 0, logits / repetition_penalty, logits * repetition_penalty
        )
        return _read(
            jnp.where(repetition_penalty != 1.0, harder, logits), ids, want, size
        )

    return base._replace(readout=read_out)


def _read(logits: Array, ids: Array, want: Want, vocab: int) -> Readout:
    """The answer from candidates `[batch, nodes, k]` in any order."""
    ranked, ids = jax.lax.sort((-logits, ids), dimension=-1, num_keys=2)
    logits, scores = -ranked, -ranked
    if want.draw is not None:
        scores = _drawn(want.draw, logits, ids)
    best = jnp.max(scores, axis=-1, keepdims=True)
    last = jnp.iinfo(jnp.int32).max
    choice = jnp.min(jnp.where(scores == best, ids, last), axis=-1)
    gap = None
    if want.gap:
        places = jnp.argmax(ids == choice[..., None], axis=-1)
        gap = score_gap(scores, places)
    dense = None
    if want.rows:
        low = jnp.full((*ids.shape[:2], vocab), -jnp.inf, jnp.float32)
        put = lambda row, at, value: row.at[at].set(value, mode="drop")
        dense = jax.vmap(jax.vmap(put))(low, ids, logits)
    top = want.top_k
    return Readout(
        choice=choice.astype(jnp.int32),
        gap=gap,
        top_ids=ids[..., :top] if top else None,
        top_logits=logits[..., :top] if top else None,
        log_sum_exp=jax.nn.logsumexp(logits, axis=-1) if want.log_sum_exp else None,
        rows=dense,
    )


def _drawn(draw: Draw, logits: Array, ids: Array) -> Array:
    """Filtered scores with noise that depends on ids and positions alone."""
    kept = sampling.filter_logits(
        draw.scaled(logits),
        top_k=draw.top_k,
        top_p=None if draw.top_p is None else draw.top_p[:, None],
        min_p=None if draw.min_p is None else draw.min_p[:, None],
    )
    noise = sampling.gumbel_at(draw.keys, draw.start[:, None] + draw.depth, ids)
    return draw.noised(kept, noise)
