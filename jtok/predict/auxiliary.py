"""Auxiliary heads: each predicts one of the tokens after the next one.

A model with n - 1 heads predicts n tokens from every position: itself the next one,
head i (from 1) the one i + 1 ahead. Heads are there for training, or to draft; the
model does not need them.

Source: Chen et al. 2025, arXiv 2506.07833, and its code; Gloeckle et al.
2024, arXiv 2404.19737 (heads in parallel to the last layer). Differs: heads read what
the last layer reads, start as its copy and go through the final norm, so that at first
each says what the model says; `HeadsConfig.official` gives the code's choices.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jtok import nn
from jtok.errors import ArgumentError, ArgumentTypeError, check, near
from jtok.models import Model
from jtok.models.checkpoint import axis_units, param_axes
from jtok.ops import attention
from jtok.ops.sharding import constrain, onto_mesh

__all__ = [
    "HEAD_INPUTS",
    "AuxiliaryHeads",
    "HeadsConfig",
    "auxiliary_hidden",
    "check_heads",
    "head_norm",
    "head_unembedding",
    "init_heads",
    "run_head",
    "split_heads",
]

PyTree = Any
Attend = Callable[[Array, Array, Array], tuple[Array, tuple[Array, Array]]]

HEAD_INPUTS = ("pre_last", "final_norm")
_ARCHS = ("decoder", "linear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Which heads, whatever the model.

    Attributes:
      num_auxiliary: heads, so predictions beside the model's own; 0 for none.
      depth: blocks of a head.
      arch: "decoder" (blocks of the model's own kind) or "linear" (x + silu(Wx + b)).
      head_input: what heads read: "pre_last" (what the last layer reads) or
        "final_norm" (what the unembedding reads).
      tuning_input: the same while the model is fine-tuned with them; None as before.
      head_norm: what a head makes goes through the model's final norm; not what a
        linear head adds to that norm's own output, which is normed already.
      layer: the layer whose kind (window, experts) and, where heads start as copies,
        weights the blocks have; negative ones count from the end.
      separate_unembedding: each head has an unembedding of its own.
      compat: "official" lets heads count positions from 0 and see padding and other
        documents of a row.
    """

    num_auxiliary: int = 4
    depth: int = 1
    arch: Literal["decoder", "linear"] = "decoder"
    head_input: Literal["pre_last", "final_norm"] = "pre_last"
    tuning_input: Literal["pre_last", "final_norm"] | None = None
    head_norm: bool = True
    layer: int = -1
    separate_unembedding: bool = False
    compat: Literal["official"] | None = None

    def __post_init__(self) -> None:
        expected = "at least 0: the number of predictions is one more"
        check(self.num_auxiliary >= 0, "num_auxiliary", self.num_auxiliary, expected)
        check(self.depth >= 1, "depth", self.depth, "at least 1")
        if self.arch not in _ARCHS:
            raise ArgumentError(f"arch: got {self.arch!r}{near(self.arch, _ARCHS)}.")
        for name in ("head_input", "tuning_input"):
            value = getattr(self, name)
            if value not in HEAD_INPUTS and (name, value) != ("tuning_input", None):
                hint = near(str(value), HEAD_INPUTS)
                raise ArgumentError(f"{name}: got {value!r}{hint}.")
        known = self.compat in (None, "official")
        check(known, "compat", self.compat, "None or 'official'")

    @classmethod
    def official(cls, **changes: Any) -> "HeadsConfig":
        """The choices of the paper's code, whose numbers the paper reports.

        Heads learn on the input of the last layer, as copies of the layer before it,
        and are then used on the output of the final norm; no norm follows them.

        Args:
          **changes: fields to set otherwise.

        Returns:
          `HeadsConfig`.

        Example:
          >>> HeadsConfig.official().layer
          -2
        """
        fields: dict[str, Any] = {
            "tuning_input": "final_norm",
            "head_norm": False,
            "layer": -2,
            "compat": "official",
        }
        return cls(**{**fields, **changes})

    @property
    def predictions(self) -> int:
        """Tokens that are predicted from a position, the next one included."""
        return self.num_auxiliary + 1


@struct.dataclass
class AuxiliaryHeads:
    """Heads and the model that they are for: a frozen pytree.

    Attributes:
      params: `layers`, a tuple of `depth` trees, and maybe `unembed`; every array has a
        leading axis `[num_auxiliary]`.
      config: which heads.
      base: configuration of the model.
    """

    params: PyTree
    config: HeadsConfig = struct.field(pytree_node=False)
    base: nn.DecoderConfig = struct.field(pytree_node=False)

    @property
    def layer(self) -> int:
        """Index of the layer whose kind the blocks are of."""
        return self.config.layer % self.base.num_layers


def init_heads(
    model: Model, config: HeadsConfig | None = None, *, key: jax.Array | None = None
) -> AuxiliaryHeads:
    """Makes heads for a model, on the current mesh.

    Decoder blocks start as copies of a layer of the model, further blocks of a head as
    the identity; linear ones, too, start as the identity. So with the default options
    every head says at first what the model says. As in the official code, all blocks
    of `compat="official"` are plain copies, and the biases of its linear ones random.

    Args:
      model: with split or stacked layers.
      config: which heads; None takes `HeadsConfig()`.
      key: a typed key, consumed, makes decoder blocks random; None copies. Linear
        heads need it for `compat="official"` only.

    Returns:
      `AuxiliaryHeads`.

    Raises:
      ArgumentError: the model has no such layer, or a `key` is missing.
      ArgumentTypeError: the model is no transformer decoder.

    Source: Chen et al. 2025, arXiv 2506.07833. Differs: see the module.

    Example:
      >>> from jtok.testing import tiny_model
      >>> heads = init_heads(tiny_model(), HeadsConfig(num_auxiliary=3))
      >>> heads.params["layers"][0]["query"]["kernel"].shape
      (3, 32, 32)
    """
    config = HeadsConfig() if config is None else config
    base = model.config
    check_decoder(base)
    good = -base.num_layers <= config.layer < base.num_layers
    check(good, "layer", config.layer, f"a layer of the {base.num_layers}")
    make = _linear_blocks if config.arch == "linear" else _decoder_blocks
    params = {"layers": make(model, config, key)}
    if config.separate_unembedding:
        weight, bias = model.unembedding()
        own = {"kernel": weight} if bias is None else {"kernel": weight, "bias": bias}
        params["unembed"] = jax.tree.map(lambda x: _repeat(x, config), own)
    units = axis_units(base)
    params = onto_mesh(params, param_axes(params), units=units)
    return AuxiliaryHeads(params, config, base)


def check_decoder(base: Any) -> None:
    """Refuses models that are no transformer decoders."""
    if not isinstance(base, nn.DecoderConfig):
        kind = type(base).__name__
        raise ArgumentTypeError(
            f"model: got a {kind}, expected one of a DecoderConfig."
        )


def check_heads(heads: AuxiliaryHeads, model: Model) -> None:
    """Refuses heads that were made for a model of other sizes.

    Args:
      heads: what shall be used.
      model: with what.

    Raises:
      ArgumentError: another width, vocabulary or number of layers; it says which.
      ArgumentTypeError: the model is no transformer decoder.

    Example:
      >>> from jtok.testing import tiny_model
      >>> check_heads(init_heads(tiny_model()), tiny_model())
    """
    check_decoder(model.config)
    for name in ("width", "vocab_size", "num_layers", "num_heads", "head_dim"):
        made, got = getattr(heads.base, name), getattr(model.config, name)
        expected = f"heads for a model of {name}={got}"
        check(made == got, "heads", f"heads for {name}={made}", expected)


def _repeat(leaf: Array, config: HeadsConfig) -> Array:
    return jnp.broadcast_to(leaf[None], (config.num_auxiliary, *leaf.shape)).copy()


def _decoder_blocks(
    model: Model, config: HeadsConfig, key: jax.Array | None
) -> tuple[PyTree, ...]:
    layers, index = model.params["layers"], config.layer % model.config.num_layers
    is_split = isinstance(layers, tuple)
    layer = layers[index] if is_split else jax.tree.map(lambda x: x[index], layers)
    if key is None:
        first = jax.tree.map(lambda x: _repeat(x, config), layer)
        official = config.compat == "official"
        later = first if official else _as_identity(first)
        return (first, *[later] * (config.depth - 1))
    shape = (config.depth, max(config.num_auxiliary, 1))
    made = [
        [_random_block(model.config, index, one) for one in row]
        for row in jax.random.split(key, shape)
    ]
    stack = lambda *leaves: jnp.stack(leaves)[: config.num_auxiliary]
    return tuple(jax.tree.map(stack, *row) for row in made)


def _as_identity(block: PyTree) -> PyTree:
    """A block whose two branches add nothing."""
    ends = ("out", "down", "expert_down")

    def emptied(path: tuple[Any, ...], leaf: Array) -> Array:
        return jnp.zeros_like(leaf) if path[-2].key in ends else leaf

    return jax.tree_util.tree_map_with_path(emptied, block)


def _random_block(base: nn.DecoderConfig, index: int, key: jax.Array) -> PyTree:
    x = jnp.zeros((1, 1, base.width), base.dtype)
    heads = (1, 1, base.num_heads, base.head_dim)
    attend = lambda q, k, v: (jnp.zeros(heads, q.dtype), (k, v))
    block = nn.Block(base, base.sparse(index))
    at = jnp.zeros((1, 1), jnp.int32)
    return block.init(key, x, at, attend, lambda _, value: value)["params"]


def _linear_blocks(
    model: Model, config: HeadsConfig, key: jax.Array | None
) -> tuple[PyTree, ...]:
    count, width, dtype = config.num_auxiliary, model.config.width, model.config.dtype
    kernel = jnp.zeros((count, width, width), dtype)
    biases = jnp.zeros((config.depth, count, width), dtype)
    if config.compat == "official":
        check(key is not None, "key", key, "a key: official biases start random")
        given: Any = key
        limit = width**-0.5
        biases = jax.random.uniform(given, biases.shape, dtype, -limit, limit)
    return tuple({"linear": {"kernel": kernel, "bias": bias}} for bias in biases)


# ---- running heads


def split_heads(params: PyTree) -> tuple[PyTree, ...]:
    """Parameters of every head by itself, for decoding.

    Args:
      params: of `AuxiliaryHeads`.

    Returns:
      A tree for each head, without the leading axis.

    Example:
      >>> [h["w"].shape for h in split_heads({"w": jnp.ones((2, 3))})]
      [(3,), (3,)]
    """
    count = jax.tree.leaves(params)[0].shape[0]
    return tuple(jax.tree.map(lambda x, i=i: x[i], params) for i in range(count))


def run_head(
    head: PyTree,
    heads: AuxiliaryHeads,
    x: Float[Array, "batch seq dim"],
    positions: Int[Array, "batch seq"],
    attends: Sequence[Attend],
) -> tuple[Float[Array, "batch seq dim"], tuple[tuple[Array, Array], ...]]:
    """The blocks of one head.

    Args:
      head: its parameters, without the leading axis.
      heads: what kind of heads; their parameters are not read.
      x: `[batch, seq, dim]` what heads read.
      positions: `[batch, seq]` int32.
      attends: for each block what mixes the tokens, see `jtok.nn.Block`.

    Returns:
      `[batch, seq, dim]` before any norm, and keys and values of each block (nothing
      for linear heads).
    """
    base = heads.base
    if heads.config.arch == "linear":
        for linear in head["layers"]:
            layer = nn.Linear(base.width, True, base.dtype)
            change: Any = layer.apply({"params": linear["linear"]}, x)
            x = x + jax.nn.silu(change)
        return x, ()
    pairs: list[Any] = []
    block: Any = nn.Block(base, base.sparse(heads.layer))
    local = base.window(heads.layer) is not None
    for layer, attend in zip(head["layers"], attends, strict=True):
        x, pair = block.apply(
            {"params": layer}, x, positions, attend, lambda _, value: value, local, None
        )
        x = constrain(x, "batch", "seq", "embed")
        pairs.append(pair)
    return x, tuple(pairs)


def head_norm(heads: AuxiliaryHeads, norm: PyTree, x: Array, head_input: str) -> Array:
    """What the unembedding reads of what a head made.

    Args:
      heads: what kind of heads.
      norm: parameters of the model's final norm.
      x: `[..., dim]` from `run_head`.
      head_input: what the head read.

    Returns:
      `[..., dim]`.
    """
    is_normed = heads.config.arch == "linear" and head_input == "final_norm"
    if is_normed or not heads.config.head_norm:
        return x
    made: Any = nn.Norm(heads.base).apply({"params": norm}, x)
    return made


def head_unembedding(head: PyTree, shared: Any) -> tuple[Array, Array | None]:
    """Weight and bias of a head's unembedding: its own, else the model's.

    Args:
      head: parameters of one head.
      shared: `(weight, bias or None)` of the model.

    Returns:
      `[vocab, dim]`, and `[vocab]` or None.
    """
    if "unembed" not in head:
        return shared
    return head["unembed"]["kernel"], head["unembed"].get("bias")


def whole_attend(
    heads: AuxiliaryHeads,
    positions: Int[Array, "batch seq"],
    mask: Bool[Array, "batch seq"] | Bool[Array, "batch seq seq"] | None,
) -> Attend:
    """Attention of all tokens of a text to those before them, without a cache."""
    base, (batch, seq) = heads.base, positions.shape
    allow = jnp.broadcast_to(jnp.tril(jnp.ones((seq, seq), bool)), (batch, seq, seq))
    if mask is not None:
        allow = allow & (mask[:, None, :] if mask.ndim == 2 else mask).astype(bool)
    window = base.window(heads.layer)
    if window is not None:
        allow = allow & (positions[:, :, None] - positions[:, None, :] < window)

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, Any]:
        mixed = attention(
            query, key, value, allow,
            scale=base.score_scale, softcap=base.attn_softcap,
        )  # fmt: skip
        return mixed, (key, value)

    return attend


def base_states(
    model: Model,
    ids: Int[Array, "batch seq"],
    head_input: str,
    positions: Any = None,
    mask: Any = None,
) -> tuple[Float[Array, "batch seq dim"], Float[Array, "batch seq dim"]]:
    """The model's hidden states after the final norm, and what heads read."""
    site = ("resid_pre", model.config.num_layers - 1)
    taps = [site] if head_input == "pre_last" else []
    out = model(ids, positions=positions, mask=mask, taps=taps, logits="none")
    return out.hidden, out.taps[site] if taps else out.hidden


def auxiliary_hidden(
    model: Model,
    heads: AuxiliaryHeads,
    ids: Int[Array, "batch seq"],
    *,
    positions: Int[Array, "batch seq"] | None = None,
    mask: Bool[Array, "batch seq"] | Bool[Array, "batch seq seq"] | None = None,
    head_input: Literal["pre_last", "final_norm"] | None = None,
) -> Float[Array, "heads batch seq dim"]:
    """What the unembedding reads of every head.

    Args:
      model: the model.
      heads: made for it.
      ids: `[batch, seq]` int32.
      positions: `[batch, seq]` int32; None counts from 0.
      mask: as the model takes it.
      head_input: what heads read; None takes `heads.config.head_input`.

    Returns:
      `[num_auxiliary, batch, seq, dim]`.

    Raises:
      ArgumentError: heads for another model, or an unknown `head_input`.

    Source: Chen et al. 2025, arXiv 2506.07833.

    Example:
      >>> from jtok.testing import tiny_model
      >>> heads = init_heads(tiny_model())
      >>> auxiliary_hidden(tiny_model(), heads, jnp.array([[1, 2, 3]])).shape
      (4, 1, 3, 32)
    """
    check_heads(heads, model)
    read = resolved_input(heads, head_input)
    _, x = base_states(model, ids, read, positions, mask)
    positions, mask = head_places(heads, ids, positions, mask)
    attend = whole_attend(heads, positions, mask)
    attends = (attend,) * heads.config.depth

    def one(_: None, head: PyTree) -> tuple[None, Array]:
        made = run_head(head, heads, x, positions, attends)[0]
        return None, head_norm(heads, model.params["final_norm"], made, read)

    return jax.lax.scan(one, None, heads.params)[1]


def resolved_input(heads: AuxiliaryHeads, head_input: str | None) -> str:
    """What heads read, checked."""
    head_input = heads.config.head_input if head_input is None else head_input
    if head_input not in HEAD_INPUTS:
        hint = near(str(head_input), HEAD_INPUTS)
        raise ArgumentError(f"head_input: got {head_input!r}{hint}.")
    return head_input


def head_places(
    heads: AuxiliaryHeads, ids: Array, positions: Any, mask: Any
) -> tuple[Array, Any]:
    """Positions and mask of the heads: the model's, or the official code's."""
    counted = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    if heads.config.compat == "official":
        return counted, None
    return (counted if positions is None else positions), mask
