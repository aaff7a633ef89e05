"""Learnt queries read all tokens: Perceiver, Q-Former, Q-Former over windows.

Rows stand for no token (`keep` is -1). The plan gives every token to the query that
looked at it most in the last layer, for pictures and sizes; a row stands where its
query looked, the mean of positions by attention.

Source: Shao et al. 2025, arXiv 2507.20198, the query-based family.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.compress.cells import Grid, axes_of
from jtok.compress.declared import declared
from jtok.compress.interface import Compressed, check_tokens
from jtok.errors import check
from jtok.nn.perceiver import PerceiverConfig, PerceiverResampler
from jtok.nn.qformer import QFormer, QFormerConfig
from jtok.ops.plan import cell_plan

__all__ = ["perceiver", "qformer", "windowed_qformer"]


@declared(
    "query", ("image", "video"), "Trained latents read all tokens, layer by layer.",
    "arXiv 2204.14198, section 3.1.1", fixed=True,
)  # fmt: skip
def perceiver(
    x: Float[Array, "batch seq dim"],
    *,
    params: Any,
    config: PerceiverConfig,
    budget: int | None = None,
    grid: Grid | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """A Perceiver resampler reads an image or a video (Flamingo).

    Args:
      x: `[batch, seq, dim]`.
      params: of `jtok.nn.PerceiverResampler`.
      config: its sizes.
      budget: None, or as many as there are latents.
      grid: `(frames, height, width)` whose product is `seq`: the frames have vectors
        of their own where the configuration has them. None for one frame.
      valid: `[batch, seq]` bool; None lets all be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed`; `score` is the mean attention of the latents.

    Raises:
      ArgumentError: another budget or width, too many frames, or shapes that do not
        fit.

    Source: Alayrac et al. 2022, arXiv 2204.14198, section 3.1.1.

    Example:
      >>> config = jtok.nn.PerceiverConfig(
      ...     width=4, layers=1, heads=1, head_dim=4, latents=2)
      >>> x, init = jnp.ones((1, 9, 4)), jtok.nn.PerceiverResampler(config).init
      >>> run = lambda key: perceiver(
      ...     x, params=init(key, x[:, None, None])["params"], config=config)
      >>> jax.eval_shape(run, jax.random.key(0)).tokens.shape
      (1, 2, 4)
    """
    real = check_tokens(x, budget, valid, grid=grid)
    _check_rows(budget, config.latents)
    frames = 1 if grid is None else axes_of(grid, x.shape[1])[0]
    cut = lambda y: y.reshape(len(y), 1, frames, -1, *y.shape[2:])
    module = PerceiverResampler(config)
    out: Any = module.apply({"params": params}, cut(x), cut(real))
    looked = out[1].reshape(x.shape[0], config.latents, x.shape[1])
    return _looked(out[0][:, 0], looked, real, position)


@declared(
    "query", ("image", "video"),
    "Trained queries of a BERT-like transformer read the image.",
    "arXiv 2301.12597, section 3", fixed=True,
)  # fmt: skip
def qformer(
    x: Float[Array, "batch seq dim"],
    *,
    params: Any,
    config: QFormerConfig,
    budget: int | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
) -> Compressed:
    """A Q-Former reads an image (BLIP-2).

    Args:
      x: `[batch, seq, dim]`.
      params: `{"qformer": ...}` of `jtok.nn.QFormer`; with a `projection` (`kernel`
        `[width, features]`, `bias` `[features]`) rows go through it, as into a
        language model.
      config: its sizes.
      budget: None, or as many as there are queries.
      valid: `[batch, seq]` bool; None lets all be real.
      position: `[batch, seq, axes]`; None counts from 0.

    Returns:
      `Compressed`; `score` is the mean attention of the queries.

    Raises:
      ArgumentError: another budget or width, or shapes that do not fit.

    Source: Li et al. 2023, arXiv 2301.12597, section 3.

    Example:
      >>> config = jtok.nn.QFormerConfig(
      ...     queries=2, width=4, layers=1, heads=1, mlp_width=8, image_width=3)
      >>> x = jnp.ones((1, 9, 3))
      >>> run = lambda key: qformer(
      ...     x, params=jtok.nn.init_qformer(key, config), config=config)
      >>> jax.eval_shape(run, jax.random.key(0)).tokens.shape
      (1, 2, 4)
    """
    real = check_tokens(x, budget, valid)
    _check_rows(budget, config.queries)
    tokens, seen = _queried(x, real, params, config)
    return _looked(tokens, seen, real, position)


@declared(
    "query", ("audio",), "A Q-Former reads sound window by window.",
    "arXiv 2310.13289, section 3.1", fixed=True,
)  # fmt: skip
def windowed_qformer(
    x: Float[Array, "batch seq dim"],
    *,
    params: Any,
    config: QFormerConfig,
    window: int = 17,
    budget: int | None = None,
    valid: Bool[Array, "batch seq"] | None = None,
    position: Float[Array, "batch seq axes"] | None = None,
    compat: str | None = None,
) -> Compressed:
    """A Q-Former reads sound window by window (SALMONN), so rows keep its order.

    Args:
      x: `[batch, seq, dim]` frames.
      params: as `qformer`.
      config: its sizes; SALMONN has one query.
      window: frames of a window: 17 of 20 ms are a third of a second.
      budget: None, or windows times queries.
      valid: `[batch, seq]` bool; rows of a window without a real frame are empty. None
        lets all be real.
      position: `[batch, seq, axes]`; None counts from 0.
      compat: "official" drops the frames behind the last whole window, which otherwise
        are a shorter window.

    Returns:
      `Compressed` with the rows of the first window first.

    Raises:
      ArgumentError: another budget or width, a window outside of 1 to `seq`, or shapes
        that do not fit.

    Source: SALMONN, arXiv 2310.13289, section 3.1.

    Example:
      >>> config = jtok.nn.QFormerConfig(
      ...     queries=1, width=4, layers=1, heads=1, mlp_width=8, image_width=3)
      >>> x = jnp.ones((1, 9, 3))
      >>> run = lambda key: windowed_qformer(
      ...     x, params=jtok.nn.init_qformer(key, config), config=config, window=4)
      >>> jax.eval_shape(run, jax.random.key(0)).tokens.shape
      (1, 3, 4)
    """
    real = check_tokens(x, budget, valid)
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    batch, seq, _ = x.shape
    good = isinstance(window, int) and 1 <= window <= seq
    check(good, "window", window, f"1 to {seq}, the frames")
    windows = seq // window if compat else -(-seq // window)
    _check_rows(budget, windows * config.queries)

    def cut(y: Array) -> Array:
        y = y[:, : windows * window]
        pad = [(0, 0), (0, windows * window - y.shape[1])] + [(0, 0)] * (y.ndim - 2)
        return jnp.pad(y, pad).reshape(batch * windows, window, *y.shape[2:])

    inside = cut(real)
    tokens, seen = _queried(cut(x), inside, params, config)
    # A query looks at its own window only.
    own = jnp.eye(windows, dtype=seen.dtype)[None, :, None, :, None]
    each = seen.reshape(batch, windows, config.queries, 1, window) * own
    wide = each.reshape(batch, windows * config.queries, windows * window)
    wide = jnp.pad(wide, ((0, 0), (0, 0), (0, max(seq - windows * window, 0))))
    there = jnp.any(inside, axis=1).reshape(batch, windows)
    there = jnp.repeat(there, config.queries, axis=1)
    tokens = tokens.reshape(batch, windows * config.queries, -1)
    at = jnp.arange(seq) < windows * window
    return _looked(tokens, wide[..., :seq], real & at[None], position, there)


def _queried(
    x: Array, real: Array, params: Any, config: QFormerConfig
) -> tuple[Array, Array]:
    out: Any = QFormer(config).apply({"params": params["qformer"]}, x, valid=real)
    tokens = out.queries
    if "projection" in params:
        linear = params["projection"]
        tokens = tokens @ linear["kernel"].astype(tokens.dtype)
        bias = linear["bias"].astype(tokens.dtype)
        tokens = tokens + jnp.broadcast_to(bias, tokens.shape)
    return tokens, out.seen


def _check_rows(budget: int | None, rows: int) -> None:
    good = budget is None or budget == rows
    check(good, "budget", budget, f"None or {rows}, the number of queries")


def _looked(
    tokens: Array,
    seen: Array,
    real: Array,
    position: Array | None,
    there: Array | None = None,
) -> Compressed:
    """Tokens go to the query that looked at them most, the first of several."""
    batch, rows, seq = seen.shape
    seen = jax.lax.stop_gradient(seen)
    if there is None:
        some = jnp.any(real, axis=1, keepdims=True)
        there = jnp.broadcast_to(some, (batch, rows))
    if position is None:
        count = jnp.arange(seq, dtype=jnp.float32)[None, :, None]
        position = jnp.broadcast_to(count, (batch, seq, 1))
    plan = cell_plan(jnp.argmax(seen, axis=1), rows, valid=real, position=position)
    total = jnp.sum(seen, axis=-1, keepdims=True)
    mean = jnp.einsum(
        "bkn,bnp->bkp", seen, position.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    ) / jnp.where(total > 0, total, 1.0)  # fmt: skip
    plan = dataclasses.replace(plan, position=mean, valid=there)
    tokens = jnp.where(there[..., None], tokens, 0)
    score = jnp.where(real, jnp.mean(seen, axis=1), -jnp.inf)
    return Compressed(plan, tokens, score)
