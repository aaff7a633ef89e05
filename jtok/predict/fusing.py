"""A draft stack that fuses the target's states with trigrams of all tokens.

One layer looks at two streams that share positions: what the target computed of every
token, and an encoding of every token with the two before it. Its output at a position
estimates the target's state there, and a head for every offset reads a token out of
both. The target itself stays as it is.

Index i is the last position that the target has seen, k = 1, 2, ... the step: `F^k_i`
estimates the state at i + k, and its head predicts the token at i + k + 1. The token
at i + 1 comes from the target.

Source: Zeng et al. 2024, arXiv 2402.15758. The released training code is followed in
the form in which it ran first; differs: the target gets no gradient at all, and every
row of a batch has its own padding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from jtok import nn
from jtok.errors import CheckpointError, check
from jtok.models import Model
from jtok.models.checkpoint import param_axes
from jtok.ops.sharding import onto_mesh

__all__ = [
    "Base",
    "Fusing",
    "FusingConfig",
    "base_of",
    "fusing_axes",
    "fusing_config",
    "import_fusing",
    "init_fusing",
]

PyTree = Any
_TRIGRAMS = ("residual", "narrow", "token")
_HEADS = ("full", "light")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusingConfig:
    """Sizes and choices of a draft stack, hashable.

    Attributes:
      layer: of the one layer, as a decoder of one layer; its width and vocabulary are
        the target's.
      steps: heads, so the most tokens that a chain of drafts has.
      heads: "full" has a matrix `[vocab, 2 width]` for each head; "light" has a map
        `[2 width, width]` for each and reads out as the target does.
      trigram: "residual" as the released code, "narrow" as the paper's text (two
        linear maps, the first of which goes down to the width), "token" for the
        embedding of the newest token alone.
      states: keys from the target's states, too; False looks at trigrams only.
      own_states: a step also sees the states that the steps before it estimated for
        the same position. The released code masks them, so False.
    """

    layer: nn.DecoderConfig
    steps: int = 4
    heads: Literal["full", "light"] = "full"
    trigram: Literal["residual", "narrow", "token"] = "residual"
    states: bool = True
    own_states: bool = False

    def __post_init__(self) -> None:
        check(self.steps >= 1, "steps", self.steps, "at least 1")
        check(self.heads in _HEADS, "heads", self.heads, "'full' or 'light'")
        expected = "'residual', 'narrow' or 'token'"
        check(self.trigram in _TRIGRAMS, "trigram", self.trigram, expected)

    @property
    def width(self) -> int:
        """Size of a state of the target."""
        return self.layer.width


@struct.dataclass
class Base:
    """What a draft stack reads of its target and never trains.

    Attributes:
      embed: `[vocab, width]` vectors of the tokens.
      unembed: `[vocab, width]` rows that states are compared with.
      bias: `[vocab]` of the unembedding, or None.
    """

    embed: jax.Array
    unembed: jax.Array
    bias: jax.Array | None = None


@struct.dataclass
class Fusing:
    """A draft stack: a frozen pytree that functions of this module take.

    Attributes:
      params: `trigram`, `layer`, and `heads` stacked on a leading axis.
      base: of the target.
      config: sizes and choices.
      vocabulary: hash of the target's vocabulary, or None where it is not known.
    """

    params: PyTree
    base: Base
    config: FusingConfig = struct.field(pytree_node=False)
    vocabulary: str | None = struct.field(pytree_node=False, default=None)

    @property
    def num_params(self) -> int:
        """Parameters that train; what is the target's does not count."""
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(self.params))


# ---- making one


def base_of(model: Model) -> Base:
    """The embedding and the unembedding of a model, without gradients.

    Args:
      model: any.

    Returns:
      `Base`.

    Example:
      >>> from jtok.testing import tiny_model
      >>> base_of(tiny_model()).embed.shape
      (96, 32)
    """
    weight, bias = model.unembedding()
    base = Base(model.params["embed"]["tokens"], weight, bias)
    return jax.lax.stop_gradient(base)


def fusing_config(
    model: Model,
    *,
    steps: int = 4,
    heads: str = "full",
    trigram: str = "residual",
    states: bool = True,
    own_states: bool = False,
    mlp_width: int | None = None,
) -> FusingConfig:
    """The configuration of a draft stack for a model of any family.

    The layer has the shape of the target's own where that is a transformer; windows,
    experts and learned positions become plain attention, one MLP and rotary positions.

    Args:
      model: the target.
      steps: number of heads, see `FusingConfig` for all that follow.
      heads: "full" or "light".
      trigram: "residual", "narrow" or "token".
      states: look at the target's states.
      own_states: look at estimated states of earlier steps.
      mlp_width: inner size of the layer's MLP; None takes the target's.

    Returns:
      `FusingConfig`.

    Raises:
      ArgumentError: a number or a name out of range.

    Example:
      >>> from jtok.testing import tiny_model
      >>> fusing_config(tiny_model(), steps=3).layer.num_layers
      1
    """
    layer = _layer_config(model.config)
    if mlp_width is not None:
        layer = dataclasses.replace(layer, mlp_width=mlp_width)
    choices: dict[str, Any] = {"heads": heads, "trigram": trigram}
    return FusingConfig(
        layer=layer, steps=steps, states=states, own_states=own_states, **choices
    )


def _layer_config(config: Any) -> nn.DecoderConfig:
    if isinstance(config, nn.DecoderConfig):
        learned = config.positions == "learned"
        return dataclasses.replace(
            config,
            num_layers=1,
            windows=(),
            num_experts=0,
            dense_layers=(),
            positions="rotary",
            rotary_fraction=1.0 if learned else config.rotary_fraction,
            local_rope_theta=None,
            local_rope_scaling=(),
            causal=True,
            source="{}",
        )
    heads = max(1, config.width // 64)
    while config.width % heads or config.width // heads % 2:
        heads -= 1
        check(heads > 0, "model", f"width {config.width}", "one that heads can share")
    return nn.DecoderConfig(
        vocab_size=config.vocab_size,
        width=config.width,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=config.width // heads,
        mlp_width=-(-8 * config.width // 3),
        max_positions=2**20,
        dtype=config.dtype,
    )


def init_fusing(
    model: Model, key: jax.Array, config: FusingConfig | None = None
) -> Fusing:
    """A draft stack that starts from its target's own readout.

    Every head gives `readout(H + F)` at first. On a mesh the parameters are laid out
    over it.

    Args:
      model: the target.
      key: typed PRNG key, consumed.
      config: None takes `fusing_config(model)`.

    Returns:
      `Fusing`.

    Raises:
      ArgumentError: a configuration of another width or vocabulary.

    Source: arXiv 2402.15758, its released code. Differs: kernels of the layer start at
    `inputs ** -0.5` instead of 0.02, which is the same size at a width of 2500.

    Example:
      >>> from jtok.testing import tiny_model
      >>> init_fusing(tiny_model(), jax.random.key(0)).params["heads"]["kernel"].shape
      (4, 96, 64)
    """
    config = fusing_config(model) if config is None else config
    base = base_of(model)
    params = _init_params(config, base, key)
    params = onto_mesh(params, fusing_axes(params, config))
    vocabulary = getattr(model.vocabulary, "hash", None)
    return Fusing(params, base, config, vocabulary)


def _init_params(config: FusingConfig, base: Base, key: jax.Array) -> PyTree:
    width, dtype = config.width, config.layer.dtype
    expected = f"[{config.layer.vocab_size}, {width}], as config says"
    good = base.embed.shape == (config.layer.vocab_size, width)
    check(good, "model", f"an embedding of shape {base.embed.shape}", expected)
    keys = jax.random.split(key, 4)
    params = {"layer": _init_layer(config.layer, keys[0])}
    trigram = _init_trigram(config, keys[1:])
    if trigram:
        params["trigram"] = trigram
    if config.heads == "full":
        kernel = jnp.concatenate([base.unembed] * 2, axis=1).astype(dtype)
        heads = {"kernel": jnp.stack([kernel] * config.steps)}
        if base.bias is not None:
            heads["bias"] = jnp.stack([base.bias] * config.steps).astype(dtype)
    else:
        eye = jnp.eye(width, dtype=dtype)
        kernel = jnp.concatenate([jnp.zeros_like(eye), eye])
        heads = {"kernel": jnp.stack([kernel] * config.steps)}
    return {**params, "heads": heads}


def _init_layer(config: nn.DecoderConfig, key: jax.Array) -> PyTree:
    x = jnp.zeros((1, 1, config.width), config.dtype)
    attend = lambda query, key, value: (jnp.zeros_like(query), (key, value))
    made = nn.Block(config).init(
        key, x, jnp.zeros((1, 1), jnp.int32), attend, lambda _, value: value
    )["params"]

    def scaled(path: Any, leaf: Array) -> Array:
        if path[-1].key != "kernel":
            return leaf
        return leaf * jnp.asarray(leaf.shape[0] ** -0.5 / 0.02, leaf.dtype)

    return jax.tree_util.tree_map_with_path(scaled, made)


def _init_trigram(config: FusingConfig, keys: Array) -> PyTree:
    width, dtype = config.width, config.layer.dtype
    wide = 3 * width

    def uniform(key: Array, shape: tuple[int, ...], inputs: int) -> Array:
        bound = inputs**-0.5
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound).astype(dtype)

    if config.trigram == "token":
        return {}
    if config.trigram == "narrow":
        return {
            "inner": {"kernel": uniform(keys[0], (wide, width), wide)},
            "outer": {"kernel": uniform(keys[2], (width, width), width)},
        }
    return {
        "inner": {
            "kernel": jnp.zeros((wide, wide), dtype),
            "bias": uniform(keys[1], (wide,), wide),
        },
        "outer": {"kernel": uniform(keys[2], (wide, width), wide)},
    }


def fusing_axes(params: PyTree, config: FusingConfig) -> PyTree:
    """Logical axis names of every parameter, for `jtok.ops.sharding`.

    Args:
      params: `Fusing.params`.
      config: of the same draft stack.

    Returns:
      The tree with a tuple of names at each array: full heads are split over the
      vocabulary, the layer as a layer of a decoder is.

    Source: none in arXiv 2402.15758, which knows one device.

    Example:
      >>> from jtok.testing import tiny_model
      >>> fusing = init_fusing(tiny_model(), jax.random.key(0))
      >>> fusing_axes(fusing.params, fusing.config)["heads"]["kernel"]
      (None, 'vocab', None)
    """
    heads: dict[str, tuple[str | None, ...]] = {"kernel": (None, None, None)}
    if config.heads == "full":
        heads = {"kernel": (None, "vocab", None), "bias": (None, "vocab")}
    whole = lambda tree: jax.tree.map(lambda leaf: (None,) * leaf.ndim, tree)
    axes = {
        "layer": param_axes(params["layer"]),
        "heads": {name: heads[name] for name in params["heads"]},
    }
    if "trigram" in params:
        axes["trigram"] = whole(params["trigram"])
    return axes


def import_fusing(
    weights: Mapping[str, np.ndarray], model: Model, config: FusingConfig | None = None
) -> Fusing:
    """A draft stack from weights under the names of the released code.

    Args:
      weights: name -> array as PyTorch lays it out: `trimlp.0.linear.weight`,
        `fast_layer1.0.self_attn.q_proj.weight`, `chimera_head.0.0.weight` and so on;
        other names are the target's and not read.
      model: the target, of the llama family.
      config: None takes `fusing_config(model)`, with as many steps as there are heads.

    Returns:
      `Fusing`.

    Raises:
      CheckpointError: a weight is missing or has another shape.

    Source: the released code of arXiv 2402.15758.

    Example:
      >>> from jtok.testing import tiny_model
      >>> import_fusing({}, tiny_model())
      Traceback (most recent call last):
      jtok.errors.CheckpointError: weights: there is no 'chimera_head.0.0.weight'.
    """
    if config is None:
        count = sum(n.startswith("chimera_head.") for n in weights)
        config = fusing_config(model, steps=max(count, 1))
    attn, mlp = "fast_layer1.0.self_attn.", "fast_layer1.0.mlp."

    def take(name: str, flip: bool = True) -> Array:
        if name not in weights:
            raise CheckpointError(f"weights: there is no {name!r}.")
        array = jnp.asarray(weights[name], config.layer.dtype)
        return array.T if flip and array.ndim == 2 else array

    kernel = lambda name: {"kernel": take(name)}
    scale = lambda name: {"scale": take(f"fast_layer1.0.{name}.weight")}
    heads = range(config.steps)
    stacked = [take(f"chimera_head.{k}.0.weight", flip=False) for k in heads]
    params = {
        "trigram": {
            "inner": {
                "kernel": take("trimlp.0.linear.weight"),
                "bias": take("trimlp.0.linear.bias"),
            },
            "outer": kernel("trimlp.1.weight"),
        },
        "layer": {
            "attn_norm": scale("input_layernorm"),
            "mlp_norm": scale("post_attention_layernorm"),
            "query": kernel(f"{attn}q_proj.weight"),
            "key": kernel(f"{attn}k_proj.weight"),
            "value": kernel(f"{attn}v_proj.weight"),
            "out": kernel(f"{attn}o_proj.weight"),
            "mlp": {n: kernel(f"{mlp}{n}_proj.weight") for n in ("gate", "up", "down")},
        },
        "heads": {"kernel": jnp.stack(stacked)},
    }
    expected = jax.eval_shape(
        lambda: _init_params(config, base_of(model), jax.random.key(0))
    )
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (params, expected)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            "weights: their shapes are not those of config: "
            f"{jax.tree.map(lambda a: a.shape, params)}."
        )
    vocabulary = getattr(model.vocabulary, "hash", None)
    return Fusing(params, base_of(model), config, vocabulary)
