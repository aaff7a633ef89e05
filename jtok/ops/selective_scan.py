"""The selective scan: a linear recurrence whose coefficients depend on the input.

Every channel keeps `state_size` numbers. With `A` negative, a step of size dt does

    state <- exp(dt A) state + dt x B,    y = sum(state C) + D x

One state takes `inner * state_size` numbers a row. To hold one for every position is
what a long sequence cannot afford, so the sequence is cut into blocks, and the backward
pass computes each block again from the state at its start. Within a block the steps run
one after the other, or side by side as an associative scan: more arithmetic, which an
accelerator has to spare and a CPU has not (there it took 5 to 9 times as long).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.errors import check

__all__ = ["advance_state", "selective_scan", "selective_scan_reference"]


def selective_scan(
    x: Float[Array, "batch seq inner"],
    dt: Float[Array, "batch seq inner"],
    A: Float[Array, "inner state"],
    B: Float[Array, "batch seq state"],
    C: Float[Array, "batch seq state"],
    D: Float[Array, " inner"] | None = None,
    *,
    state: Float[Array, "batch inner state"] | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    block: int = 16,
    parallel: bool | None = None,
) -> tuple[Float[Array, "batch seq inner"], Float[Array, "batch inner state"]]:
    """Runs the recurrence over a sequence, in float32 whatever the inputs are.

    A masked step is as though it were not there: it leaves the state as it is, its
    output is 0 and no gradient comes from it, even where its inputs are NaN. Memory
    beyond inputs and outputs is that of the states of one block, and of one state a
    block for the gradient.

    Args:
      x: `[batch, seq, inner]` inputs; `seq` may be 0.
      dt: `[batch, seq, inner]` step sizes, >= 0.
      A: `[inner, state]` rates, <= 0.
      B: `[batch, seq, state]` how an input enters the state.
      C: `[batch, seq, state]` how the state is read.
      D: `[inner]` what of an input passes by the state, None for nothing.
      state: `[batch, inner, state]` before the first step, None for zeros.
      mask: `[batch, seq]` True for steps that count, None for all.
      block: steps whose states are held at a time (static).
      parallel: run the steps of a block side by side (static); None does so unless
        the default backend is a CPU.

    Returns:
      Outputs `[batch, seq, inner]` in the dtype of `x`, and the float32 state after
      the last step.

    Raises:
      ArgumentError: `block` below 1.

    Source: Gu and Dao 2023, arXiv 2312.00752, algorithm 2 and section 3.3.2. Differs:
    blocks of an associative scan in place of one fused kernel.

    Example:
      >>> x, rate = jnp.ones((1, 3, 1)), jnp.full((1, 1), -jnp.log(2.0))
      >>> y, state = selective_scan(x, x, rate, x, x)
      >>> y[0, :, 0].tolist(), float(state[0, 0, 0])
      ([1.0, 1.5, 1.75], 1.75)
    """
    check(block >= 1, "block", block, "at least 1")
    batch, seq, inner = x.shape
    rates = A.astype(jnp.float32)
    before = _start(state, batch, rates)
    steps = (*_masked(x, dt, B, mask), C.astype(jnp.float32))
    if parallel is None:
        parallel = jax.default_backend() != "cpu"
    within = _side_by_side if parallel else _one_by_one
    run = jax.checkpoint(functools.partial(within, rates))
    if seq <= block:
        after, y = (before, jnp.zeros(x.shape)) if seq == 0 else run(before, steps)
    else:
        after, parts = jax.lax.scan(run, before, _blocks(steps, block))
        y = jnp.moveaxis(parts, 0, 1).reshape(batch, -1, inner)[:, :seq]
    if D is not None:
        y = y + steps[0] * D.astype(jnp.float32)[None, None]
    if mask is not None:
        y = jnp.where(mask[..., None], y, 0.0)
    return y.astype(x.dtype), _unless_masked(before, after, mask)


def advance_state(
    state: Float[Array, "batch inner state"],
    x: Float[Array, "batch seq inner"],
    dt: Float[Array, "batch seq inner"],
    A: Float[Array, "inner state"],
    B: Float[Array, "batch seq state"],
    *,
    mask: Bool[Array, "batch seq"] | None = None,
    block: int = 16,
) -> Float[Array, "batch inner state"]:
    """The state after a sequence, without the outputs, for less than they cost.

    `A` does not change from step to step, so what is left of a step at the end of a
    block is `exp(A * (sum of the later step sizes))`: one sum in place of a scan.

    Args:
      state: `[batch, inner, state]` before the first step.
      x: as for `selective_scan`, and so are `dt`, `A`, `B` and `mask`.
      dt: `[batch, seq, inner]`.
      A: `[inner, state]`.
      B: `[batch, seq, state]`.
      mask: `[batch, seq]`; a row that is masked throughout keeps its state bit by bit.
      block: steps that are summed at a time (static).

    Returns:
      `[batch, inner, state]` float32.

    Source: Gu and Dao 2023, arXiv 2312.00752, equation 2, unrolled.

    Example:
      >>> one, rate = jnp.ones((1, 1, 1)), jnp.zeros((1, 1))
      >>> float(advance_state(jnp.full((1, 1, 1), 2.0), one, one, rate, one)[0, 0, 0])
      3.0
    """
    check(block >= 1, "block", block, "at least 1")
    if x.shape[1] == 0:
        return state.astype(jnp.float32)
    rates = A.astype(jnp.float32)
    before = _start(state, x.shape[0], rates)

    def add(state: Array, steps: tuple[Array, ...]) -> tuple[Array, None]:
        x, dt, B = steps
        # Summed from the end, where the terms that are left are small and exact.
        since = jax.lax.cumsum(dt, axis=1, reverse=True)
        later = jnp.concatenate([since[:, 1:], jnp.zeros_like(since[:, :1])], axis=1)
        left = jnp.exp(later[..., None] * rates[None, None])
        new = jnp.sum(left * (dt * x)[..., None] * B[:, :, None, :], axis=1)
        return jnp.exp(since[:, 0, :, None] * rates[None]) * state + new, None

    width = min(block, x.shape[1])
    after, _ = jax.lax.scan(add, before, _blocks(_masked(x, dt, B, mask), width))
    return _unless_masked(before, after, mask)


def selective_scan_reference(
    x: Float[Array, "batch seq inner"],
    dt: Float[Array, "batch seq inner"],
    A: Float[Array, "inner state"],
    B: Float[Array, "batch seq state"],
    C: Float[Array, "batch seq state"],
    D: Float[Array, " inner"] | None = None,
    *,
    state: Float[Array, "batch inner state"] | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
) -> tuple[Float[Array, "batch seq inner"], Float[Array, "batch inner state"]]:
    """`selective_scan` one step after the other: slow, and plainly right.

    Args:
      x: as for `selective_scan`, and so are all others.
      dt: `[batch, seq, inner]`.
      A: `[inner, state]`.
      B: `[batch, seq, state]`.
      C: `[batch, seq, state]`.
      D: `[inner]` or None.
      state: `[batch, inner, state]` or None.
      mask: `[batch, seq]` or None.

    Returns:
      As `selective_scan`.

    Source: Gu and Dao 2023, arXiv 2312.00752, algorithm 2.

    Example:
      >>> x, rate = jnp.ones((1, 3, 1)), jnp.zeros((1, 1))
      >>> selective_scan_reference(x, x, rate, x, x)[0].ravel().tolist()
      [1.0, 2.0, 3.0]
    """
    rates = A.astype(jnp.float32)
    held = _start(state, x.shape[0], rates)
    count = jnp.ones(x.shape[:2], bool) if mask is None else mask

    def step(held: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        x, dt, B, C, counts = now
        decay = jnp.exp(dt[..., None] * rates[None])
        new = decay * held + (dt * x)[..., None] * B[:, None, :]
        y = jnp.sum(new * C[:, None, :], axis=-1)
        if D is not None:
            y = y + D.astype(jnp.float32)[None] * x
        held = jnp.where(counts[:, None, None], new, held)
        return held, jnp.where(counts[:, None], y, 0.0)

    wide = (part.astype(jnp.float32) for part in (x, dt, B, C))
    steps = tuple(jnp.moveaxis(part, 1, 0) for part in (*wide, count))
    held, y = jax.lax.scan(step, held, steps)
    return jnp.moveaxis(y, 0, 1).astype(x.dtype), held


def _start(state: Array | None, batch: int, rates: Array) -> Array:
    if state is None:
        return jnp.zeros((batch, *rates.shape), jnp.float32)
    return state.astype(jnp.float32)


def _masked(
    x: Array, dt: Array, B: Array, mask: Array | None
) -> tuple[Array, Array, Array]:
    """Float32, with zeros for masked steps: decay 1, and nothing enters the state."""
    parts = tuple(part.astype(jnp.float32) for part in (x, dt, B))
    if mask is not None:
        parts = tuple(jnp.where(mask[..., None], part, 0.0) for part in parts)
    return parts[0], parts[1], parts[2]


def _unless_masked(before: Array, after: Array, mask: Array | None) -> Array:
    """Rows without a step keep every bit: 1 * s + 0 would lose the sign of a zero."""
    if mask is None:
        return after
    return jnp.where(jnp.any(mask, axis=1)[:, None, None], after, before)


def _blocks(steps: tuple[Array, ...], block: int) -> tuple[Array, ...]:
    """[batch, seq, ...] -> [blocks, batch, block, ...], zeros at the end."""

    def cut(part: Array) -> Array:
        batch, seq, last = part.shape
        part = jnp.pad(part, ((0, 0), (0, -seq % block), (0, 0)))
        return jnp.moveaxis(part.reshape(batch, -1, block, last), 1, 0)

    return tuple(cut(part) for part in steps)


def _one_by_one(
    rates: Array, state: Array, steps: tuple[Array, ...]
) -> tuple[Array, Array]:
    """State after a block, and `y` without `D`: `[batch, block, inner]`."""

    def step(state: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        x, dt, B, C = now
        decay = jnp.exp(dt[..., None] * rates[None])
        state = decay * state + (dt * x)[..., None] * B[:, None, :]
        return state, jnp.sum(state * C[:, None, :], axis=-1)

    in_time = tuple(jnp.moveaxis(part, 1, 0) for part in steps)
    state, y = jax.lax.scan(step, state, in_time)
    return state, jnp.moveaxis(y, 0, 1)


def _side_by_side(
    rates: Array, state: Array, steps: tuple[Array, ...]
) -> tuple[Array, Array]:
    """The same with an associative scan over the steps."""
    x, dt, B, C = steps
    decay = jnp.exp(dt[..., None] * rates[None, None])
    enters = (dt * x)[..., None] * B[:, :, None, :]

    def then(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple:
        return first[0] * second[0], first[1] * second[0] + second[1]

    decay, states = jax.lax.associative_scan(then, (decay, enters), axis=1)
    states = states + decay * state[:, None]
    return states[:, -1], jnp.sum(states * C[:, :, None, :], axis=-1)
