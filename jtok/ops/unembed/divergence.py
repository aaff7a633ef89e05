"""Soft-target KL divergence between two models' next-token distributions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.errors import check
from jtok.ops.sharding import AnyMesh, current_mesh
from jtok.ops.unembed import walk
from jtok.ops.unembed.walk import LOW, Layout, Needs, Sizes

__all__ = ["kl_divergence"]

TeacherLogits = Callable[[Any, Any, int], Array]


class _Static(NamedTuple):
    sizes: Sizes
    layout: Layout
    softcap: float | None
    temperature: float
    teacher_softcap: float | None
    teacher: TeacherLogits | None


def kl_divergence(
    hidden: Float[Array, "*tokens dim"],
    weight: Float[Array, "vocab dim"],
    teacher_hidden: Float[Array, "*tokens wide"],
    teacher_weight: Float[Array, "teacher_vocab wide"] | TeacherLogits,
    *,
    mask: Bool[Array, "*tokens"] | None = None,
    bias: Float[Array, " vocab"] | None = None,
    teacher_bias: Float[Array, " vocab"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    chunk: int | None = None,
    block: int | None = None,
    mesh: AnyMesh | None = None,
) -> Float[Array, "*tokens"]:
    """KL(teacher, student) of every token, in nats, without either's logits.

    Reverse-mode gradients reach the student's `hidden`, `weight` and `bias`; the
    teacher gets none. The loss is not multiplied by the squared temperature.

    Args:
      hidden: `[..., dim]` of the student, after the final norm.
      weight: `[vocab, dim]` of the student.
      teacher_hidden: `[..., wide]` of the teacher, or whatever its function takes.
      teacher_weight: `[vocab, wide]`, or a function `(rows, start, width)` that gives
        the logits `[rows, width]` of the ids from `start` on, for some rows
        `[rows, wide]` of `teacher_hidden`; it closes over nothing that is traced.
      mask: `[...]` bool, False gives 0; None counts every token.
      bias: `[vocab]` of the student, or None.
      teacher_bias: `[vocab]` or None; not beside a function.
      temperature: divides both models' logits, `> 0` (static).
      softcap: of the student's logits, before the temperature.
      teacher_softcap: of the teacher's; not beside a function.
      chunk: tokens at a time (static); None chooses about 16 MB of logits.
      block: vocabulary entries at a time (static); None chooses up to 16384.
      mesh: None means the mesh of `jax.set_mesh`.

    Returns:
      `[...]` float32 nats, `>= 0` up to rounding.

    Raises:
      ArgumentError: a temperature that is not positive, vocabularies of two sizes,
        or a teacher function beside `teacher_bias` or `teacher_softcap`.

    Source: Hinton et al. 2015, arXiv 1503.02531, section 2 (soft targets). Differs:
    no squared temperature.

    Example:
      >>> same = kl_divergence(jnp.eye(3), jnp.eye(3), jnp.eye(3), jnp.eye(3))
      >>> bool(jnp.allclose(same, 0, atol=1e-6))
      True
    """
    check(temperature > 0, "temperature", temperature, "a number above 0")
    teacher = teacher_weight if callable(teacher_weight) else None
    if teacher is not None:
        check(teacher_bias is None, "teacher_bias", "a bias", "None beside a function")
        expected = "None beside a function"
        check(teacher_softcap is None, "teacher_softcap", teacher_softcap, expected)
    rows: Any = None if teacher is not None else teacher_weight
    vocab = weight.shape[0]
    if rows is not None:
        expected = f"{vocab} rows as the student's"
        check(rows.shape[0] == vocab, "teacher_weight", f"shape {rows.shape}", expected)
    shape = hidden.shape[:-1]
    flat = hidden.reshape(-1, hidden.shape[-1])
    guide = teacher_hidden.reshape(-1, teacher_hidden.shape[-1])
    layout = Layout.of(current_mesh(mesh), flat.shape[0], vocab)
    sizes = layout.sizes(flat.shape[0], vocab, chunk, block)
    static = _Static(sizes, layout, softcap, temperature, teacher_softcap, teacher)
    losses, _, _ = _divergence(static, flat, weight, bias, (guide, rows, teacher_bias))
    losses = losses.reshape(shape)
    return losses if mask is None else jnp.where(mask, losses, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divergence(
    static: _Static, hidden: Array, weight: Array, bias: Any, guide: Any
) -> tuple[Array, Array, Array]:
    """Losses, and the log-normalisers of student and teacher."""
    layout = static.layout
    return layout.run(
        functools.partial(_local_divergence, static),
        (*layout.model_specs(bias), _guide_specs(layout, guide)),
        layout.spec("tokens"),
        hidden,
        weight,
        bias,
        guide,
    )


def _guide_specs(layout: Layout, guide: Any) -> tuple[Any, Any, Any]:
    hidden, weight, bias = layout.model_specs(guide[2])
    return hidden, None if guide[1] is None else weight, bias


def _logits(
    static: _Static, some: Array, weight: Array, bias: Any, start: Any
) -> Array:
    block = static.sizes.block
    logits = walk.block_logits(some, weight, bias, static.softcap, start, block)
    return logits / static.temperature


def _teacher_logits(static: _Static, some: Array, guide: Any, start: Any) -> Array:
    _, weight, bias = guide
    cap, block = static.teacher_softcap, static.sizes.block
    if static.teacher is None:
        logits = walk.block_logits(some, weight, bias, cap, start, block)
    else:
        logits = static.teacher(some, start, block).astype(jnp.float32)
    return logits / static.temperature


def _local_divergence(
    static: _Static, hidden: Array, weight: Array, bias: Any, guide: Any
) -> tuple[Array, Array, Array]:
    vocab, layout = weight.shape[0], static.layout
    # A teacher's function counts ids from the start of the whole vocabulary.
    offset = 0 if static.teacher is None else layout.offset(vocab)

    def init(count: int) -> dict[str, Array]:
        zeros = jnp.zeros(count, jnp.float32)
        names = ("sum", "teacher_sum", "cross")
        low = {"max": zeros + LOW, "teacher_max": zeros + LOW}
        return {**low, **dict.fromkeys(names, zeros)}

    def step(state: Any, tokens: Any, start: Any, fresh: Array) -> dict[str, Array]:
        some, guiding = tokens
        logits = _logits(static, some, weight, bias, start)
        logits = jnp.where(fresh, logits, -jnp.inf)
        targets = _teacher_logits(static, guiding, guide, offset + start)
        targets = jnp.where(fresh, targets, -jnp.inf)
        highest, shrink, weights = _weights(state["max"], logits)
        top, fade, shares = _weights(state["teacher_max"], targets)
        apart = jnp.where(shares > 0, shares * (targets - logits), 0.0)
        return {
            "max": highest,
            "sum": state["sum"] * shrink + jnp.sum(weights, axis=-1),
            "teacher_max": top,
            "teacher_sum": state["teacher_sum"] * fade + jnp.sum(shares, axis=-1),
            "cross": state["cross"] * fade + jnp.sum(apart, axis=-1),
        }

    state = walk.walk((hidden, guide[0]), vocab, static.sizes, init, step)
    if layout.vocab:
        maxima = {name: state[name] for name in ("max", "teacher_max")}
        joined = jax.lax.pmax(maxima, layout.vocab)
        shrink = jnp.exp(state["max"] - joined["max"])
        fade = jnp.exp(state["teacher_max"] - joined["teacher_max"])
        sums = {
            "sum": state["sum"] * shrink,
            "teacher_sum": state["teacher_sum"] * fade,
            "cross": state["cross"] * fade,
        }
        state = {**joined, **jax.lax.psum(sums, layout.vocab)}
    lse = state["max"] + jnp.log(state["sum"])
    teacher_lse = state["teacher_max"] + jnp.log(state["teacher_sum"])
    losses = state["cross"] / state["teacher_sum"] - teacher_lse + lse
    return losses, lse, teacher_lse


def _weights(highest: Array, logits: Array) -> tuple[Array, Array, Array]:
    """The new maximum, the factor on older sums, and the terms of the new ones."""
    higher = jnp.maximum(highest, jnp.max(logits, axis=-1))
    return higher, jnp.exp(highest - higher), jnp.exp(logits - higher[:, None])


def _divergence_fwd(
    static: _Static, hidden: Any, weight: Any, bias: Any, guide: Any
) -> tuple[Any, Any]:
    asked = walk.asked(hidden, weight, bias)
    args = walk.values((hidden, weight, bias, guide))
    losses, lse, teacher_lse = _divergence(static, *args)
    return (losses, lse, teacher_lse), (args, lse, teacher_lse, asked)


def _divergence_bwd(static: _Static, saved: Any, cotangents: Any) -> Any:
    (hidden, weight, bias, guide), lse, teacher_lse, asked = saved
    layout = static.layout
    slopes = walk.dense(cotangents[0])
    tokens = {"slope": slopes, "lse": lse, "teacher": teacher_lse}
    grads = layout.run(
        functools.partial(_local_gradient, static, walk.needs_of(asked)),
        (*layout.model_specs(bias), _guide_specs(layout, guide), layout.spec("tokens")),
        layout.gradient_specs(asked),
        hidden,
        weight,
        bias,
        guide,
        tokens,
    )
    return (*grads, None)


def _local_gradient(
    static: _Static, needs: Needs, hidden: Array, weight: Array, bias: Any,
    guide: Any, tokens: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    vocab = weight.shape[0]
    offset = 0 if static.teacher is None else static.layout.offset(vocab)

    def slope(logits: Array, some: Any, start: Any) -> Array:
        targets = _teacher_logits(static, some["hidden"], guide, offset + start)
        probs = jnp.exp(logits / static.temperature - some["lse"][:, None])
        shares = jnp.exp(targets - some["teacher"][:, None])
        return (probs - shares) * (some["slope"] / static.temperature)[:, None]

    return walk.pull_back(
        hidden, weight, bias, {"hidden": guide[0], **tokens}, static.sizes,
        static.softcap, needs, static.layout, slope,
    )  # fmt: skip


_divergence.defvjp(_divergence_fwd, _divergence_bwd, symbolic_zeros=True)
