"""TPU kernel of the readout: arg-max, Gumbel-max, top-k and log-sum-exp.

Grid: tiles of tokens, tiles of the vocabulary. Each step multiplies, adds the noise
of its ids and updates the running values, which stay in on-chip memory as the outputs
of the token tile. Logits never leave it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jtok.errors import UnsupportedImplementationError
from jtok.ops.readouts import Draw, Want
from jtok.ops.unembed.reference import Running, kept

__all__ = ["MAX_KEPT", "NAME", "check_supported", "running"]

NAME = "jtok_readout"
MAX_KEPT = 32  # of a top list; longer ones are faster sorted

_LANES = 128
_TOKENS = 256  # of a tile
_ENTRIES = 1024  # of a tile
_WEIGHT = 4 * 2**20  # bytes of a tile
_HIDDEN = 2 * 2**20  # bytes of a tile
_VMEM = 48 * 2**20  # bytes that the compiler may use
_DTYPES = ("bfloat16", "float32")
_NO_ID = 2**30  # above every id; kept apart in a list by their lane
_TINY = np.finfo("float32").tiny


def check_supported(hidden: Any, weight: Any, keep: int) -> None:
    """Raises `UnsupportedImplementationError` for what the kernel does not take."""
    dtypes = {hidden.dtype.name, weight.dtype.name}
    row = weight.shape[1] * weight.dtype.itemsize
    reasons = {
        f"dtypes {sorted(dtypes)}, expected one of {_DTYPES} for both": (
            len(dtypes) > 1 or not dtypes <= set(_DTYPES)
        ),
        f"a top list of {keep}, expected at most {MAX_KEPT}": keep > MAX_KEPT,
        f"dim {weight.shape[1]}, whose tiles do not fit": row * _LANES > 2 * _WEIGHT,
    }
    for reason, wrong in reasons.items():
        if wrong:
            raise UnsupportedImplementationError(
                f"implementation: 'pallas_tpu' cannot run: got {reason}."
            )


def running(
    hidden: Array, weight: Array, want: Want, bias: Array | None, *,
    softcap: float | None, block: int | None, vocab: int, offset: Array | int = 0,
    interpret: Any = False,
) -> Running:  # fmt: skip
    """As `reference.running`."""
    batch, nodes, dim = hidden.shape
    count, local, itemsize = batch * nodes, weight.shape[0], weight.dtype.itemsize
    keep, filtered = kept(want, vocab)
    step = 32 // itemsize
    most = max(step, min(_TOKENS, _HIDDEN // (dim * itemsize)))
    tokens = pl.cdiv(min(count, most), step) * step
    padded = pl.cdiv(count, tokens) * tokens
    entries = min(block or _ENTRIES, max(_LANES, _WEIGHT // (dim * itemsize)), _ENTRIES)
    entries = min(pl.cdiv(entries, _LANES) * _LANES, local)

    inputs = {"hidden": hidden.reshape(count, dim)}
    if want.draw is not None and not filtered:
        inputs |= _draw_columns(want.draw)
    pad = lambda x: jnp.pad(x, ((0, padded - count), (0, 0)))
    inputs = {name: pad(x) for name, x in inputs.items()}
    by_token = lambda width: pl.BlockSpec((tokens, width), lambda t, v, *_: (t, 0))
    specs = [by_token(x.shape[1]) for x in inputs.values()]
    inputs["weight"] = weight
    specs.append(pl.BlockSpec((entries, dim), lambda t, v, *_: (v, 0)))
    if bias is not None:
        inputs["bias"] = bias.astype(jnp.float32)[None]
        specs.append(pl.BlockSpec((1, entries), lambda t, v, *_: (0, v)))

    outputs = _outputs(want, keep, filtered)
    scratch = {"scores": pltpu.VMEM((tokens, entries), jnp.float32)} if keep else {}
    kernel = functools.partial(
        _kernel, names=(*inputs, *outputs, *scratch), softcap=softcap, local=local,
        keep=keep,
    )  # fmt: skip
    found = pl.pallas_call(
        kernel,
        name=NAME,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(padded // tokens, pl.cdiv(local, entries)),
            in_specs=specs,
            out_specs=[by_token(width) for width, _ in outputs.values()],
            scratch_shapes=list(scratch.values()),
        ),
        out_shape=[
            jax.ShapeDtypeStruct((padded, width), dtype)
            for width, dtype in outputs.values()
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM
        ),
        interpret=interpret,
    )(jnp.asarray(offset, jnp.int32).reshape(1), *inputs.values())
    state = {name: x[:count] for name, x in zip(outputs, found)}
    return _named(state, (batch, nodes), keep)


def _outputs(want: Want, keep: int, filtered: bool) -> dict[str, tuple[int, Any]]:
    """Width and dtype of the running values that are asked for."""
    outputs: dict[str, tuple[int, Any]] = {}
    if not filtered:
        outputs |= {"best": (1, jnp.float32), "choice": (1, jnp.int32)}
        if want.gap:
            outputs["second"] = (1, jnp.float32)
    if want.log_sum_exp:
        outputs |= {"max": (1, jnp.float32), "sum": (1, jnp.float32)}
    if keep:
        outputs |= {"top": (_LANES, jnp.float32), "ids": (_LANES, jnp.int32)}
    return outputs


def _named(state: Running, shape: tuple[int, int], keep: int) -> Running:
    """The same running values as the reference has, `[batch, nodes]` each."""
    low = jnp.full(shape, -jnp.inf, jnp.float32)
    column = lambda name: state[name].reshape(shape)
    named = {
        name: column(name) if name in state else low for name in ("best", "second")
    }
    named["choice"] = column("choice") if "choice" in state else low.astype(jnp.int32)
    named["lse"] = column("max") + jnp.log(column("sum")) if "max" in state else low
    if keep:
        negated, ids = jax.lax.sort(
            (-state["top"][:, :keep], state["ids"][:, :keep]), num_keys=2
        )
        named["top"] = -negated.reshape(*shape, keep)
        named["ids"] = jnp.where(ids < _NO_ID, ids, 0).reshape(*shape, keep)
    else:
        named["top"] = jnp.zeros((*shape, 0), jnp.float32)
        named["ids"] = jnp.zeros((*shape, 0), jnp.int32)
    return named


def _draw_columns(draw: Draw) -> dict[str, Array]:
    """Of every token: its key folded with its position, in words, and temperature."""
    positions = draw.start[:, None] + draw.depth

    def fold(key: Array, position: Array) -> Array:
        folded = jax.random.fold_in(jax.random.wrap_key_data(key), position)
        return jax.random.key_data(folded)

    words = jax.vmap(jax.vmap(fold, (None, 0)))(draw.keys, positions)
    words = jax.lax.bitcast_convert_type(words, jnp.int32).reshape(-1, 2)
    temperature = jnp.broadcast_to(draw.temperature[:, None], positions.shape)
    return {
        "key0": words[:, :1],
        "key1": words[:, 1:],
        "temperature": temperature.astype(jnp.float32).reshape(-1, 1),
    }


def _kernel(
    offset: Any, *refs: Any, names: tuple[str, ...], softcap: float | None,
    local: int, keep: int,
) -> None:  # fmt: skip
    ref = dict(zip(names, refs))
    entries = ref["weight"].shape[0]

    @pl.when(pl.program_id(1) == 0)
    def _start() -> None:
        for name in ("best", "second", "top"):
            if name in ref:
                ref[name][...] = jnp.full(ref[name].shape, -jnp.inf, jnp.float32)
        if "choice" in ref:
            ref["choice"][...] = jnp.zeros(ref["choice"].shape, jnp.int32)
        if "max" in ref:
            # Finite, so that differences with it are no NaN.
            ref["max"][...] = jnp.full(ref["max"].shape, -1e30, jnp.float32)
            ref["sum"][...] = jnp.zeros(ref["sum"].shape, jnp.float32)
        if keep:
            lane = jax.lax.broadcasted_iota(jnp.int32, ref["ids"].shape, 1)
            ref["ids"][...] = lane + _NO_ID

    logits = _tile_logits(ref, softcap)
    place = pl.program_id(1) * entries + jax.lax.broadcasted_iota(
        jnp.int32, logits.shape, 1
    )
    ids = place + offset[0]
    # Past the end of the vocabulary anything may stand.
    logits = jnp.where(place < local, logits, -jnp.inf)
    if "max" in ref:
        _add_exponentials(ref, logits)
    if "best" in ref:
        _update_best(ref, _scores(ref, logits, ids), ids)
    if keep:
        _update_top(ref, logits, ids, keep)


def _tile_logits(ref: dict[str, Any], softcap: float | None) -> Array:
    hidden, weight = ref["hidden"][...], ref["weight"][...]
    # A float32 product must not round to bfloat16 on the way.
    exact = hidden.dtype == jnp.float32
    logits = jax.lax.dot_general(
        hidden, weight, (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    if "bias" in ref:
        logits = logits + ref["bias"][...]
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _scores(ref: dict[str, Any], logits: Array, ids: Array) -> Array:
    """What the choice maximises: logits, or scaled logits plus Gumbel noise."""
    if "temperature" not in ref:
        return logits
    temperature = ref["temperature"][...]
    warm = temperature > 0
    noise = _gumbel(ref["key0"][...], ref["key1"][...], ids)
    scaled = logits / jnp.where(warm, temperature, 1.0)
    return jnp.where(warm, scaled + noise, scaled)


def _add_exponentials(ref: dict[str, Any], logits: Array) -> None:
    old = ref["max"][...]
    higher = jnp.maximum(old, jnp.max(logits, axis=1, keepdims=True))
    added = jnp.sum(jnp.exp(logits - higher), axis=1, keepdims=True)
    ref["sum"][...] = ref["sum"][...] * jnp.exp(old - higher) + added
    ref["max"][...] = higher


def _update_best(ref: dict[str, Any], scores: Array, ids: Array) -> None:
    best, at = _first_best(scores, ids)
    old = ref["best"][...]
    if "second" in ref:
        rest = jnp.where(ids == at, -jnp.inf, scores)
        runner_up = jnp.max(rest, axis=1, keepdims=True)
        second = jnp.maximum(ref["second"][...], runner_up)
        ref["second"][...] = jnp.maximum(second, jnp.minimum(old, best))
    ref["choice"][...] = jnp.where(best > old, at, ref["choice"][...])
    ref["best"][...] = jnp.maximum(best, old)


def _first_best(scores: Array, ids: Array) -> tuple[Array, Array]:
    """The largest score of every row and the lowest id that has it."""
    best = jnp.max(scores, axis=1, keepdims=True)
    at = jnp.where(scores == best, ids, _NO_ID)
    return best, jnp.min(at, axis=1, keepdims=True)


def _update_top(ref: dict[str, Any], logits: Array, ids: Array, keep: int) -> None:
    """Moves the best of the tile into the (unordered) list, while any is better.

    A logit takes the place of the lowest one of the list, of several that of the
    highest id. Equal ones stay: their ids are lower.
    """
    scores, top, names = ref["scores"], ref["top"], ref["ids"]
    scores[...] = logits

    def move(_: Array) -> Array:
        tile, values, held = scores[...], top[...], names[...]
        best, at = _first_best(tile, ids)
        lane = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
        inside = lane < keep
        worst = jnp.min(jnp.where(inside, values, jnp.inf), axis=1, keepdims=True)
        among = inside & (values == worst)
        out = jnp.max(jnp.where(among, held, -1), axis=1, keepdims=True)
        better = best > worst
        replaced = among & (held == out) & better
        top[...] = jnp.where(replaced, best, values)
        names[...] = jnp.where(replaced, at, held)
        scores[...] = jnp.where(ids == at, -jnp.inf, tile)
        return jnp.max(jnp.where(better, 1.0, 0.0))

    jax.lax.while_loop(lambda moved: moved > 0, move, jnp.float32(1))


def _gumbel(key0: Array, key1: Array, ids: Array) -> Array:
    """`sampling.gumbel_at` of folded keys; int32 words, whose sums wrap."""
    high, low = _threefry(key0, key1, ids)
    mantissa = jax.lax.shift_right_logical(high ^ low, jnp.full_like(ids, 9))
    one = np.float32(1).view(np.int32)
    floats = jax.lax.bitcast_convert_type(mantissa | one, jnp.float32) - 1.0
    uniform = jnp.maximum(_TINY, floats * np.float32(1.0 - _TINY) + _TINY)
    return -jnp.log(-jnp.log(uniform))


def _threefry(key0: Array, key1: Array, low: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds of the counter (0, low).

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    schedule = (key0, key1, key0 ^ key1 ^ np.int32(0x1BD11BDA))
    left, right = jnp.zeros_like(low) + schedule[0], low + schedule[1]
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            left = left + right
            up = jax.lax.shift_left(right, jnp.full_like(right, turn))
            down = jax.lax.shift_right_logical(right, jnp.full_like(right, 32 - turn))
            right = left ^ (up | down)
        left = left + schedule[(group + 1) % 3]
        right = right + schedule[(group + 2) % 3] + np.int32(group + 1)
    return left, right
