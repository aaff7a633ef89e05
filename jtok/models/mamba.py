"""Mamba language models: forward pass, memory, decoding, and their checkpoints."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

from jtok import nn
from jtok.errors import ArgumentError, UnsupportedCheckpointError, check
from jtok.models import model as core
from jtok.models.target import Info, StepInput, StepOutput, Target
from jtok.models.weights import Weight
from jtok.ops.readouts import Readout, Want
from jtok.ops.sharding import constrain
from jtok.ops.unembed import readout

__all__ = ["MambaCache", "forward", "init_cache", "init_params", "read", "target"]

PyTree = Any
Fields = dict[str, Any]
Axes = tuple[str | None, ...]

# Logical names of the axes of a parameter, by the end of its path.
AXES: tuple[tuple[str, Axes], ...] = (
    ("mixer/in_proj/kernel", ("embed", "mlp")),
    ("mixer/in_proj/bias", ("mlp",)),
    ("mixer/gate_proj/kernel", ("embed", "mlp")),
    ("mixer/gate_proj/bias", ("mlp",)),
    ("mixer/conv/kernel", (None, None, "mlp")),
    ("mixer/conv/bias", ("mlp",)),
    ("mixer/x_proj/kernel", ("mlp", None)),
    ("mixer/dt_proj/kernel", (None, "mlp")),
    ("mixer/dt_proj/bias", ("mlp",)),
    ("mixer/A_log", ("mlp", None)),
    ("mixer/D", ("mlp",)),
    ("mixer/out_proj/kernel", ("mlp", "embed")),
)


@struct.dataclass
class MambaCache:
    """What a Mamba model remembers of the committed tokens; its size never grows.

    The nodes of the last call wait as the few vectors that say what they would do to
    the memory (`jtok.nn.MambaSteps`: 3 inner + state numbers a node), not as states
    (inner * state numbers a node): `commit` runs the recurrence once more over the
    nodes that are kept. That is arithmetic without a weight in it, and a chunk of 256
    prompt tokens never has 256 states at once.

    Attributes:
      layers: per layer `(history, state)`: `[batch, conv_size - 1, inner]` newest
        inputs of the convolution, `[batch, inner, state]` float32.
      length: `[batch]` int32 committed tokens.
      pending: per layer `MambaSteps` of the last call's nodes, None before.
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    length: jax.Array
    pending: tuple[nn.MambaSteps, ...] | None = None

    def commit(
        self, path: Int[Array, "batch path"], count: Int[Array, " batch"]
    ) -> "MambaCache":
        """Keeps the first `count` nodes of a path; see `jtok.models.commit`."""
        if self.pending is None:
            raise ArgumentError("cache: got one without pending nodes; run a step.")
        layers = tuple(
            nn.advance_mamba(*memory, steps, path, count)
            for memory, steps in zip(self.layers, self.pending, strict=True)
        )
        return MambaCache(layers, self.length + count)


def init_cache(config: nn.MambaConfig, batch: int, capacity: int) -> MambaCache:
    """An empty memory; `capacity` bounds nothing here."""
    check(batch >= 1, "batch", batch, "at least 1")
    check(capacity >= 1, "capacity", capacity, "at least 1")
    past, inner = config.conv_size - 1, config.inner_width

    def memory() -> tuple[Array, Array]:
        history = jnp.zeros((batch, past, inner), config.dtype)
        state = jnp.zeros((batch, inner, config.state_size), jnp.float32)
        return (
            constrain(history, "batch", None, "mlp"),
            constrain(state, "batch", "mlp", None),
        )

    layers = tuple(memory() for _ in range(config.num_layers))
    return MambaCache(layers, jnp.zeros(batch, jnp.int32))


# ---- the forward pass


def forward(
    params: PyTree,
    config: nn.MambaConfig,
    inputs: Any,
    *,
    positions: Any = None,
    mask: Any = None,
    bias: Any = None,
    cache: MambaCache | None = None,
    taps: core.Taps | None = None,
    gates: Any = None,
    logits: Any = "all",
) -> core.Output:
    """`Model.__call__` of a Mamba model.

    A masked token is as though it were not there, wherever it stands. Its outputs mean
    nothing.
    """
    inputs = jnp.asarray(inputs)
    taps = taps or core.Taps()
    _refuse(positions, bias, gates)
    core.check_inputs(config, inputs, taps, nn.MAMBA_SITES)
    if mask is not None:
        mask = jnp.asarray(mask)
        wanted = f"{list(inputs.shape[:2])}: a recurrent model has one past"
        good = mask.shape == inputs.shape[:2]
        check(good, "mask", f"shape {mask.shape}", wanted)
        mask = mask.astype(bool)
    x = inputs
    if inputs.ndim == 2:
        x = params["embed"]["tokens"][jnp.clip(inputs, 0, config.vocab_size - 1)]
    stream = jnp.float32 if config.residual_float32 else config.dtype
    x = constrain(x.astype(stream), "batch", "seq", "embed")
    layers = params["layers"]
    run = _unrolled if isinstance(layers, tuple) else _scanned
    x, pending, read = run(layers, config, x, mask, cache, taps)
    hidden = nn.rms_norm(x, params["final_norm"]["scale"], config.norm_eps)
    hidden = hidden.astype(config.dtype)
    after = None if cache is None else dataclasses.replace(cache, pending=pending)
    rows = core.logits_of(params, hidden, logits)
    return core.Output(rows, hidden, core.named_taps(read, taps), after)


def _refuse(positions: Any, bias: Any, gates: Any) -> None:
    for name, value, why in (
        ("positions", positions, "the order of the inputs is all that it knows"),
        ("bias", bias, "it has no attention"),
        ("gates", gates, "its linear maps take no adapters"),
    ):
        if value is not None:
            raise ArgumentError(
                f"{name}: got an array, expected None for a recurrent model: {why}."
            )


def _run_block(
    layer: PyTree, index: Any, config: nn.MambaConfig, x: Array, memory: Any, mask: Any,
    taps: core.Taps,
) -> tuple[Array, nn.MambaSteps, dict[str, Array]]:  # fmt: skip
    tap, read = core.recording(taps, index)
    block = nn.MambaBlock(config)
    made: Any = block.apply({"params": layer}, x, memory, mask, tap)
    x, steps = made
    return constrain(x, "batch", "seq", "embed"), steps, read


def _unrolled(
    layers: tuple[PyTree, ...], config: nn.MambaConfig, x: Array, mask: Any,
    cache: MambaCache | None, taps: core.Taps,
) -> tuple[Array, Any, dict[str, list[Array]]]:  # fmt: skip
    pending: list[nn.MambaSteps] = []
    collected: dict[str, list[Array]] = {site: [] for site in taps.sites}
    for index, layer in enumerate(layers):
        memory = None if cache is None else cache.layers[index]
        x, steps, read = _run_block(layer, index, config, x, memory, mask, taps)
        pending.append(steps)
        for site, value in read.items():
            collected[site].append(value)
    return x, tuple(pending), collected


def _scanned(
    layers: PyTree, config: nn.MambaConfig, x: Array, mask: Any,
    cache: MambaCache | None, taps: core.Taps,
) -> tuple[Array, None, dict[str, Array]]:  # fmt: skip
    if cache is not None:
        raise ArgumentError(
            "cache: got a cache with stacked layers, expected per-layer parameters; "
            "use jtok.models.split_layers(params)."
        )

    def body(x: Array, item: Any) -> tuple[Array, dict[str, Array]]:
        index, layer = item
        x, _, read = _run_block(layer, index, config, x, None, mask, taps)
        return x, read

    x, read = jax.lax.scan(body, x, (jnp.arange(config.num_layers), layers))
    return x, None, read


# ---- decoding


@functools.lru_cache(maxsize=64)
def target(config: nn.MambaConfig, read: tuple[tuple[str, int], ...] = ()) -> Target:
    """The `Target` of a Mamba model: chains only, as there is one past."""

    def init(params: PyTree, batch: int, capacity: int) -> MambaCache:
        del params
        return init_cache(config, batch, capacity)

    def step(
        params: PyTree, cache: MambaCache, nodes: StepInput
    ) -> tuple[StepOutput, PyTree]:
        # `valid` needs no mask: an invalid node of a chain only reaches nodes below
        # it, which cannot be accepted either, and nothing is kept before `commit`.
        inputs = nodes.ids if nodes.vectors is None else nodes.vectors
        taps = core.Taps(read)
        out = forward(params, config, inputs, cache=cache, taps=taps, logits="none")
        return StepOutput(out.hidden, out.taps), out.cache

    def read_out(params: PyTree, hidden: jax.Array, want: Want) -> Readout:
        weight, bias = core.unembedding(params)
        return readout(hidden, weight, want, bias=bias)

    info = Info(config.vocab_size, None, trees=False)
    return Target(init, step, MambaCache.commit, info, read_out)


# ---- new parameters, and the Hugging Face format


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: nn.MambaConfig, key: jax.Array) -> PyTree:
    """Random parameters with layers split, as a pure function of the key."""
    keys = jax.random.split(key, config.num_layers + 2)
    x = jnp.zeros((1, 1, config.width), config.dtype)
    # One residual branch a layer: depth does not change the scale.
    shrink = jnp.asarray(config.num_layers**-0.5, config.dtype)

    def normal(key: jax.Array) -> jax.Array:
        shape = (config.vocab_size, config.width)
        return (0.02 * jax.random.normal(key, shape)).astype(config.dtype)

    def layer(key: jax.Array) -> PyTree:
        block = nn.MambaBlock(config)
        made = block.init(key, x, None, None, lambda _, value: value)["params"]
        out = made["mixer"]["out_proj"]
        out["kernel"] = out["kernel"] * shrink
        return made

    params = {
        "embed": {"tokens": normal(keys[0])},
        "layers": tuple(layer(key) for key in keys[2:]),
        "final_norm": {"scale": jnp.ones(config.width, config.dtype)},
    }
    if not config.tied:
        params["unembed"] = {"kernel": normal(keys[1])}
    return params


def read(fields: Fields) -> Fields:
    """Fields of `config.json` -> fields of `MambaConfig`."""
    act = fields.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise UnsupportedCheckpointError(
            f"hidden_act {act!r}; a mamba model takes 'silu'."
        )
    width = fields["hidden_size"]
    rank = fields.get("time_step_rank", "auto")
    inner = fields.get("intermediate_size") or int(fields.get("expand", 2) * width)
    return {
        "vocab_size": fields["vocab_size"],
        "width": width,
        "num_layers": fields["num_hidden_layers"],
        "inner_width": inner,
        "state_size": fields.get("state_size", 16),
        "conv_size": fields.get("conv_kernel", 4),
        "dt_rank": math.ceil(width / 16) if rank == "auto" else rank,
        "norm_eps": fields.get("layer_norm_epsilon", 1e-5),
        "proj_bias": bool(fields.get("use_bias", False)),
        "conv_bias": bool(fields.get("use_conv_bias", True)),
        "residual_float32": bool(fields.get("residual_in_fp32", True)),
        "dt_min": fields.get("time_step_min", 1e-3),
        "dt_max": fields.get("time_step_max", 0.1),
        "tied": bool(fields.get("tie_word_embeddings", True)),
    }


def write(config: nn.MambaConfig) -> Fields:
    """`MambaConfig` -> fields of `config.json`."""
    expand = config.inner_width / config.width
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.inner_width,
        "expand": int(expand) if expand == int(expand) else expand,
        "state_size": config.state_size,
        "conv_kernel": config.conv_size,
        "time_step_rank": config.dt_rank,
        "layer_norm_epsilon": config.norm_eps,
        "hidden_act": "silu",
        "use_bias": config.proj_bias,
        "use_conv_bias": config.conv_bias,
        "residual_in_fp32": config.residual_float32,
        "time_step_min": config.dt_min,
        "time_step_max": config.dt_max,
        "tie_word_embeddings": config.tied,
        "dtype": config.dtype,
    }


def _linear(name: str, *paths: str) -> tuple[Weight, ...]:
    kernels = tuple(f"mixer/{path}/kernel" for path in paths)
    biases = tuple(f"mixer/{path}/bias" for path in paths)
    name = f"backbone.layers.{{layer}}.mixer.{name}"
    return (
        Weight(f"{name}.weight", kernels, transpose=True),
        Weight(f"{name}.bias", biases),
    )


WEIGHTS = (
    Weight("backbone.embeddings.weight", ("embed/tokens",)),
    Weight("backbone.layers.{layer}.norm.weight", ("norm/scale",)),
    # One matrix on disk, two here: so its halves can each be cut over devices.
    *_linear("in_proj", "in_proj", "gate_proj"),
    *_linear("conv1d", "conv"),
    *_linear("x_proj", "x_proj"),
    *_linear("dt_proj", "dt_proj"),
    Weight("backbone.layers.{layer}.mixer.A_log", ("mixer/A_log",)),
    Weight("backbone.layers.{layer}.mixer.D", ("mixer/D",)),
    *_linear("out_proj", "out_proj"),
    Weight("backbone.norm_f.weight", ("final_norm/scale",)),
    Weight("lm_head.weight", ("unembed/kernel",)),
)
