"""Training a joint layer: trajectories of the frozen model, and the unrolled loss.

Source: Bansal & Sanghavi 2025, arXiv 2509.22738, section 3 and appendix.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import check
from jtok.models import Model
from jtok.ops import kl_divergence
from jtok.predict.denoiser import Denoiser, denoiser_of
from jtok.predict.diffusion import sample_masked
from jtok.predict.joint import JointLayer
from jtok.predict.targets import safe_mean

__all__ = [
    "Trajectories",
    "collect_trajectories",
    "depth_law",
    "joint_loss",
    "joint_loss_at",
    "trajectory_windows",
    "window_starts",
]

PyTree = Any


@struct.dataclass
class Trajectories:
    """How a model filled rows, one token at a time: all states, kept as two numbers.

    State i of a row holds what was given and the tokens of turns below i.

    Attributes:
      tokens: `[rows, seq]` int32 filled rows.
      turn: `[rows, seq]` int32 when a token was revealed, -1 if given.
      length: `[rows]` int32 states that may be used after the first.
    """

    tokens: np.ndarray
    turn: np.ndarray
    length: np.ndarray


def collect_trajectories(
    model: Model | Denoiser,
    tokens: Int[np.ndarray, "rows seq"],
    *,
    valid: Bool[np.ndarray, "rows seq"] | None = None,
    batch: int | None = None,
    temperature: float = 1.0,
    top_p: float | None = None,
    order: str = "entropy",
    forbid: Sequence[int] = (),
    cut_id: int | None = None,
    seed: int = 0,
    params: PyTree = None,
) -> Trajectories:
    """Fills rows by exact one-at-a-time sampling and keeps how.

    Args:
      model: as for `sample_masked`.
      tokens: `[rows, seq]` int32 with MASK.
      valid: `[rows, seq]` bool, False for padding; None where there is none.
      batch: rows at a time; None takes all.
      temperature: of tokens.
      top_p: as for `sample_masked`.
      order: as for `sample_masked`.
      forbid: ids that are never written.
      cut_id: a trajectory ends before the first state with this id among what was
        revealed (padding, an end of text); None never.
      seed: of the first row.
      params: of a `Denoiser`.

    Returns:
      `Trajectories` on the host.

    Raises:
      ArgumentError: as `sample_masked`; `batch` below 1.

    Source: arXiv 2509.22738, appendix (100k samples at temperature 1).

    Example:
      >>> from jtok.testing import tiny_model
      >>> rows = np.array([[5, 95, 95, 7]])
      >>> made = collect_trajectories(tiny_model(family="llada"), rows)
      >>> sorted(made.turn[0].tolist()), made.length.tolist()
      ([-1, -1, 0, 1], [2])
    """
    size = len(tokens) if batch is None else batch
    check(size >= 1, "batch", batch, "None or at least 1")
    parts = []
    for first in range(0, len(tokens), size):
        rows = np.arange(first, first + size) % len(tokens)  # one shape for all
        out = sample_masked(
            model, tokens[rows], valid=None if valid is None else valid[rows],
            temperature=temperature, top_p=top_p, order=order, forbid=forbid,
            seed=(seed + rows).tolist(), params=params,
        )  # fmt: skip
        parts.append((np.asarray(out.tokens), np.asarray(out.turn)))
    filled, turn = (np.concatenate(some)[: len(tokens)] for some in zip(*parts))
    length = turn.max(axis=1) + 1
    if cut_id is not None:
        ends = np.where((filled == cut_id) & (turn >= 0), turn, turn.shape[1])
        length = np.minimum(length, ends.min(axis=1))
    return Trajectories(filled, turn, length.astype(np.int32))


def window_starts(made: Trajectories, width: int) -> Int[np.ndarray, "windows 2"]:
    """Where windows of `width` transitions fit: row and first state.

    The last state, in which no mask is left, is in none.

    Args:
      made: the trajectories.
      width: transitions of a window, at least 1.

    Returns:
      `[windows, 2]` int32.

    Raises:
      ArgumentError: `width` below 1, a state that reveals none or several tokens, or
        rows that are too short for any window.

    Source: arXiv 2509.22738's code (windows of nine states).

    Example:
      >>> row = np.array([[0, 1, 2, 3]])
      >>> window_starts(Trajectories(row, row, np.array([4])), 2).tolist()
      [[0, 0], [0, 1]]
    """
    check(width >= 1, "width", width, "at least 1")
    for row, (turn, length) in enumerate(zip(made.turn, made.length, strict=True)):
        counts = np.bincount(turn[turn >= 0], minlength=int(length))[: int(length)]
        expected = "one revealed token a transition"
        check(
            (counts == 1).all(), "made", f"row {row} with {counts.tolist()}", expected
        )
    pairs = [
        (row, start)
        for row, (length, turn) in enumerate(zip(made.length, made.turn, strict=True))
        for start in range(min(int(length), int(turn.max())) - width + 1)
    ]
    check(bool(pairs), "width", width, "less than the states of some row")
    return np.asarray(pairs, np.int32)


def trajectory_windows(
    made: Trajectories, at: Int[np.ndarray, "batch 2"], width: int, *, mask_id: int
) -> Int[np.ndarray, "batch states seq"]:
    """The states of some windows.

    Args:
      made: the trajectories.
      at: `[batch, 2]` row and first state, of `window_starts`.
      width: transitions.
      mask_id: the id of MASK.

    Returns:
      `[batch, width + 1, seq]` int32.

    Source: arXiv 2509.22738, section 3.

    Example:
      >>> row = np.array([[7, 5, 6]])
      >>> made = Trajectories(row, np.array([[-1, 1, 0]]), np.array([2]))
      >>> trajectory_windows(made, np.array([[0, 0]]), 1, mask_id=9).tolist()
      [[[7, 9, 9], [7, 9, 6]]]
    """
    tokens, turn = made.tokens[at[:, 0]], made.turn[at[:, 0]]
    state = at[:, 1, None] + np.arange(width + 1)[None]
    shown = turn[:, None] < state[..., None]
    return np.where(shown, tokens[:, None], mask_id).astype(np.int32)


def depth_law(max_depth: int) -> Float[np.ndarray, " depths"]:
    """Probabilities of training at each depth: a softmax OF the powers of a half.

    Args:
      max_depth: draws beyond the first, at least 1.

    Returns:
      `[max_depth]` float32, of depths 1, 2, ...

    Raises:
      ArgumentError: fewer.

    Source: arXiv 2509.22738's code.

    Example:
      >>> depth_law(3).round(3).tolist()
      [0.48100000619888306, 0.2919999957084656, 0.22699999809265137]
    """
    check(max_depth >= 1, "max_depth", max_depth, "at least 1")
    powers = np.exp(0.5 ** np.arange(max_depth))
    return (powers / powers.sum()).astype(np.float32)


def joint_loss_at(
    layer: JointLayer,
    layer_params: PyTree,
    model: Denoiser,
    params: PyTree,
    states: Int[Array, "batch states seq"],
    depth: int | Int[Array, ""],
    *,
    valid: Bool[Array, "batch seq"] | None = None,
    learnt: Bool[Array, "batch seq"] | None = None,
    to_teacher: float = 0.0,
    to_base: float = 0.0,
    distance: Literal["smooth_l1", "squared"] = "smooth_l1",
) -> Float[Array, ""]:
    """How far the layer, unrolled so often, is from the model run again.

    KL(model, layer) at the positions still masked in state `depth`, in nats, averaged;
    gradients go through the whole unroll and to the layer alone. Never writes logits.

    Args:
      layer: the layer.
      layer_params: its parameters.
      model: the `Denoiser`.
      params: its parameters, frozen.
      states: `[batch, states, seq]` int32, one more token revealed in each.
      depth: 1 to `states - 1`; may be traced.
      valid: `[batch, seq]` bool, False for padding; None where there is none.
      learnt: `[batch, seq]` bool, positions that count; None counts all.
      to_teacher: weight of the distance of hidden states to the model's at `depth`.
      to_base: the same to those of state 0.
      distance: of features, averaged over them: smooth L1 or the square.

    Returns:
      float32 scalar; 0 where nothing is masked any more.

    Raises:
      ArgumentError: another `distance`, or no second state.

    Source: arXiv 2509.22738, section 3 and its code.

    Example:
      >>> from jtok.testing import tiny_model
      >>> tiny = tiny_model(family="llada")
      >>> model, params = denoiser_of(tiny)
      >>> layer = oracle_layer(model)
      >>> states = jnp.array([[[5, 95, 95], [5, 6, 95]]])
      >>> bool(joint_loss_at(layer, (), model, params, states, 1) < 1e-5)
      True
    """
    known = ("smooth_l1", "squared")
    check(distance in known, "distance", distance, "'smooth_l1' or 'squared'")
    good = states.ndim == 3 and states.shape[1] >= 2
    check(good, "states", f"shape {states.shape}", "[batch, 2 or more, seq]")
    params = jax.lax.stop_gradient(params)
    base = jax.lax.stop_gradient(model.hidden(params, states[:, 0], valid))
    depth = jnp.asarray(depth, jnp.int32)

    def advance(hidden: Array, item: tuple[Array, Array]) -> tuple[Array, None]:
        tokens, number = item
        run = lambda h: layer.step(layer_params, params, tokens, h, valid, number)
        new = jax.lax.cond(
            number < depth, lambda h: run(h).astype(h.dtype), lambda h: h, hidden
        )
        return new, None

    numbers = jnp.arange(states.shape[1] - 1)
    later = jnp.swapaxes(states[:, 1:], 0, 1)
    hidden, _ = jax.lax.scan(advance, base, (later, numbers))
    reached = jax.lax.dynamic_index_in_dim(states, depth, 1, keepdims=False)
    teacher = jax.lax.stop_gradient(model.hidden(params, reached, valid))
    masked = reached == model.mask_id
    for mask in (valid, learnt):
        masked = masked if mask is None else masked & mask
    weight, bias = model.unembed(params)
    losses = kl_divergence(
        hidden, weight, teacher, weight, mask=masked, bias=bias, teacher_bias=bias
    )
    loss = safe_mean(losses, masked)
    for factor, other in ((to_teacher, teacher), (to_base, base)):
        if factor:
            apart = _distance(hidden, other, distance)
            loss = loss + factor * safe_mean(apart, masked)
    return loss


def _distance(one: Array, two: Array, kind: str) -> Array:
    gap = jnp.abs(one.astype(jnp.float32) - two.astype(jnp.float32))
    square = jnp.square(gap)
    if kind == "squared":
        return jnp.mean(square, axis=-1)
    return jnp.mean(jnp.where(gap < 1.0, 0.5 * square, gap - 0.5), axis=-1)


def joint_loss(
    model: Model | Denoiser,
    layer: JointLayer,
    *,
    max_depth: int = 3,
    to_teacher: float = 0.0,
    to_base: float = 0.0,
    distance: Literal["smooth_l1", "squared"] = "smooth_l1",
) -> Callable[..., Any]:
    """Makes the loss of `jtok.train.fit` for a joint layer.

    Trainable are the layer's parameters, frozen the model's. A batch is a dict with
    `states` `[batch, states, seq]` and maybe `valid` and `learnt` (see
    `joint_loss_at`); each update draws one depth from `depth_law`.

    Args:
      model: the frozen model.
      layer: the layer.
      max_depth: draws beyond the first, K - 1 to sample K tokens a forward.
      to_teacher: see `joint_loss_at`.
      to_base: see `joint_loss_at`.
      distance: see `joint_loss_at`.

    Returns:
      `loss_fn(trainable, frozen, state, batch, key)` with the metric `depth`.

    Raises:
      ArgumentError: `max_depth` below 1; while tracing, too few states.

    Source: arXiv 2509.22738, section 3: AdamW, rate 5e-5 after 250 steps of warm-up, no
    decay, clipped at 1, batches of 32 windows.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model(family="llada")
      >>> layer = joint_layer(model.config)
      >>> states = jnp.array([[[5, 95, 95], [5, 6, 95]]])
      >>> loss, _ = joint_loss(model, layer, max_depth=1)(
      ...     layer.init(jax.random.key(0)), model.params, None, {"states": states},
      ...     jax.random.key(1))
      >>> bool(loss > 0)
      True
    """
    law = jnp.log(jnp.asarray(depth_law(max_depth)))
    made, _ = denoiser_of(model)

    def loss_fn(trainable: Any, frozen: Any, state: Any, batch: Any, key: Any) -> Any:
        states = batch["states"]
        expected = f"at least {max_depth + 1} states"
        check(states.shape[1] > max_depth, "states", f"shape {states.shape}", expected)
        depth = jax.random.categorical(key, law) + 1
        loss = joint_loss_at(
            layer, trainable, made, frozen, states[:, : max_depth + 1], depth,
            valid=batch.get("valid"), learnt=batch.get("learnt"),
            to_teacher=to_teacher, to_base=to_base, distance=distance,
        )  # fmt: skip
        return loss, ({"depth": depth.astype(jnp.float32)}, state)

    return loss_fn
