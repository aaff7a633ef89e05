"""Sampling from masked-diffusion language models: any order, one or several at a time.

Sources: LLaDA (Nie et al. 2025, arXiv 2502.09992), Dream (Ye et al. 2025, arXiv
2508.15487), Fast-dLLM's threshold rule (Wu et al. 2025, arXiv 2505.22618), and joint
sampling with a layer (Bansal & Sanghavi 2025, arXiv 2509.22738). Source: these.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from jtok.errors import ArgumentTypeError, check
from jtok.models import Model
from jtok.models.checkpoint import place_params
from jtok.ops import row_keys
from jtok.ops.sharding import entered_mesh, onto_mesh, place, sharding_for
from jtok.predict.denoiser import Denoiser, denoiser_of
from jtok.predict.joint import JointLayer
from jtok.predict.reveal import Pace, check_order, reveal_counts
from jtok.predict.unmask import Knobs, Plan, State, fill

__all__ = ["Filled", "sample_masked"]

PyTree = Any


@struct.dataclass
class Filled:
    """Rows whose masks were filled.

    Attributes:
      tokens: `[batch, seq]` int32.
      turn: `[batch, seq]` int32 how many tokens of the row were revealed before, -1
        for those that were given.
      forward: `[batch, seq]` int32 the forward after which it was revealed, or -1.
      forwards: `[batch]` int32 forwards of the whole model that each row took part in.
      history: `[steps, batch, seq]` int32 tokens after each forward, or None.
    """

    tokens: jax.Array
    turn: jax.Array
    forward: jax.Array
    forwards: jax.Array
    history: jax.Array | None = None


@entered_mesh()
def sample_masked(
    model: Model | Denoiser,
    tokens: Int[Array, "batch seq"] | Int[np.ndarray, "batch seq"],
    *,
    valid: Bool[Array, "batch seq"] | Bool[np.ndarray, "batch seq"] | None = None,
    pace: Pace | None = None,
    order: str = "entropy",
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    order_temperature: float = 0.0,
    layer: JointLayer | None = None,
    layer_params: PyTree = None,
    energy: Callable[[Array], Array] | None = None,
    causal: Callable[[Array], Array] | None = None,
    clip: bool = False,
    block: int | None = None,
    start: int = 0,
    guidance: float = 0.0,
    forbid: Sequence[int] = (),
    eos_id: int | None = None,
    eos_penalty: float = 0.0,
    seed: int | Sequence[int] = 0,
    params: PyTree = None,
    history: bool = False,
    compat: Literal["default", "official"] = "default",
) -> Filled:
    """Fills every MASK of a batch; all other tokens stay as they are.

    Masks may stand anywhere, between any given tokens. The whole loop runs on the
    device in one compilation. A row's tokens depend on its own tokens, the options and
    its seed only. Ties go to the lower position and the lower id. Unless `top_p`,
    `top_k` or `causal` is given, nothing of size `[seq, vocab]` is ever written.

    Without a layer all tokens of one forward are drawn from its marginals, each for
    itself; with one, each is told of those before it. One token a forward (the pace
    `fixed_pace(1)`) is exact sampling of the model in this order.

    Args:
      model: a `Model` that looks both ways, or a `Denoiser` with `params`.
      tokens: `[batch, seq]` int32 with MASK where a token is to be found (see
        `lay_out`).
      valid: `[batch, seq]` bool, False for padding; None where there is none.
      pace: how many tokens a forward reveals; None is one.
      order: one of `ORDERS`: what goes first. "entropy" (lowest), "margin",
        "confidence" (of the tempered and filtered law, Dream's `maskgit_plus`),
        "plain_confidence" (of the plain one, LLaDA's `low_confidence`), "random"
        (LLaDA's), "origin" (Dream's: each for itself, with a `dream_pace`).
      temperature: of tokens, >= 0; 0 takes the arg-max.
      top_p: in (0, 1]: sample among the fewest tokens with this mass.
      top_k: sample among so many best tokens.
      order_temperature: of positions: above 0 they are sampled without replacement
        from the softmax of scores over it (Dream's `alg_temp`). Random orders are
        as random without.
      layer: what draws the tokens of a forward jointly, or None.
      layer_params: its parameters.
      energy: a function `tokens[batch, seq] -> [batch]`, such as a causal model's
        negative log-likelihood. At each forward all masks are filled twice, and the
        fill of lower energy gives the tokens. Not with a layer, nor with an order by
        confidence.
      causal: a function `tokens[batch, seq] -> [batch, seq, vocab]`, the logits of a
        causal model of each token given those before it, beside an `adaptive_pace`.
        Then masks are filled from left to right, whatever the order.
      clip: beside a layer: hold what it says of a token within what the marginals
        allow given the tokens that were drawn in this forward (`clip_conditional`).
        Not with an order by confidence.
      block: positions from `start` on are finished block after block of this length;
        None makes no blocks.
      start: where the first block starts.
      guidance: scale c of guidance: logits are l_u + (c + 1)(l - l_u), l_u with all
        given tokens masked; 0 for none.
      forbid: ids that are never written; MASK never is.
      eos_id: the id that `eos_penalty` is for.
      eos_penalty: nats taken from EOS at the first forward, fewer and fewer later, so
        that answers are not flooded with it.
      seed: of row 0, row b takes `seed + b`; or one for each row.
      params: of a `Denoiser`; of a `Model`, in place of its own.
      history: also return the tokens after each forward.
      compat: "official" keeps to the official samplers: MASK may be written unless
        `forbid` names it (Dream's and LLaDA's let it, that of joint sampling does
        not), rows share the counts of their mean, a row with fewer masks writes MASK
        over given tokens, top-k keeps ties, and `forbid` is forgotten once the layer
        has run.

    Returns:
      `Filled`.

    Raises:
      ArgumentError: an argument out of its range, an unknown order, a MASK that is no
        id of its own, a MASK where a shifted model cannot fill one, blocks that do not
        divide the rest of the row or the steps, a pace or an option that the order or
        the layer does not go with.
      ArgumentTypeError: `tokens` are no integers, or `model` is neither.

    Source: arXiv 2509.22738, section 3; 2502.09992, algorithms 4 and 5; 2508.15487.

    Example:
      >>> from jtok.testing import tiny_model
      >>> model = tiny_model(family="llada")
      >>> out = sample_masked(model, np.array([[5, 95, 95, 7]]), pace=fixed_pace(2))
      >>> bool((out.tokens != 95).all()), out.forwards.tolist()
      (True, [1])
    """
    made, values = denoiser_of(model, params)
    ids, mask = _checked_tokens(made, tokens, valid)
    pace = Pace("fixed") if pace is None else pace
    check_order(order)
    official = compat == "official"
    check(compat in ("default", "official"), "compat", compat, "one of the two")
    _check_numbers(temperature, top_p, top_k, order_temperature, guidance, eos_penalty)
    _check_pairs(order, pace, layer, energy, order_temperature)
    _check_joint(order, pace, layer, energy, causal, clip)
    for token in (*forbid, *(() if eos_id is None else (eos_id,))):
        good = 0 <= token < made.vocab_size
        check(good, "forbid", token, f"ids in 0..{made.vocab_size - 1}")
    paired = eos_penalty == 0 or eos_id is not None
    check(paired, "eos_id", eos_id, "an id beside eos_penalty")
    length = _checked_block(block, start, ids.shape[1], pace)
    masks = ids == made.mask_id
    masks = masks if mask is None else masks & mask
    steps, width = _extent(masks, pace, order, length, start, official)
    if layer is not None and layer.steps is not None:
        check(width - 1 <= layer.steps, "layer", f"a layer of {layer.steps} steps",
              f"at least {width - 1}: a forward reveals {width} tokens")  # fmt: skip
    plan = Plan(
        model=made,
        layer=layer,
        pace=pace,
        order=order,
        steps=steps,
        width=width,
        top_k=top_k,
        nucleus=top_p is not None and top_p < 1,
        sampled=temperature > 0,
        scaled=temperature not in (0, 1),
        shuffled=order_temperature > 0 and order not in ("random", "origin"),
        guided=guidance != 0,
        block=length,
        start=start,
        forbid=tuple(forbid) if official else (made.mask_id, *forbid),
        eos_id=eos_id if eos_penalty else None,
        official=official,
        history=history,
        energy=energy,
        causal=causal,
        clip=clip,
    )
    numbers = (
        temperature,
        1.0 if top_p is None else top_p,
        order_temperature,
        guidance,
        pace.bound,
        eos_penalty,
    )
    knobs = Knobs(*(jnp.float32(number) for number in numbers))
    if isinstance(model, Model):
        values = place_params(values, model.config)
    by_row = lambda x: place(
        jnp.asarray(x), sharding_for(("batch", None), shape=x.shape)
    )
    state = _compiled(plan)(
        values,
        onto_mesh(layer_params),
        knobs,
        by_row(ids),
        None if mask is None else by_row(mask),
        row_keys(jnp.asarray(_seeds(seed, len(ids)), jnp.uint32)),
    )
    kept = state.history if history else None
    return Filled(state.tokens, state.turn_of, state.forward_of, state.forwards, kept)


@functools.lru_cache(maxsize=128)
def _compiled(plan: Plan) -> Callable[..., State]:
    return jax.jit(functools.partial(fill, plan))


def _checked_tokens(
    model: Denoiser, tokens: Any, valid: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    ids = np.asarray(tokens)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ArgumentTypeError(f"tokens: got {ids.dtype}, expected integer ids.")
    check(
        ids.ndim == 2 and ids.size > 0, "tokens", f"shape {ids.shape}", "[batch, seq]"
    )
    good = ids.min() >= 0 and ids.max() < model.vocab_size
    expected = f"ids in 0..{model.vocab_size - 1}"
    check(good, "tokens", (int(ids.min()), int(ids.max())), expected)
    mask = None if valid is None else np.asarray(valid).astype(bool)
    if mask is not None:
        check(mask.shape == ids.shape, "valid", f"shape {mask.shape}", f"{ids.shape}")
        check(
            mask.any(axis=1).all(), "valid", "a row of padding", "a token in each row"
        )
    if model.shift:
        first = np.zeros(len(ids), int) if mask is None else mask.argmax(axis=1)
        given = ids[np.arange(len(ids)), first] != model.mask_id
        check(given.all(), "tokens", "MASK as the first token of a row",
              "a token: logits are shifted, and nothing says what it is")  # fmt: skip
    return ids.astype(np.int32), mask


def _check_numbers(
    temperature: float, top_p: Any, top_k: Any, order_temperature: float,
    guidance: float, eos_penalty: float,
) -> None:  # fmt: skip
    finite = float("inf")
    check(0 <= temperature < finite, "temperature", temperature, "a number >= 0")
    good = 0 <= order_temperature < finite
    check(good, "order_temperature", order_temperature, "a number >= 0")
    check(top_p is None or 0 < top_p <= 1, "top_p", top_p, "None or a number in (0, 1]")
    check(top_k is None or top_k >= 1, "top_k", top_k, "None or at least 1")
    check(0 <= guidance < finite, "guidance", guidance, "a number >= 0")
    check(0 <= eos_penalty < finite, "eos_penalty", eos_penalty, "a number >= 0")


def _check_pairs(
    order: str, pace: Pace, layer: Any, energy: Any, order_temperature: int | float
) -> None:
    by_confidence = order in ("confidence", "plain_confidence")
    good = pace.kind != "threshold" or (by_confidence and layer is None)
    check(
        good, "pace", "a threshold", "an order by confidence, and no layer, beside it"
    )
    good = pace.kind not in ("threshold", "adaptive") or order_temperature == 0
    expected = "0 beside a pace that says itself what is revealed"
    check(good, "order_temperature", order_temperature, expected)
    good = order != "origin" or pace.kind == "dream"
    check(good, "pace", pace.kind, "a dream_pace beside the order 'origin'")
    good = energy is None or (layer is None and not by_confidence)
    expected = "None beside a layer, or an order by confidence in what was drawn"
    check(good, "energy", "a function", expected)


def _check_joint(
    order: str, pace: Pace, layer: Any, energy: Any, causal: Any, clip: bool
) -> None:
    good = (pace.kind == "adaptive") == (causal is not None)
    expected = "a causal model's logits beside an adaptive_pace, and only there"
    check(good, "causal", "None" if causal is None else "a function", expected)
    good = causal is None or (layer is None and energy is None and order != "origin")
    expected = "neither a layer nor an energy beside it, nor the order 'origin'"
    check(good, "causal", "a function", expected)
    by_confidence = order in ("confidence", "plain_confidence")
    good = not clip or (layer is not None and not by_confidence)
    check(good, "clip", clip, "False without a layer or with an order by confidence")


def _checked_block(block: int | None, start: int, seq: int, pace: Pace) -> int:
    check(0 <= start < seq, "start", start, f"0 to {seq - 1}")
    length = seq - start if block is None else block
    expected = f"a divisor of the {seq - start} positions from start on"
    check(length >= 1 and (seq - start) % length == 0, "block", block, expected)
    count = (seq - start) // length
    if pace.steps is not None:
        good = pace.steps % count == 0
        check(good, "pace", f"{pace.steps} steps", f"a multiple of the {count} blocks")
    return length


def _extent(
    masks: np.ndarray, pace: Pace, order: str, block: int, start: int, official: bool
) -> tuple[int, int]:
    """Forwards and tokens of one forward at most."""
    seq = masks.shape[1]
    blocks = (seq - start) // block
    edges = [0, *(start + block * i for i in range(1, blocks)), seq]
    parts = [masks[:, a:b].sum(axis=1) for a, b in itertools.pairwise(edges)]
    most = max(1, *(int(part.max()) for part in parts))
    if pace.kind in ("threshold", "adaptive"):
        wide = most if pace.kind == "threshold" else min(pace.tokens, most)
        return max(1, int(masks.sum(axis=1).max())), wide
    if pace.kind == "fixed":
        steps = sum(-(-part // pace.tokens) for part in parts)
        return max(1, int(np.max(steps))), min(pace.tokens, most)
    if order == "origin" or official:
        return pace.steps or 1, most
    each = pace._replace(steps=(pace.steps or 1) // blocks)
    counts = [reveal_counts(int(n), each).max() for n in np.unique(parts)]
    return pace.steps or 1, max(1, int(max(counts)))


def _seeds(seed: Any, count: int) -> list[int]:
    if isinstance(seed, (int, np.integer)):
        return [int(seed) + row for row in range(count)]
    seeds = [int(value) for value in seed]
    check(len(seeds) == count, "seed", f"{len(seeds)} seeds", f"one, or {count}")
    return seeds
