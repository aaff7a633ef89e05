"""A recurrent layer that reads both ways and steps over padding.

Source: Cho et al. 2014, arXiv 1406.1078, in the form of PyTorch and cuDNN: the reset
gate multiplies the state's product, its bias included.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jtok.errors import CheckpointError, check

__all__ = ["bi_gru", "bi_gru_from_tensors", "init_bi_gru"]

PyTree = Any
_WAYS = ("forward", "backward")
_DTYPES = ("float32", "bfloat16")


def init_bi_gru(inputs: int, width: int, key: Array, dtype: str = "float32") -> PyTree:
    """Fresh parameters: LeCun normal inputs, orthogonal state matrices, biases 0.

    Args:
      inputs: width of the vectors that are read, at least 1.
      width: of the state of each direction, at least 1.
      key: typed key, consumed.
      dtype: of the parameters, "float32" or "bfloat16".

    Returns:
      For "forward" and "backward": `input` `[inputs, 3 * width]`, `state`
      `[width, 3 * width]` and a bias of each, gates ordered reset, update, new.

    Raises:
      ArgumentError: a width below 1 or another dtype.

    Source: Cho et al. 2014, arXiv 1406.1078; the initial values are Flax's.

    Example:
      >>> params = init_bi_gru(4, 3, jax.random.key(0))
      >>> params["backward"]["state"].shape
      (3, 9)
    """
    check(inputs >= 1, "inputs", inputs, "a width of at least 1")
    check(width >= 1, "width", width, "a width of at least 1")
    check(dtype in _DTYPES, "dtype", dtype, f"one of {_DTYPES}")
    lecun = jax.nn.initializers.lecun_normal()
    square = jax.nn.initializers.orthogonal()

    def direction(key: Array) -> dict[str, Array]:
        first, *rest = jax.random.split(key, 4)
        state = [square(part, (width, width)) for part in rest]
        return {
            "input": lecun(first, (inputs, 3 * width)).astype(dtype),
            "state": jnp.concatenate(state, axis=1).astype(dtype),
            "input_bias": jnp.zeros(3 * width, dtype),
            "state_bias": jnp.zeros(3 * width, dtype),
        }

    return dict(zip(_WAYS, map(direction, jax.random.split(key))))


def bi_gru(
    params: PyTree,
    x: Float[Array, "batch seq inputs"],
    mask: Any = None,
    *,
    unroll: int = 1,
) -> Float[Array, "batch seq width"]:
    """States of both directions, beside each other.

    A padded place leaves the state as it is, wherever it stands: the backward direction
    so starts at a row's last real token, and padding changes no real token's state.

    Args:
      params: as from `init_bi_gru`.
      x: `[batch, seq, inputs]`, in any floating dtype.
      mask: `[batch, seq]` True for real tokens; None lets all be real.
      unroll: steps of the loop that are compiled as one.

    Returns:
      `[batch, seq, 2 * width]` in the dtype of the parameters, 0 at padding. Products
      and states are in float32.

    Raises:
      ArgumentError: `x` of another width than the parameters', or a mask of another
        shape.

    Source: Cho et al. 2014, arXiv 1406.1078, as PyTorch computes it. The products with
    the input are taken for all places at once, before the loop.

    Example:
      >>> params = init_bi_gru(4, 3, jax.random.key(0))
      >>> bi_gru(params, jnp.ones((2, 5, 4))).shape
      (2, 5, 6)
    """
    wanted = params["forward"]["input"].shape[0]
    check(x.shape[-1] == wanted, "x", f"width {x.shape[-1]}", f"width {wanted}")
    real = jnp.ones(x.shape[:2], bool)
    if mask is not None:
        real = jnp.asarray(mask).astype(bool)
        good = real.shape == x.shape[:2]
        check(good, "mask", f"shape {real.shape}", f"{list(x.shape[:2])}")
    x = jnp.where(real[..., None], x, 0)
    gates = []
    for way in _WAYS:
        part = params[way]
        made = x.swapaxes(0, 1).astype(jnp.float32) @ part["input"].astype(jnp.float32)
        bias = part["input_bias"].astype(jnp.float32)
        gates.append(made + jnp.broadcast_to(bias, made.shape))
    steps = real.T
    inputs = ((gates[0], steps), (gates[1][::-1], steps[::-1]))
    width = params["forward"]["state"].shape[0]
    start = (jnp.zeros((x.shape[0], width), jnp.float32),) * 2

    def step(states: Any, both: Any) -> tuple[Any, Any]:
        new = tuple(
            _next(params[way], state, *seen)
            for way, state, seen in zip(_WAYS, states, both)
        )
        return new, new

    _, (ahead, back) = jax.lax.scan(step, start, inputs, unroll=unroll)
    made = jnp.concatenate([ahead, back[::-1]], axis=-1).swapaxes(0, 1)
    return jnp.where(real[..., None], made, 0).astype(params["forward"]["state"].dtype)


def _next(params: PyTree, state: Array, gates: Array, real: Array) -> Array:
    own = state @ params["state"].astype(jnp.float32)
    own = own + jnp.broadcast_to(params["state_bias"].astype(jnp.float32), own.shape)
    width = state.shape[-1]
    both = jax.nn.sigmoid(gates[:, : 2 * width] + own[:, : 2 * width])
    reset, update = both[:, :width], both[:, width:]
    new = jnp.tanh(gates[:, 2 * width :] + reset * own[:, 2 * width :])
    return jnp.where(real[:, None], new + update * (state - new), state)


def bi_gru_from_tensors(tensors: Mapping[str, Any], prefix: str = "") -> PyTree:
    """Parameters from the tensors of a one-layer bidirectional `torch.nn.GRU`.

    Args:
      tensors: name -> array under PyTorch's names: `weight_ih_l0` `[3 * width, inputs]`
        ordered reset, update, new, and `..._reverse` of the backward direction.
      prefix: before each name, as "gru.".

    Returns:
      The parameters, as of `init_bi_gru`.

    Raises:
      CheckpointError: a tensor is missing; all that are, are listed.

    Source: the layout is PyTorch's.

    Example:
      >>> bi_gru_from_tensors({})
      Traceback (most recent call last):
      jtok.errors.CheckpointError: tensors: no tensor weight_ih_l0, ...
    """
    names = {
        (way, ours): f"{prefix}{theirs}_l0{'' if way == 'forward' else '_reverse'}"
        for way in _WAYS
        for ours, theirs in (
            ("input", "weight_ih"),
            ("state", "weight_hh"),
            ("input_bias", "bias_ih"),
            ("state_bias", "bias_hh"),
        )
    }
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise CheckpointError(f"tensors: no tensor {', '.join(missing)}.")
    made: dict[str, dict[str, Array]] = {way: {} for way in _WAYS}
    for (way, ours), name in names.items():
        made[way][ours] = jnp.asarray(np.asarray(tensors[name]).T)
    return made
