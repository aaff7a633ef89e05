"""A layer on a frozen masked model that draws several tokens a forward, jointly.

After a draw the layer reads the tokens so far and the last hidden states, and predicts
the hidden states that the whole model would have had it run again. Its parameters are
shared by all draws, or each draw has its own.

Source: Bansal & Sanghavi 2025, arXiv 2509.22738 (ADJUST).
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jtok import files, nn
from jtok.errors import ArgumentError, CheckpointError, check
from jtok.models import storage
from jtok.models.fields import read_object
from jtok.ops import attention
from jtok.ops.sharding import to_host
from jtok.predict.denoiser import Denoiser, denoiser

__all__ = ["JointLayer", "joint_layer", "load_joint", "oracle_layer", "save_joint"]

PyTree = Any
_MARKER = "joint_layer.json"


class JointLayer(NamedTuple):
    """What refines hidden states between the draws of one forward.

    Attributes:
      init: `key -> params`.
      step: `(params, model_params, tokens[batch, seq], hidden[batch, seq, dim],
        valid[batch, seq] or None, index) -> [batch, seq, dim]`: hidden states given the
        tokens drawn so far; `index` counts the draws from 0 and may be traced.
      steps: most steps, where each has parameters of its own; None for any number.
      options: the choices it was made with, for saving.
    """

    init: Callable[[Array], PyTree]
    step: Callable[..., Array]
    steps: int | None = None
    options: tuple[tuple[str, Any], ...] = ()


def joint_layer(
    config: nn.DecoderConfig,
    *,
    zero_init: bool = True,
    attention: bool = True,
    base_features: bool = True,
    steps: int | None = None,
) -> JointLayer:
    """The layer of ADJUST for a model; equal arguments give the same functions.

    With e the normed embeddings of the tokens and g the normed hidden states, u is a
    linear map of [e; g], v one more layer of the model over u, and the result is hidden
    + norm(v), to be read out without a further norm.

    Args:
      config: the model's.
      zero_init: the last norm starts at 0, so that an untrained layer changes nothing;
        False starts it at 1, as the official code does.
      attention: False replaces the layer of the model by a ReLU and a linear map.
      base_features: False gives zeros for the hidden states (an ablation).
      steps: None shares the parameters among all draws; a number gives each of so many
        draws its own.

    Returns:
      `JointLayer`.

    Raises:
      ArgumentError: a causal model, or `steps` below 1.

    Source: arXiv 2509.22738, section 3. Differs: `zero_init`.

    Example:
      >>> from jtok.testing import tiny_config
      >>> layer = joint_layer(tiny_config(family="Dream"))
      >>> sorted(layer.init(jax.random.key(0)))
      ['block', 'down', 'embed_norm', 'hidden_norm', 'out_norm']
    """
    causal = getattr(config, "causal", True)
    check(not causal, "config", "a causal model", "one that looks both ways")
    check(steps is None or steps >= 1, "steps", steps, "None or at least 1")
    return _joint_layer(config, zero_init, attention, base_features, steps)


@functools.lru_cache(maxsize=32)
def _joint_layer(
    config: nn.DecoderConfig, zero_init: bool, attends: bool, base: bool,
    steps: int | None,
) -> JointLayer:  # fmt: skip
    model = denoiser(config, mask_id=config.mask_token_id or 0)
    width, dtype = config.width, config.dtype

    def one(key: Array) -> PyTree:
        keys = jax.random.split(key, 2)
        x = jnp.zeros((1, 1, width), dtype)
        norm = nn.Norm(config).init(keys[0], x)["params"]
        linear = lambda key, size: _linear(key, size, width, dtype)
        gain = (0.0 if zero_init else 1.0) - (1.0 if config.norm_offset else 0.0)
        scale = functools.partial(jnp.full_like, fill_value=gain)
        made = {
            "embed_norm": norm,
            "hidden_norm": norm,
            "down": linear(keys[0], 2 * width),
            "out_norm": jax.tree.map(scale, norm),
        }
        if not attends:
            return {**made, "linear": linear(keys[1], width)}
        heads = (1, 1, config.num_heads, config.head_dim)
        attend = lambda q, k, v: (jnp.zeros(heads, q.dtype), (k, v))
        block = nn.Block(config)
        positions = jnp.zeros((1, 1), jnp.int32)
        same = lambda _, value: value
        params = block.init(keys[1], x, positions, attend, same)["params"]
        return {**made, "block": params}

    def init(key: Array) -> PyTree:
        if steps is None:
            return one(key)
        return jax.vmap(one)(jax.random.split(key, steps))

    def step(
        params: PyTree, model_params: PyTree, tokens: Array, hidden: Array,
        valid: Any, index: Any,
    ) -> Array:  # fmt: skip
        if steps is not None:
            at = jnp.minimum(index, steps - 1)
            params = jax.tree.map(lambda leaf: leaf[at], params)

        def norm(name: str, x: Array) -> Any:
            return nn.Norm(config).apply({"params": params[name]}, x)

        embedded = norm("embed_norm", model.embed(model_params, tokens))
        prior = hidden if base else jnp.zeros_like(hidden)
        known = norm("hidden_norm", prior.astype(dtype))
        u = _apply(params["down"], jnp.concatenate([embedded, known], axis=-1))
        if attends:
            v = _block(config, params["block"], u, valid)
        else:
            v = _apply(params["linear"], jax.nn.relu(u))
        return hidden + norm("out_norm", v).astype(hidden.dtype)

    options = (
        ("zero_init", zero_init),
        ("attention", attends),
        ("base_features", base),
        ("steps", steps),
    )
    return JointLayer(init, step, steps, options)


def _linear(key: Array, size: int, width: int, dtype: str) -> PyTree:
    kernel = size**-0.5 * jax.random.normal(key, (size, width))
    return {"kernel": kernel.astype(dtype), "bias": jnp.zeros(width, dtype)}


def _apply(linear: PyTree, x: Array) -> Array:
    y = x @ linear["kernel"]
    return y + jnp.broadcast_to(linear["bias"], y.shape)


def _block(config: nn.DecoderConfig, params: PyTree, x: Array, valid: Any) -> Array:
    """One layer of the model over all positions, both ways."""
    batch, seq = x.shape[:2]
    positions = jnp.broadcast_to(jnp.arange(seq)[None], (batch, seq))
    allow = jnp.ones((batch, seq, seq), bool)
    if valid is not None:
        positions = jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)
        allow = valid[:, :, None] & valid[:, None, :]

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, Any]:
        mixed = attention(query, key, value, allow, scale=config.score_scale)
        return mixed, (key, value)

    same = lambda _, value: value
    out: Any
    out, _ = nn.Block(config).apply({"params": params}, x, positions, attend, same)
    return out


def oracle_layer(model: Denoiser) -> JointLayer:
    """A layer that runs the whole model again: what a perfect one would say.

    Args:
      model: the `Denoiser`.

    Returns:
      `JointLayer` without parameters; sampling with it is one-at-a-time sampling.

    Source: arXiv 2509.22738, section 3: the law that the layer approximates.

    Example:
      >>> from jtok.testing import tiny_config
      >>> oracle_layer(denoiser(tiny_config(family="llada"))).steps is None
      True
    """
    return _oracle_layer(model)


@functools.lru_cache(maxsize=32)
def _oracle_layer(model: Denoiser) -> JointLayer:
    def step(
        params: PyTree, model_params: PyTree, tokens: Array, hidden: Array,
        valid: Any, index: Any,
    ) -> Array:  # fmt: skip
        del params, index
        return model.hidden(model_params, tokens, valid).astype(hidden.dtype)

    return JointLayer(lambda key: (), step)


# ---- on disk


def save_joint(
    layer: JointLayer, params: PyTree, folder: str | os.PathLike[str]
) -> None:
    """Writes a layer so that readers see the old one or the new, never a part.

    Args:
      layer: as `joint_layer` made it.
      params: its parameters.
      folder: created, or replaced where it holds such a layer.

    Raises:
      ArgumentError: a layer that `joint_layer` did not make, or other parameters.
      WriteError: the folder cannot be written; what stood there still stands.

    Source: the layer of arXiv 2509.22738.

    Example:
      >>> import tempfile
      >>> from jtok.testing import tiny_config
      >>> config = tiny_config(family="Dream")
      >>> layer = joint_layer(config)
      >>> folder = tempfile.mkdtemp() + "/layer"
      >>> save_joint(layer, layer.init(jax.random.key(0)), folder)
      >>> load_joint(config, folder)[0] is layer
      True
    """
    check(bool(layer.options), "layer", layer, "one that joint_layer made")
    wanted = jax.eval_shape(layer.init, jax.random.key(0))
    shapes = {name: leaf.shape for name, leaf in _named(wanted).items()}
    found = {name: jnp.shape(leaf) for name, leaf in _named(params).items()}
    check(shapes == found, "params", found, f"those of this layer, {shapes}")
    named = to_host(_named(params))

    def write() -> None:
        with files.replace_folder(folder, marker=_MARKER) as staged:
            storage.write_tensors(staged, named)
            text = json.dumps(dict(layer.options), indent=1) + "\n"
            files.write_atomic(staged / _MARKER, text)

    storage.write_together(write, folder)


def load_joint(
    config: nn.DecoderConfig, folder: str | os.PathLike[str]
) -> tuple[JointLayer, PyTree]:
    """Reads a layer that `save_joint` wrote, for a model of this configuration.

    Args:
      config: the model's.
      folder: where it lies.

    Returns:
      `JointLayer` and its parameters.

    Raises:
      MissingFileError: a file is not there.
      CheckpointError: a file is damaged, or the layer is of another model; all
        tensors at fault are listed.

    Source: the layer of arXiv 2509.22738.

    Example:
      >>> from jtok.testing import tiny_config
      >>> load_joint(tiny_config(family="Dream"), "nowhere")
      Traceback (most recent call last):
      jtok.errors.MissingFileError: nowhere/joint_layer.json: not there; ...
    """
    files.recover_folder(folder)
    place = pathlib.Path(folder)
    options = dict(read_object(place / _MARKER))
    try:
        layer = joint_layer(config, **options)
    except (TypeError, ArgumentError) as error:
        raise CheckpointError(f"{place / _MARKER}: damaged ({error}).") from error
    wanted = jax.eval_shape(layer.init, jax.random.key(0))
    leaves = _named(wanted)
    with storage.TensorFiles.open(place) as tensors:
        shapes = {name: leaf.shape for name, leaf in leaves.items()}
        found = {name: tensors.shape(name) for name in tensors}
        if shapes != found:
            every = sorted(shapes | found)
            wrong = [n for n in every if shapes.get(n) != found.get(n)]
            raise CheckpointError(
                f"{place}: the layer is of another model; wrong, missing or unknown: "
                f"{', '.join(wrong)}."
            )
        made = [jnp.asarray(tensors.read(n), x.dtype) for n, x in leaves.items()]
    return layer, jax.tree.unflatten(jax.tree.structure(wanted), made)


def _named(params: PyTree) -> dict[str, Any]:
    """Leaves by dotted path, in the order of the tree."""
    pairs = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(str(entry.key) for entry in path): x for path, x in pairs}
