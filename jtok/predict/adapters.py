"""Low-rank adapters of a decoder: made, put in place, merged, and kept as PEFT does.

A linear map with an adapter computes `x W + gate * scale * (x A) B`. Adapters are a
tree of their own, so that they train while the parameters stay frozen.

Source: Hu et al. 2021, arXiv 2106.09685; gates per token: arXiv 2507.11851, section 3.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jtok.errors import ArgumentError, ArgumentTypeError, check, near
from jtok.models import Model, split_layers, stack_layers
from jtok.nn import DecoderConfig

__all__ = ["TARGETS", "attach", "detach", "lora_init", "merge", "unmerge"]

PyTree = Any

TARGETS = ("query", "key", "value", "out", "gate", "up", "down")
_IN_MLP = ("gate", "up", "down")


def lora_init(
    model: Model | DecoderConfig,
    rank: int,
    key: jax.Array,
    *,
    targets: Sequence[str] | None = None,
) -> PyTree:
    """Makes adapters that change nothing yet: `lora_a` is random, `lora_b` zero.

    Args:
      model: a decoder, or its configuration.
      rank: inner size, 1 to the smallest side of a kernel.
      key: typed PRNG key, consumed.
      targets: linear maps by name, of `TARGETS`; None takes all that the model has.
        Experts and their router get none.

    Returns:
      `{"layers": ...}` in float32, beside the parameters' own paths: `lora_a`
      `[layers, in, rank]`, normal with variance 1 / in, and `lora_b` `[layers, rank,
      out]`; where layers are of several kinds, a tuple of trees without the first axis.

    Raises:
      ArgumentError: a rank out of range, an unknown target, or one that no layer has.
      ArgumentTypeError: `model` is no decoder.

    Source: Hu et al. 2021, arXiv 2106.09685, section 4.1.

    Example:
      >>> from jtok.testing import tiny_config
      >>> made = lora_init(tiny_config(), 2, jax.random.key(0), targets=["query"])
      >>> made["layers"]["query"]["lora_a"].shape
      (2, 32, 2)
    """
    config = decoder_config(model)
    shapes = kernel_shapes(config)
    chosen = TARGETS if targets is None else tuple(targets)
    for name in chosen:
        if name not in TARGETS:
            raise ArgumentError(f"targets: got {name!r}{near(name, TARGETS)}.")
    layers = [[n for n in chosen if n in shapes[i]] for i in range(config.num_layers)]
    present = {name for layer in layers for name in layer}
    absent = [name for name in chosen if name not in present]
    good = bool(present) and (targets is None or not absent)
    check(good, "targets", chosen, f"some of {sorted(set().union(*shapes))}")
    most = min(min(shapes[i][n]) for i, layer in enumerate(layers) for n in layer)
    check(1 <= rank <= most, "rank", rank, f"1 to {most}")
    keys = jax.random.split(key, (config.num_layers, len(TARGETS)))

    def adapter(index: int, name: str) -> PyTree:
        rows, columns = shapes[index][name]
        noise = jax.random.normal(keys[index, TARGETS.index(name)], (rows, rank))
        return {"lora_a": noise * rows**-0.5, "lora_b": jnp.zeros((rank, columns))}

    made = tuple(
        nest({name: adapter(index, name) for name in layer})
        for index, layer in enumerate(layers)
    )
    return as_stacked({"layers": made})


def attach(params: PyTree, adapters: PyTree, scale: float | jax.Array = 1.0) -> PyTree:
    """Puts adapters beside the kernels of a model's parameters.

    Nothing is copied. Gradients reach `adapters` and `scale`. Which tokens use the
    adapters is the business of the call: `Model(..., gates=)`.

    Args:
      params: of a decoder, split or stacked, without adapters.
      adapters: as `lora_init` makes them, in either form.
      scale: factor on the change (alpha / rank), 1 in the formula of the paper.

    Returns:
      Parameters in the form of `params`.

    Raises:
      ArgumentError: there are adapters already, or a linear map is not there or has
        another shape.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model()
      >>> made = lora_init(model, 2, jax.random.key(0))
      >>> sorted(attach(model.params, made)["layers"][0]["query"])
      ['kernel', 'lora_a', 'lora_b']
    """

    def put(linear: PyTree, adapter: PyTree) -> PyTree:
        up = adapter["lora_b"]
        if not (isinstance(scale, int | float) and scale == 1.0):
            up = up * scale
        return {**linear, "lora_a": adapter["lora_a"], "lora_b": up}

    return _on_linears(params, adapters, put)


def detach(params: PyTree) -> PyTree:
    """The parameters without adapters and extra rows of the embedding.

    Args:
      params: of a decoder.

    Returns:
      What `attach` was given.

    Example:
      >>> from jtok.testing import tiny_model
      >>> params = tiny_model().params
      >>> made = lora_init(tiny_model(), 2, jax.random.key(0))
      >>> back = detach(attach(params, made))
      >>> jax.tree.structure(back) == jax.tree.structure(params)
      True
    """

    def without(tree: PyTree) -> PyTree:
        if isinstance(tree, tuple):
            return tuple(without(branch) for branch in tree)
        if not isinstance(tree, Mapping):
            return tree
        gone = ("lora_a", "lora_b")
        return {name: without(x) for name, x in tree.items() if name not in gone}

    embed = {name: x for name, x in params["embed"].items() if name != "extra"}
    return {**params, "layers": without(params["layers"]), "embed": embed}


def merge(params: PyTree, adapters: PyTree, scale: float | jax.Array = 1.0) -> PyTree:
    """Adds adapters into the kernels: the model for which every gate is open.

    Adapters that some tokens use and others do not cannot be merged.

    Args:
      params: of a decoder, split or stacked, without adapters.
      adapters: as `lora_init` makes them.
      scale: factor on the change.

    Returns:
      Parameters of the form and dtype of `params`; the sum is made in float32.

    Raises:
      ArgumentError: as `attach`.

    Source: Hu et al. 2021, arXiv 2106.09685, section 4.1.

    Example:
      >>> from jtok.testing import tiny_model
      >>> params = tiny_model().params
      >>> made = lora_init(tiny_model(), 2, jax.random.key(0))
      >>> same = merge(params, made)["layers"][0]["out"]["kernel"]
      >>> bool((same == params["layers"][0]["out"]["kernel"]).all())  # lora_b is zero
      True
    """

    def add(linear: PyTree, adapter: PyTree) -> PyTree:
        kernel = linear["kernel"]
        change = jnp.matmul(
            adapter["lora_a"].astype(jnp.float32),
            adapter["lora_b"].astype(jnp.float32) * scale,
            precision="highest",
        )
        summed = kernel.astype(jnp.float32) + change
        return {**linear, "kernel": summed.astype(kernel.dtype)}

    return _on_linears(params, adapters, add)


def unmerge(params: PyTree, adapters: PyTree, scale: float | jax.Array = 1.0) -> PyTree:
    """Takes merged adapters out of the kernels again, up to rounding.

    Args:
      params: what `merge` gave.
      adapters: as they were merged.
      scale: as it was.

    Returns:
      Parameters of the form and dtype of `params`.

    Raises:
      ArgumentError: as `attach`.

    Example:
      >>> from jtok.testing import tiny_model
      >>> params = tiny_model().params
      >>> made = lora_init(tiny_model(), 2, jax.random.key(0))
      >>> back = unmerge(merge(params, made), made)
      >>> jax.tree.structure(back) == jax.tree.structure(params)
      True
    """
    return merge(params, adapters, -scale)


# ---- trees


def decoder_config(model: Any) -> DecoderConfig:
    """The configuration of a decoder, refusing other models."""
    config = model.config if isinstance(model, Model) else model
    if not isinstance(config, DecoderConfig):
        kind = type(config).__name__
        raise ArgumentTypeError(
            f"model: got {kind}, expected a decoder's Model or DecoderConfig; other "
            "models take no adapters."
        )
    return config


def kernel_shapes(config: DecoderConfig) -> list[dict[str, tuple[int, int]]]:
    """For each layer the `(in, out)` of every linear map that takes an adapter."""
    width, heads = config.width, config.num_heads * config.head_dim
    shared, hidden = config.num_kv_heads * config.head_dim, config.mlp_width
    attention = {
        "query": (width, heads),
        "key": (width, shared),
        "value": (width, shared),
        "out": (heads, width),
    }
    mlp = {"up": (width, hidden), "down": (hidden, width)}
    if config.mlp == "gated":
        mlp["gate"] = (width, hidden)
    sparse = map(config.sparse, range(config.num_layers))
    return [attention if experts else {**attention, **mlp} for experts in sparse]


def nest(flat: Mapping[str, PyTree]) -> PyTree:
    """One layer's adapters, by name, at the paths that the parameters have."""
    tree = {name: flat[name] for name in flat if name not in _IN_MLP}
    inner = {name: flat[name] for name in flat if name in _IN_MLP}
    return {**tree, "mlp": inner} if inner else tree


def flatten(layer: PyTree) -> dict[str, PyTree]:
    """The inverse of `nest`."""
    outer = {name: x for name, x in layer.items() if name != "mlp"}
    return {**outer, **layer.get("mlp", {})}


def as_stacked(adapters: PyTree) -> PyTree:
    """Adapters on a leading axis, where all layers have the same."""
    kinds = [jax.tree.map(jnp.shape, layer) for layer in adapters["layers"]]
    alike = all(kind == kinds[0] for kind in kinds)
    return stack_layers(adapters) if alike else adapters


def _on_linears(
    params: PyTree, adapters: PyTree, change: Callable[[PyTree, PyTree], PyTree]
) -> PyTree:
    """Applies `change(linear, adapter)` wherever there is an adapter."""
    if not isinstance(adapters, Mapping) or "layers" not in adapters:
        kind = type(adapters).__name__
        raise ArgumentTypeError(
            f"adapters: got {kind}, expected the tree that lora_init makes."
        )
    layers = params["layers"]
    if isinstance(layers, tuple):
        every = split_layers(adapters)["layers"]
        got, expected = f"{len(every)} layers", f"{len(layers)} as the model has"
        check(len(every) == len(layers), "adapters", got, expected)
        changed: PyTree = tuple(
            _walk(layer, some, change, f"layers/{index}")
            for index, (layer, some) in enumerate(zip(layers, every))
        )
    else:
        some = stack_layers(adapters)["layers"]
        changed = _walk(layers, some, change, "layers")
    return {**params, "layers": changed}


def _walk(
    tree: PyTree, adapters: PyTree, change: Callable[..., PyTree], path: str
) -> PyTree:
    if "lora_a" in adapters:
        _check_fit(tree, adapters, path)
        return change(tree, adapters)
    out = dict(tree)
    for name, branch in adapters.items():
        there = isinstance(tree.get(name), Mapping)
        check(there, "adapters", f"{path}/{name}", "a linear map that the model has")
        out[name] = _walk(tree[name], branch, change, f"{path}/{name}")
    return out


def _check_fit(linear: PyTree, adapter: PyTree, path: str) -> None:
    there = "kernel" in linear
    check(there, "adapters", path, "a linear map that the model has")
    bare = "lora_a" not in linear
    check(bare, "params", f"an adapter at {path}", "none; detach it, or merge it")
    *lead, rows, columns = linear["kernel"].shape
    down, up = adapter["lora_a"].shape, adapter["lora_b"].shape
    rank = down[-1]
    good = down == (*lead, rows, rank) and up == (*lead, rank, columns)
    got = f"{path} of shapes {down} and {up}"
    check(good, "adapters", got, f"{(*lead, rows, 'rank')}, {(*lead, 'rank', columns)}")
