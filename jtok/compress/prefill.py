"""Prompts whose tokens leave inside the language model, a few after each layer.

Compact mode gathers what is left, so that later layers are cheaper and hold shorter
caches. Mask mode computes all tokens in all layers and hides what has left: it is
slower than no pruning at all, and there to compare with.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok import nn
from jtok.compress.depth import LayerSchedule
from jtok.compress.importance import AimScore, Score, ScoreView
from jtok.compress.pruned_cache import PrunedCache, Slots, pruned_target
from jtok.compress.selection import kept_in_order, top_tokens
from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.models import (
    Model,
    Target,
    embed_inputs,
    final_norm,
    run_layer,
    split_layers,
)
from jtok.models.model import logits_of

__all__ = ["Pruned", "prefill", "spans_mask"]

PyTree = Any
_MODES = ("compact", "mask")


def spans_mask(seq: int, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """A row of `prunable`: the tokens inside of spans, such as images.

    Args:
      seq: tokens of the prompt.
      spans: `(begin, end)` of each, end excluded, in order.

    Returns:
      `[seq]` bool.

    Raises:
      ArgumentError: spans that do not rise, overlap, or end beyond the prompt.

    Example:
      >>> spans_mask(6, [(1, 3), (4, 5)]).tolist()
      [False, True, True, False, True, False]
    """
    mask, before = np.zeros(seq, bool), 0
    for begin, end in spans:
        good = before <= begin <= end <= seq
        check(good, "spans", list(spans), f"rising boundaries within 0 to {seq}")
        mask[begin:end], before = True, end
    return mask


@struct.dataclass
class Pruned:
    """A prompt after the last layer, and what is needed to go on from it.

    Attributes:
      logits: `[batch, vocab]` float32 of each prompt's last token.
      hidden: `[batch, rows, dim]` after the final norm: the tokens that the last layer
        held in compact mode, all of them in mask mode, padding last.
      index: `[batch, rows]` int32 which token of the prompt each row is, -1 for none.
      kept: `[layers + 1, batch, seq]` bool which tokens of the prompt each layer saw,
        and which were left after the last one.
      scores: layer -> `[batch, seq]` float32, where tokens were ranked; 0 for tokens
        that had left (in compact mode).
      cache: what `target` goes on from.
      ids: `[batch, seq]` int32 ids of the prompt, or None where vectors were given.
      mask: `[batch, seq]` bool, the real tokens.
      target: for `jtok.decode.generate`, with the model's split `params`.
    """

    logits: jax.Array
    hidden: jax.Array
    index: jax.Array
    kept: jax.Array
    scores: dict[int, jax.Array]
    cache: PrunedCache
    ids: jax.Array | None
    mask: jax.Array
    target: Target = struct.field(pytree_node=False)

    def prompts(self) -> list[np.ndarray]:
        """The prompts for `jtok.decode.generate`, without padding.

        Ids beyond the vocabulary, which stand for vectors, become 0: the cache holds
        what they were.

        Returns:
          `[tokens]` int32 of each row.

        Raises:
          ArgumentError: vectors were given without `ids`.
        """
        if self.ids is None:
            raise ArgumentError(
                "ids: got None, expected ids beside the vectors: decoding feeds the "
                "last token of each prompt again."
            )
        ids, mask = np.asarray(self.ids), np.asarray(self.mask)
        ids = np.where(ids < self.target.info.vocab_size, ids, 0)
        return [row[real] for row, real in zip(ids, mask, strict=True)]

    def session(self) -> dict[str, Any]:
        """The fields of a `jtok.decode.Session` that holds these prompts.

        Returns:
          `cache`, `ids`, `count` and `held`.

        Raises:
          ArgumentError: as for `prompts`.

        Example:
          >>> from jtok.decode import Session, generate
          >>> from jtok.testing import tiny_model
          >>> lm, seen = tiny_model(), jnp.array([[False, True, True, False]])
          >>> out = prefill(lm, jnp.array([[5, 7, 8, 9]]), prunable=seen,
          ...     schedule=LayerSchedule((0.5, 0.0)))
          >>> more = generate(out.target, out.prompts(), params=lm.params,
          ...     cache=Session(**out.session()), max_new_tokens=3)
          >>> more.tokens[0].shape
          (3,)
        """
        rows = self.prompts()
        ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
        for row, prompt in zip(ids, rows, strict=True):
            row[: len(prompt)] = prompt
        count = jnp.asarray([len(row) for row in rows], jnp.int32)
        return {
            "cache": self.cache, "ids": jnp.asarray(ids), "count": count, "held": count,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _How:
    """Static choices of a prefill."""

    config: nn.DecoderConfig
    schedule: LayerSchedule
    score: Score
    compact: bool
    renumber: bool
    official: bool
    prunable: int
    protected: int
    drops: tuple[int, ...]


@struct.dataclass
class _Rows:
    """What is computed in a layer: rows of the prompt, in its order."""

    x: jax.Array
    positions: jax.Array
    valid: jax.Array
    prunable: jax.Array
    index: jax.Array

    def take(self, mask: Array, count: int) -> "_Rows":
        """The rows of a mask, packed; others behind them are empty."""
        at = kept_in_order(mask, count)
        there, at = at >= 0, jnp.maximum(at, 0)

        def pick(values: Array) -> Array:
            wide = at[..., None] if values.ndim == 3 else at
            return jnp.take_along_axis(values, wide, axis=1)

        return _Rows(
            x=jnp.where(there[..., None], pick(self.x), 0),
            positions=jnp.where(there, pick(self.positions), 0),
            valid=there,
            prunable=there & pick(self.prunable),
            index=jnp.where(there, pick(self.index), -1),
        )


def prefill(
    model: Model,
    inputs: Int[Array, "batch seq"] | Float[Array, "batch seq dim"],
    *,
    prunable: Bool[Array, "batch seq"] | Bool[np.ndarray, "batch seq"],
    schedule: LayerSchedule,
    score: Score | None = None,
    mode: Literal["compact", "mask"] = "compact",
    mask: Bool[Array, "batch seq"] | Bool[np.ndarray, "batch seq"] | None = None,
    positions: Int[Array, "batch seq"] | None = None,
    renumber: bool = False,
    kept: Bool[Array, "steps batch seq"] | None = None,
    ids: Int[Array, "batch seq"] | None = None,
    counts: tuple[int, int] | None = None,
    compat: Literal["official"] | None = None,
) -> Pruned:
    """Runs a prompt while tokens leave between layers; `generate` goes on from it.

    After each layer where the schedule's count falls, the tokens that may leave are
    ranked by the score and the best ones stay, of each row its own number. Ties go to
    the lower index. All other tokens stay in all layers. Both modes keep the same
    tokens, and what is left has the same vectors; only compact mode saves anything.
    Compiled once for a model, a schedule and a shape.

    Args:
      model: a causal transformer decoder.
      inputs: `[batch, seq]` ids (those beyond the vocabulary name extra rows, see
        `jtok.models.with_vectors`) or `[batch, seq, dim]` vectors.
      prunable: `[batch, seq]` bool tokens that may leave, in any number of spans; none
        at all is fine. The last token of a prompt may not.
      schedule: of as many layers as the model has.
      score: `ScoreView -> [batch, seq]`, hashable; None is `AimScore()`. It sees the
        attention without window or soft cap.
      mode: "compact" or "mask".
      mask: `[batch, seq]` bool real tokens; padding may stand anywhere. None: all are.
      positions: `[batch, seq]` int32; None counts the real tokens from 0. A token of
        the continuation follows the last one.
      renumber: count positions anew after each loss, in place of leaving every token
        where it stood (AIM, FastV).
      kept: `[layers + 1, batch, seq]` bool, as in `Pruned`: keep these, whatever the
        score. No row may keep more than the schedule says.
      ids: `[batch, seq]` int32 ids that vectors stand for (any id for images), for
        what is decoded later.
      counts: most prunable and most other tokens of a row (static); None counts them,
        which cannot be done under `jit`.
      compat: "official" computes and ranks as AIM's code does: in all layers, with the
        first row's count of protected tokens for all rows, and walks that start at
        tokens that have left, too. Mask mode only. Padding is left out as ever; the
        code counts it.

    Returns:
      `Pruned`.

    Raises:
      ArgumentError: shapes that do not fit, a schedule for another number of layers,
        a row without a token, a last token that may leave, another mode, `counts`
        that are missing under `jit`, or "official" in compact mode.
      ArgumentTypeError: the model is no causal transformer decoder.

    Source: Zhong et al. 2024, arXiv 2412.03248, section 3.2. Differs: shorter rows and
      caches; counts of each row; padding; any spans; any score.

    Example:
      >>> from jtok.testing import tiny_model
      >>> seen = jnp.array([[False, True, True, False]])
      >>> out = prefill(tiny_model(), jnp.array([[5, 7, 8, 9]]), prunable=seen,
      ...     schedule=LayerSchedule((0.5, 0.0)))
      >>> [key.shape[2] for key, _ in out.cache.layers], out.logits.shape
      ([4, 3], (1, 96))
    """
    config = model.config
    if not isinstance(config, nn.DecoderConfig) or not config.causal:
        raise ArgumentTypeError(
            f"model: got a {type(config).__name__}, expected a causal DecoderConfig."
        )
    check(mode in _MODES, "mode", mode, f"one of {_MODES}")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    good = compat is None or mode == "mask"
    check(good, "compat", compat, "None in compact mode, which AIM's code lacks")
    layers = config.num_layers
    good = schedule.num_layers == layers
    check(good, "schedule", f"{schedule.num_layers} layers", f"{layers}, the model's")
    inputs = jnp.asarray(inputs)
    shape = inputs.shape[:2]
    real = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask)
    may = jnp.asarray(prunable)
    named = {"prunable": may, "mask": real, "positions": positions, "ids": ids}
    for name, array in named.items():
        if array is not None:
            check(array.shape == shape, name, f"shape {array.shape}", f"{shape}")
    if kept is not None:
        expected = (layers + 1, *shape)
        check(kept.shape == expected, "kept", f"shape {kept.shape}", f"{expected}")
    prunable_most, protected_most, least = _counts(real, may & real, counts)
    how = _How(
        config, schedule, score or AimScore(), mode == "compact", renumber,
        compat == "official", prunable_most, protected_most,
        schedule.drops(prunable_most),
    )  # fmt: skip
    if positions is None:
        positions = jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0)
    params = split_layers(model.params)
    found = _run(params, inputs, positions, real, may & real, kept, how)
    rows = tuple(key.shape[2] for key, _ in found["cache"].layers)
    target = pruned_target(config, Slots(rows, least, mode == "mask"))
    if ids is None and inputs.ndim == 2:
        ids = inputs
    return Pruned(ids=ids, mask=real, target=target, **found)


def _counts(
    real: Array, may: Array, counts: tuple[int, int] | None
) -> tuple[int, int, int]:
    """Most prunable and most other tokens of a row, and tokens of the shortest row."""
    traced = isinstance(real, jax.core.Tracer) or isinstance(may, jax.core.Tracer)
    if traced:
        check(counts is not None, "counts", None, "two numbers under jit")
        given: Any = counts
        return *given, 1
    there: Any = np.asarray(real)
    free: Any = np.asarray(may)
    check(there.any(1).all(), "mask", "a row without a token", "at least one in each")
    last = there.shape[1] - 1 - np.argmax(there[:, ::-1], axis=1)
    good = not np.take_along_axis(free, last[:, None], 1).any()
    check(good, "prunable", "the last token of a prompt", "tokens before the last")
    prunable, others = free.sum(1), (there & ~free).sum(1)
    found = int(prunable.max()), int(others.max())
    if counts is not None:
        fits = found[0] <= counts[0] and found[1] <= counts[1]
        check(fits, "counts", counts, f"at least {found}")
        found = counts
    return *found, int(there.sum(1).min())


@functools.partial(jax.jit, static_argnames="how")
def _run(
    params: PyTree, inputs: Array, positions: Array, real: Array, may: Array,
    kept: Array | None, how: _How,
) -> dict[str, Any]:  # fmt: skip
    config, shape = how.config, inputs.shape[:2]
    x, gates = embed_inputs(params, config, inputs, positions)
    index = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    rows = _Rows(x, positions, real, may, index)
    counts = how.schedule.token_counts(how.prunable, how.protected)
    # Padding behind all else, in both modes: a cache grows where its tokens end.
    most = min(counts[0], shape[1]) if how.compact else shape[1]
    rows = rows.take(rows.valid, most)
    table = jnp.asarray(how.schedule.table(how.prunable))
    ends = jnp.sum(may, axis=1, dtype=jnp.int32)
    seen, pairs, slots, scores = [real], [], [], {}
    for layer in range(config.num_layers):
        among = jnp.take_along_axis(seen[-1], jnp.maximum(rows.index, 0), axis=1)
        among = among & rows.valid
        at = _numbered(rows.positions, among) if how.renumber else rows.positions
        some = None
        if gates is not None:
            some = jnp.take_along_axis(gates, jnp.maximum(rows.index, 0), axis=1)
        out = run_layer(params, config, layer, rows.x, at, mask=among, gates=some)
        rows = dataclasses.replace(rows, x=out.x)
        pairs.append((out.key, out.value))
        slots.append((among, at))
        after, found = seen[-1], None
        if kept is None or how.official:
            left = table[layer][ends]
            after, found = _after(how, layer, rows, out, among, seen, left)
        if kept is not None:
            after = seen[-1] & (kept[layer + 1] | ~may)
        seen.append(after)
        if found is not None:
            scores[layer] = found
        fewer = layer + 1 < config.num_layers and counts[layer + 1] < counts[layer]
        if how.compact and fewer:
            here = jnp.take_along_axis(seen[-1], jnp.maximum(rows.index, 0), axis=1)
            rows = rows.take(here & rows.valid, min(counts[layer + 1], shape[1]))
    return _finish(params, how, rows, seen, pairs, slots, scores, real, may)


def _after(
    how: _How, layer: int, rows: _Rows, out: Any, among: Array, seen: list[Array],
    left: Array,
) -> tuple[Array, Array | None]:  # fmt: skip
    """Which tokens of the prompt are left after a layer, and their scores."""
    if layer not in how.drops and not how.official:
        return seen[-1], None
    free = among & rows.prunable
    score = None
    if how.official or how.schedule.kept(how.prunable)[layer] > 0:
        score = how.score(_view(how, layer, rows, out, among, seen[0]))
    if how.official:
        stays = _official(rows, score, among, how.schedule, layer)
    else:
        # Where nothing stays nothing is ranked.
        ranked = jnp.zeros(free.shape) if score is None else score
        stays = (among & ~rows.prunable) | top_tokens(ranked, left, free)
    return _placed(stays, rows.index, seen[-1].shape[1]), (
        None if score is None else _placed(score, rows.index, seen[-1].shape[1])
    )


def _official(
    rows: _Rows, score: Any, among: Array, schedule: LayerSchedule, layer: int
) -> Array:
    """AIM's own choice: everything that is no image counts as kept, once."""
    ranked = jnp.where(among, score, -1.0)
    ranked = jnp.where(rows.prunable, ranked, 1.0)
    first = jnp.sum(rows.prunable[0])
    seq = rows.prunable.shape[1]
    rate = jnp.asarray(schedule.table(seq))[layer]
    count = jnp.broadcast_to(rate[first] + seq - first, among.shape[:1])
    return among & top_tokens(ranked, count, jnp.ones_like(among))


def _view(
    how: _How, layer: int, rows: _Rows, out: Any, among: Array, real: Array
) -> ScoreView:
    seq = among.shape[1]
    last = seq - 1 - jnp.argmax(among[:, ::-1], axis=1).astype(jnp.int32)
    start = None
    if how.official:
        share = 1.0 / jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
        start = jnp.where(real, share, 0.0).astype(jnp.float32)
    return ScoreView(
        rows.x, out.query, out.key, among, rows.prunable & among, rows.index, last,
        start, layer=layer, scale=how.config.score_scale,
    )  # fmt: skip


def _placed(values: Array, index: Array, seq: int) -> Array:
    """Values of rows at the places of the prompt; 0 or False elsewhere."""
    at = jnp.where(index >= 0, index, seq)
    empty = jnp.zeros((values.shape[0], seq + 1), values.dtype)
    put = lambda row, at, values: row.at[at].set(values)
    return jax.vmap(put)(empty, at, values)[:, :seq]


def _numbered(positions: Array, among: Array) -> Array:
    """Positions counted anew from the first one of each row."""
    first = jnp.min(jnp.where(among, positions, 2**30), axis=1, keepdims=True)
    count = jnp.cumsum(among, axis=1, dtype=jnp.int32) - 1
    return first + jnp.maximum(count, 0)


def _finish(
    params: PyTree, how: _How, rows: _Rows, seen: list[Array], pairs: list[Any],
    slots: list[Any], scores: dict[int, Array], real: Array, may: Array,
) -> dict[str, Any]:  # fmt: skip
    config = how.config
    hidden = final_norm(params, config, rows.x)
    seq = rows.valid.shape[1]
    last = seq - 1 - jnp.argmax(rows.valid[:, ::-1], axis=1)
    logits: Any = logits_of(
        params, hidden, last[:, None], softcap=config.final_softcap
    )  # fmt: skip
    length = jnp.sum(real, axis=1, dtype=jnp.int32)
    ends = [jnp.max(jnp.where(among, at, -1), axis=1) for among, at in slots]
    used = [
        jnp.sum(among, axis=1, dtype=jnp.int32) if how.compact else length
        for among, _ in slots
    ]
    # Tokens of the text up to the last one that may leave.
    number = jnp.cumsum(real, axis=1, dtype=jnp.int32)
    floor = jnp.max(jnp.where(may, number, 0), axis=1)
    cache = PrunedCache(
        layers=tuple(pairs),
        seen=tuple(among for among, _ in slots),
        places=tuple(at for _, at in slots),
        lengths=jnp.stack(used),
        offsets=jnp.stack(ends) + 1 - length[None],
        length=length,
        floor=floor,
    )
    return {
        "logits": logits[:, 0], "hidden": hidden, "index": rows.index,
        "kept": jnp.stack(seen), "scores": scores, "cache": cache,
    }  # fmt: skip
