"""The one model class: parameters, a static description, and a pure forward pass."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Shaped

from jtok import nn
from jtok.errors import ArgumentError, ArgumentTypeError, check, near
from jtok.models.backbone import backbone_of
from jtok.models.cache import Cache, after, laid_out
from jtok.models.compressor import check_compressor
from jtok.models.generation_config import GenerationConfig
from jtok.ops.attention import attention, cached_attention
from jtok.ops.sharding import constrain

__all__ = ["Mixer", "Model", "Output", "Taps", "split_layers", "stack_layers"]

_NO_WINDOW = 2**30  # positions, in scanned layers that have no window

PyTree = Any
Edit = Callable[[int | Array, str, Array], Array]


@struct.dataclass
class Output:
    """What a forward pass returns.

    Attributes:
      logits: float32 `[batch, seq or 1, vocab]`, or None for `logits="none"`.
      hidden: `[batch, seq, dim]` after the final norm.
      taps: site -> `[layers, ...]`, (site, layer) -> that layer's activation.
      cache: the cache with the new tokens pending (of a recurrent model, its memory),
        or None.
    """

    logits: jax.Array | None
    hidden: jax.Array
    taps: dict[Any, jax.Array]
    cache: PyTree


class Taps(NamedTuple):
    """Which activations to return, and what to replace them by.

    Attributes:
      read: site names, or (site, layer) pairs; see `jtok.nn.SITES`.
      edit: `edit(layer, site, x) -> x` of the same shape and dtype, called at every
        site; `layer` is an int, or a traced int32 where layers are scanned.
    """

    read: tuple[str | tuple[str, int], ...] = ()
    edit: Edit | None = None

    @property
    def sites(self) -> frozenset[str]:
        """Names of the sites that are read."""
        return frozenset(r if isinstance(r, str) else r[0] for r in self.read)


class Mixer(NamedTuple):
    """What mixes values where that is no attention under a mask.

    Attributes:
      mix: `(query[batch, seq, heads, head_dim], key, value[batch, kv_heads, seq,
        head_dim], part, window=, scale=, softcap=) -> [batch, seq, heads, head_dim]`.
      parts: what `mix` gets of each layer, on a leading axis; or None.
    """

    mix: Callable[..., Array]
    parts: PyTree = None


@struct.dataclass
class Model:
    """Parameters and what they mean: a frozen pytree that is called on tokens.

    Attributes:
      params: `embed`, `layers` (a tuple of trees, or one tree stacked on a leading
        axis), `final_norm` and, unless tied, `unembed`.
      config: static sizes and choices; its type says which `Backbone` runs.
      vocabulary: the tokenizer, or None.
      processor: what prepares other inputs than text, or None.
      generation_config: stop ids and the like, or None.
      compress: what layers do with tokens where a call says nothing else; None keeps
        all of them.
    """

    params: PyTree
    config: Any = struct.field(pytree_node=False)
    vocabulary: Any = struct.field(pytree_node=False, default=None)
    processor: Any = struct.field(pytree_node=False, default=None)
    generation_config: GenerationConfig | None = struct.field(
        pytree_node=False, default=None
    )
    compress: Any = struct.field(pytree_node=False, default=None)

    def __call__(
        self,
        inputs: Any,
        *,
        positions: Int[Array, "batch seq"] | None = None,
        mask: Shaped[Array, "batch seq"] | Shaped[Array, "batch seq seq"] | None = None,
        bias: Float[Array, " #batch #heads #tokens tokens"] | None = None,
        cache: PyTree = None,
        taps: Taps | Sequence[Any] | None = None,
        gates: Float[Array, "batch tokens"] | None = None,
        logits: Literal["none", "last", "all"] | Int[Array, "batch rows"] = "all",
        compress: Any = "own",
    ) -> Output:
        """Runs the model on ids or vectors, or on what its kind reads (images, sound).

        Args:
          inputs: `[batch, seq]` integer ids (those outside the vocabulary are
            clamped), or `[batch, seq, dim]` vectors in place of rows of the
            embedding; both are scaled where the model scales embeddings. Ids from the
            vocabulary's size on name mask tokens (`params["embed"]["extra"]`), then
            vectors of prompts (`with_vectors`), where there are any.
          positions: `[batch, seq]` int32; None counts from 0, or from the end of the
            cache.
          mask: `[batch, seq]` True or 1 for real ones, or `[batch, seq, seq]` where a
            row may attend to column; None lets all be real. Of a causal model None and
            a two-dimensional mask are causal, too.
          bias: added to the attention scores; not with a cache.
          cache: committed tokens that every input may see; the new ones stay pending
            in `Output.cache` until `commit`.
          taps: `Taps`, or a sequence of what to read.
          gates: `[batch, seq]` how much of the parameters' adapters each token gets,
            0 for none; None gives all of it, or, where there are mask tokens, all to
            those and none to others.
          logits: "all" rows, the "last" one, "none", or `[batch, rows]` indices.
          compress: what layers do with tokens: a `Compressor`, None for nothing, "own"
            for the model's own. Taps are then (site, layer) pairs. Decoders have no
            place for one: they prune by `jtok.compress.prefill`.

        Returns:
          `Output`; with a compressor `CompressedOutput`.

        Raises:
          ArgumentError: a wrong rank or shape, an unknown site, or a compressor of a
            decoder or beside stacked layers.
          ArgumentTypeError: `inputs` is neither integer nor floating, or `compress` is
            no `Compressor`.

        Example:
          >>> from jtok.testing import tiny_model
          >>> tiny_model()(jnp.array([[1, 2, 3]]), logits="last").logits.shape
          (1, 1, 96)
        """
        used = self.compress if _is_own(compress) else compress
        check_compressor(used, self.config)
        backbone = backbone_of(self.config)
        more = {"compress": used} if backbone.compresses else {}
        return backbone.forward(
            self.params,
            self.config,
            inputs,
            positions=positions,
            mask=mask,
            bias=bias,
            cache=cache,
            taps=_as_taps(taps),
            gates=gates,
            logits=logits,
            **more,
        )

    def unembedding(self) -> tuple[jax.Array, jax.Array | None]:
        """`[vocab, dim]` rows that hidden states are compared with, and their bias."""
        return unembedding(self.params)

    @property
    def num_params(self) -> int:
        """Number of parameters; a tied unembedding counts once."""
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(self.params))

    def target(self) -> Any:
        """This model as what `jtok.decode.generate` runs, see `jtok.models.Target`."""
        from jtok.models.target import model_target

        return model_target(self.config)


def _is_own(compress: Any) -> bool:
    return isinstance(compress, str) and compress == "own"


def _as_taps(taps: Any) -> Taps:
    return taps if isinstance(taps, Taps) else Taps(tuple(taps or ()))


def unembedding(params: PyTree) -> tuple[jax.Array, jax.Array | None]:
    """The rows `[vocab, dim]` of the unembedding and its bias or None."""
    if "unembed" in params:
        return params["unembed"]["kernel"], params["unembed"].get("bias")
    return params["embed"]["tokens"], None


def decoder_forward(
    params: PyTree,
    config: nn.DecoderConfig,
    inputs: Any,
    *,
    positions: Any = None,
    mask: Any = None,
    bias: Any = None,
    cache: Cache | None = None,
    taps: Taps | None = None,
    gates: Any = None,
    reach: int | None = None,
    logits: Any = "all",
    mixer: Mixer | None = None,
) -> Output:
    """The forward pass as a function of arrays; `Model.__call__` documents it.

    With a `mixer` there is neither mask nor bias nor cache.
    """
    inputs = jnp.asarray(inputs)
    taps = taps or Taps()
    check(bias is None or cache is None, "bias", "a bias", "None beside a cache")
    check_inputs(config, inputs, taps, nn.SITES)
    batch, seq = inputs.shape[:2]
    if positions is None:
        start = 0 if cache is None else cache.length[:, None]
        positions = jnp.broadcast_to(start + jnp.arange(seq)[None], (batch, seq))
    allow = None if mixer else _allow(mask, batch, seq, config.causal)
    gates = _gates(params, config, inputs, gates)
    x = _embed(params, config, inputs, positions)
    x = constrain(x, "batch", "seq", "embed")
    layers = params["layers"]
    run = _unrolled if isinstance(layers, tuple) else _scanned
    where = _Where(positions, allow, gates, reach, mixer)
    x, pending, read = run(layers, config, x, where, bias, cache, taps)
    if cache is not None:
        pending = after(x, pending)
    norm = nn.Norm(config)
    hidden: Any = norm.apply({"params": params["final_norm"]}, x)
    out_cache = None if cache is None else dataclasses.replace(cache, pending=pending)
    made = logits_of(params, hidden, logits, softcap=config.final_softcap)
    return Output(made, hidden, named_taps(read, taps), out_cache)


def check_inputs(
    config: Any, inputs: Array, taps: Taps, sites: tuple[str, ...]
) -> None:
    """Refuses inputs of another shape or type, and taps of sites that are not there."""
    is_ids = jnp.issubdtype(inputs.dtype, jnp.integer)
    if not is_ids and not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ArgumentTypeError(
            f"inputs: got dtype {inputs.dtype}, expected integer ids or float vectors."
        )
    wanted = "[batch, seq] ids" if is_ids else f"[batch, seq, {config.width}] vectors"
    good = inputs.ndim == (2 if is_ids else 3)
    good = good and (is_ids or inputs.shape[-1] == config.width)
    check(good, "inputs", f"shape {inputs.shape}", wanted)
    for site in taps.sites:
        if site not in sites:
            raise ArgumentError(f"taps: got site {site!r}{near(site, sites)}.")
    for item in taps.read:
        if not isinstance(item, str):
            good = 0 <= item[1] < config.num_layers
            check(good, "taps", item, f"a layer in 0..{config.num_layers - 1}")


class _Where(NamedTuple):
    """What every layer knows of the tokens: positions, who sees whom, gates, reach."""

    positions: Array
    allow: Any  # None beside a mixer
    gates: Array | None
    reach: int | None
    mixer: Mixer | None


def _allow(mask: Any, batch: int, seq: int, is_causal: bool) -> Array:
    causal = jnp.tril(jnp.ones((seq, seq), bool)) | (not is_causal)
    causal = causal[None]
    if mask is None:
        return jnp.broadcast_to(causal, (batch, seq, seq))
    mask = jnp.asarray(mask)
    if mask.shape == (batch, seq):
        return causal & mask[:, None, :].astype(bool)
    shapes = f"[{batch}, {seq}] or [{batch}, {seq}, {seq}]"
    check(mask.shape == (batch, seq, seq), "mask", f"shape {mask.shape}", shapes)
    return mask.astype(bool)


def _gates(
    params: PyTree, config: nn.DecoderConfig, inputs: Array, gates: Any
) -> Array | None:
    """Gates as given; beside mask tokens, open for those alone."""
    if gates is not None:
        gates = jnp.asarray(gates)
        good = gates.shape == inputs.shape[:2]
        check(good, "gates", f"shape {gates.shape}", f"{inputs.shape[:2]}")
        return gates.astype(jnp.float32)
    if "extra" not in params["embed"] or inputs.ndim == 3:
        return None
    mask = inputs - config.vocab_size
    is_mask = (mask >= 0) & (mask < len(params["embed"]["extra"]))
    return is_mask.astype(jnp.float32)


def _embed(
    params: PyTree, config: nn.DecoderConfig, inputs: Array, positions: Array
) -> Array:
    x, embed = inputs, params["embed"]
    if inputs.ndim == 2:
        ids = jnp.clip(inputs, 0, config.vocab_size - 1)
        x = embed["tokens"][ids]
        first = config.vocab_size
        for name in ("extra", "vectors"):
            if name in embed:
                rows = embed[name].at[inputs - first].get(mode="clip").astype(x.dtype)
                x = jnp.where((inputs >= first)[..., None], rows, x)
                first += len(embed[name])
    x = x.astype(config.dtype)
    if config.embed_scale is not None:
        x = x * jnp.asarray(config.embed_scale, x.dtype)  # rounded first, if narrow
    if config.positions == "learned":
        x = x + params["embed"]["positions"].at[positions].get(mode="clip")
    return x


def _attend(
    config: nn.DecoderConfig,
    where: _Where,
    bias: Any,
    layer_cache: tuple[Array, Array] | None,
    length: Any,
    window: int | Array | None,
    part: PyTree = None,
) -> Callable[[Array, Array, Array], tuple[Array, tuple[Array, Array]]]:
    positions, allow, mixer = where.positions, where.allow, where.mixer
    options: dict[str, Any] = {
        "scale": config.score_scale,
        "softcap": config.attn_softcap,
    }
    if mixer is not None:
        return lambda query, key, value: (
            mixer.mix(query, key, value, part, window=window, **options),
            (key, value),
        )
    if window is not None and layer_cache is None:
        distance = positions[:, :, None] - positions[:, None, :]
        allow = allow & (distance < window)

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, Any]:
        if layer_cache is None:
            mixed = attention(query, key, value, allow, bias=bias, **options)
        else:
            options.update(positions=positions, window=window, reach=where.reach)
            mixed = cached_attention(
                query, key, value, *layer_cache, length, allow, **options
            )
        return mixed, (key, value)

    return attend


def recording(
    taps: Taps, index: Any
) -> tuple[Callable[[str, Array], Array], dict[str, Array]]:
    """What a block of layer `index` calls at its sites, and what was read there."""
    read: dict[str, Array] = {}

    def tap(site: str, value: Array) -> Array:
        if taps.edit is not None:
            value = taps.edit(index, site, value)
        if site in taps.sites:
            read[site] = value
        return value

    return tap, read


def _run_block(
    layer: PyTree, index: Any, block: nn.Block, x: Array, where: _Where,
    attend: Any, taps: Taps, local: bool | Array,
) -> tuple[Array, Any, dict[str, Array]]:  # fmt: skip
    tap, read = recording(taps, index)
    x, pair = block.apply(
        {"params": layer}, x, where.positions, attend, tap, local, where.gates
    )
    return constrain(x, "batch", "seq", "embed"), pair, read


def _unrolled(
    layers: tuple[PyTree, ...], config: nn.DecoderConfig, x: Array, where: _Where,
    bias: Any, cache: Cache | None, taps: Taps,
) -> tuple[Array, Any, dict[str, list[Array]]]:  # fmt: skip
    pending: list[Any] = []
    collected: dict[str, list[Array]] = {site: [] for site in taps.sites}
    for index, layer in enumerate(layers):
        old = None if cache is None else jax.tree.map(laid_out, cache.layers[index])
        length = None if cache is None else cache.length
        window = config.window(index)
        part = None if where.mixer is None else where.mixer.parts
        part = jax.tree.map(lambda x, index=index: x[index], part)
        attend = _attend(config, where, bias, old, length, window, part)
        block, local = nn.Block(config, config.sparse(index)), window is not None
        x, pair, read = _run_block(layer, index, block, x, where, attend, taps, local)
        pending.append(pair)
        for site, value in read.items():
            collected[site].append(value)
    return x, tuple(pending), collected


def _scanned(
    layers: PyTree, config: nn.DecoderConfig, x: Array, where: _Where,
    bias: Any, cache: Cache | None, taps: Taps,
) -> tuple[Array, Any, dict[str, Array]]:  # fmt: skip
    if cache is not None:
        raise ArgumentError(
            "cache: got a cache with stacked layers, expected per-layer parameters; "
            "use jtok.models.split_layers(params)."
        )
    block = nn.Block(config, config.sparse(0))  # stacked layers are of one kind

    def body(x: Array, item: Any) -> tuple[Array, dict[str, Array]]:
        index, layer, window, part = item
        attend = _attend(config, where, bias, None, None, window, part)
        local = False if window is None else window < _NO_WINDOW
        x, _, read = _run_block(layer, index, block, x, where, attend, taps, local)
        return x, read

    indices = jnp.arange(config.num_layers)
    windows = None
    if config.windows:
        sizes = [_NO_WINDOW if size is None else size for size in config.windows]
        windows = jnp.asarray(sizes, jnp.int32)
    # For the gradient only products with weights are kept: scores and weights of the
    # attention, which grow with the square of the length, are computed again.
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    body = jax.checkpoint(body, policy=keep, prevent_cse=False)
    parts = None if where.mixer is None else where.mixer.parts
    x, read = jax.lax.scan(body, x, (indices, layers, windows, parts))
    return x, None, read


def named_taps(read: dict[str, Any], taps: Taps) -> dict[Any, Array]:
    """What was read, by the names under which it was asked for."""
    named: dict[Any, Array] = {}
    for item in taps.read:
        values = read[item if isinstance(item, str) else item[0]]
        if isinstance(item, str):
            named[item] = jnp.stack(values) if isinstance(values, list) else values
        else:
            named[item] = values[item[1]]
    return named


def logits_of(
    params: PyTree, hidden: Array, which: Any, *, softcap: float | None = None
) -> Array | None:
    """Float32 logits of all rows, the last, none, or those of given indices."""
    if isinstance(which, str):
        known = ("none", "last", "all")
        check(which in known, "logits", which, "'none', 'last', 'all' or row indices")
        if which == "none":
            return None
        rows = hidden[:, -1:] if which == "last" else hidden
    else:
        index = jnp.asarray(which)
        good = index.ndim == 2 and index.shape[0] == hidden.shape[0]
        check(good, "logits", f"shape {index.shape}", "[batch, rows] indices")
        rows = jnp.take_along_axis(hidden, index[..., None], axis=1)
    weight, bias = unembedding(params)
    logits = jnp.einsum("bnd,vd->bnv", rows, weight, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)[None, None]
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def split_layers(params: PyTree) -> PyTree:
    """Turns layers stacked on a leading axis into a tuple of trees, for decoding.

    Args:
      params: a model's parameters; already split ones come back as they are.

    Returns:
      The same parameters with `layers` a tuple.

    Example:
      >>> stacked = {"layers": {"w": jnp.ones((2, 3))}}
      >>> len(split_layers(stacked)["layers"])
      2
    """
    if isinstance(params["layers"], tuple):
        return params
    num_layers = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = tuple(
        jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(num_layers)
    )
    return {**params, "layers": layers}


def stack_layers(params: PyTree) -> PyTree:
    """Turns a tuple of layers into one tree stacked on a leading axis, for training.

    Args:
      params: a model's parameters; already stacked ones come back as they are.

    Returns:
      The same parameters with `layers` one tree.

    Raises:
      ArgumentError: the layers are not of one kind: only some have experts.

    Example:
      >>> split = {"layers": ({"w": jnp.ones(3)}, {"w": jnp.zeros(3)})}
      >>> stack_layers(split)["layers"]["w"].shape
      (2, 3)
    """
    if not isinstance(params["layers"], tuple):
        return params
    kinds = {jax.tree.structure(layer) for layer in params["layers"]}
    if len(kinds) > 1:
        raise ArgumentError(
            "params: the layers have different parameters (some have experts), "
            "expected layers of one kind; leave them split."
        )
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *params["layers"])
    return {**params, "layers": stacked}


@functools.lru_cache(maxsize=256)
def parsed(source: str) -> dict[str, Any]:
    """The configuration a `DecoderConfig.source` holds; do not change it."""
    return json.loads(source)
