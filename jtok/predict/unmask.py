"""The loop that fills masks, on the device: forwards, draws, and what they wrote.

`jtok.predict.diffusion` is its public face and checks what comes in. Noise belongs to
a row's seed and a position. Where scores depend on what was drawn, or are noised
themselves, it also belongs to the row's turn (how many tokens it has revealed), so that
each choice has fresh noise and rows do not depend on their batch mates.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from jtok.ops import Draw, Want, readout, uniform_at, vocab_statistics
from jtok.ops.sharding import constrain
from jtok.predict.denoiser import Denoiser
from jtok.predict.joint import JointLayer
from jtok.predict.reveal import (
    Pace,
    best_positions,
    clip_conditional,
    grid_shares,
    nucleus,
    perturbed_argmax,
    position_scores,
)

__all__ = ["Knobs", "Plan", "State", "View", "fill", "look", "view_logits"]

PyTree = Any

_FORBIDDEN = -1e9  # finite: no score becomes NaN
# Streams of noise beside that of positions, which are small numbers.
_STREAMS = {"order": 2**31 + 16, "turn": 2**31 + 17, "step": 2**31 + 18}
_OTHER = 2**30  # turns of a second fill


class Plan(NamedTuple):
    """What a run is compiled for.

    Attributes:
      model: whose masks are filled.
      layer: refines hidden states between draws of one forward, or None.
      pace: how many tokens a forward reveals.
      order: which go first.
      steps: forwards at most.
      width: tokens of a forward at most.
      top_k: tokens to sample among, or None.
      nucleus: whether there is a top-p.
      sampled: whether the temperature is above 0.
      scaled: whether logits are divided by it at all.
      shuffled: whether positions are sampled, too.
      guided: whether there is classifier-free guidance.
      block: tokens of a block.
      start: where the first block starts.
      forbid: ids that are never written.
      eos_id: whose logit is lowered at first, or None.
      official: keep to the official samplers, faults included.
      history: keep all states.
      energy: `(tokens[batch, seq]) -> [batch]`; the lower one of two fills is kept.
      causal: `(tokens[batch, seq]) -> [batch, seq, vocab]` logits of each token given
        those before it, for an adaptive pace.
      clip: hold what the layer says within what the marginals allow.
    """

    model: Denoiser
    layer: JointLayer | None
    pace: Pace
    order: str
    steps: int
    width: int
    top_k: int | None
    nucleus: bool
    sampled: bool
    scaled: bool
    shuffled: bool
    guided: bool
    block: int
    start: int
    forbid: tuple[int, ...]
    eos_id: int | None
    official: bool
    history: bool
    energy: Callable[[Array], Array] | None
    causal: Callable[[Array], Array] | None = None
    clip: bool = False

    @property
    def dense(self) -> bool:
        """Whether a score needs all logits at once."""
        return self.nucleus or self.top_k is not None

    @property
    def drawn_first(self) -> bool:
        """Whether tokens are drawn everywhere before positions are chosen."""
        return self.order in ("confidence", "plain_confidence") or bool(self.energy)


class Knobs(NamedTuple):
    """Numbers that a run is not compiled for: float32 scalars.

    Attributes:
      temperature: of tokens.
      top_p: mass to sample among.
      order_temperature: of positions.
      guidance: scale of classifier-free guidance.
      bound: of a threshold pace, or the mixture of an adaptive one.
      eos_penalty: nats taken from EOS while all is masked.
    """

    temperature: Array
    top_p: Array
    order_temperature: Array
    guidance: Array
    bound: Array
    eos_penalty: Array


@struct.dataclass
class State:
    """What the loop carries.

    Attributes:
      tokens: `[batch, seq]` int32.
      turn_of: `[batch, seq]` int32 when in its row a token was revealed, -1 if not.
      forward_of: `[batch, seq]` int32 after which forward, -1 if not.
      turn: `[batch]` int32 tokens that the row has revealed.
      forwards: `[batch]` int32 forwards while the row had masks.
      step: int32 forwards so far.
      history: `[steps or 0, batch, seq]` int32 tokens after each forward.
    """

    tokens: jax.Array
    turn_of: jax.Array
    forward_of: jax.Array
    turn: jax.Array
    forwards: jax.Array
    step: jax.Array
    history: jax.Array


class View(NamedTuple):
    """What is said of every position: hidden states and how they are read out."""

    hidden: Array
    weight: Array
    bias: Array | None


def fill(
    plan: Plan,
    params: PyTree,
    layer_params: PyTree,
    knobs: Knobs,
    tokens: Array,
    valid: Array | None,
    keys: Array,
) -> State:
    """Runs the whole loop; `keys` are raw keys of the rows."""
    tokens = constrain(tokens, "batch", "seq")
    start = tokens == plan.model.mask_id
    start = start if valid is None else start & valid
    none = jnp.full_like(tokens, -1)
    zeros = jnp.zeros(tokens.shape[0], jnp.int32)
    kept = jnp.zeros((plan.steps if plan.history else 0, *tokens.shape), jnp.int32)
    state = State(tokens, none, none, zeros, zeros, jnp.int32(0), kept)
    run = _Run(plan, params, layer_params, knobs, tokens, start, valid, keys)

    def goes_on(state: State) -> Array:
        left = jnp.any(run.masked(state.tokens))
        return (state.step < plan.steps) & (left | plan.official)

    state = jax.lax.while_loop(goes_on, run.step, state)
    if not plan.history:
        return state
    done = jnp.arange(plan.steps)[:, None, None] < state.step
    return dataclasses.replace(
        state, history=jnp.where(done, state.history, state.tokens[None])
    )


def look(
    model: Denoiser,
    params: PyTree,
    tokens: Array,
    valid: Array | None,
    *,
    given: Any = None,
    guidance: Any = None,
) -> View:
    """One forward pass; with guidance another one, of which the prompt is masked."""
    weight, bias = model.unembed(params)
    if guidance is None:
        return View(model.hidden(params, tokens, valid), weight, bias)
    blind = jnp.where(given, model.mask_id, tokens)
    both = jnp.concatenate([tokens, blind])
    mask = None if valid is None else jnp.concatenate([valid, valid])
    hidden = model.hidden(params, both, mask).astype(jnp.float32)
    seen, unseen = jnp.split(hidden, 2)
    # Logits are linear in hidden states, so that guiding these guides those.
    return View(unseen + (guidance + 1.0) * (seen - unseen), weight, bias)


def view_logits(view: View) -> Array:
    """All logits of a view, float32."""
    logits = jnp.einsum(
        "btd,vd->btv", view.hidden, view.weight, preferred_element_type=jnp.float32
    )
    return logits if view.bias is None else logits + view.bias[None, None]


class _Run:
    """One traced run: what its steps share."""

    def __init__(
        self, plan: Plan, params: PyTree, layer_params: PyTree, knobs: Knobs,
        tokens: Array, start: Array, valid: Array | None, keys: Array,
    ) -> None:  # fmt: skip
        self.plan, self.params, self.layer_params = plan, params, layer_params
        self.knobs, self.valid, self.keys = knobs, valid, keys
        self.given = ~start
        seq = tokens.shape[1]
        self.block_of = np.maximum(np.arange(seq) - plan.start, 0) // plan.block
        self.blocks = int(self.block_of[-1]) + 1
        split = self.block_of[:, None] == np.arange(self.blocks)[None]
        self.at_first = start.astype(jnp.int32) @ jnp.asarray(split, jnp.int32)

    # ---- which positions, and how many

    def masked(self, tokens: Array) -> Array:
        masked = tokens == self.plan.model.mask_id
        return masked if self.valid is None else masked & self.valid

    def _eligible(self, state: State) -> tuple[Array, Array]:
        """Masked positions of the current block, and the step within it."""
        masked = self.masked(state.tokens)
        if self.plan.pace.kind in ("fixed", "threshold", "adaptive"):
            last = np.int32(self.blocks)
            block = jnp.min(jnp.where(masked, self.block_of[None], last), axis=1)
            return masked & (self.block_of[None] <= block[:, None]), state.step
        each = self.plan.steps // self.blocks
        block, index = state.step // each, state.step % each
        return masked & (jnp.asarray(self.block_of) <= block)[None], index

    def _count(self, state: State, masked: Array, index: Array) -> Array:
        """Tokens that each row reveals after this forward (not by a threshold)."""
        plan, left = self.plan, jnp.sum(masked, axis=1, dtype=jnp.int32)
        if plan.pace.kind == "fixed":
            return jnp.minimum(left, plan.pace.tokens)
        each = plan.steps // self.blocks
        if plan.pace.kind == "even":
            block = state.step // each
            whole = jnp.take(self.at_first, block, axis=1)
            return whole // each + (index < whole % each)
        share = jnp.asarray(grid_shares(each, plan.pace.eps))[index]
        left = left.astype(jnp.float32)
        if plan.official:
            left = jnp.broadcast_to(jnp.mean(left), left.shape)
        count = jnp.where(index == each - 1, left, jnp.floor(left * share))
        return count.astype(jnp.int32)

    def _noise(self, stream: str, turn: Array, seq: int) -> Array:
        """`[batch, seq]` uniform noise of a stream at each row's turn."""
        keys = _fold(self.keys, jnp.full(turn.shape, _STREAMS[stream], jnp.uint32))
        ids = jnp.broadcast_to(jnp.arange(seq), (turn.shape[0], 1, seq))
        return uniform_at(keys, turn[:, None], ids)[:, 0]

    # ---- what is said of positions

    def _bias(self, view: View, step: Array, later: Array) -> View:
        """What may not be written, or not so early, by its logit."""
        plan, vocab = self.plan, self.plan.model.vocab_size
        lowered = jnp.zeros(vocab, jnp.float32)
        if plan.forbid:
            lowered = lowered.at[np.asarray(plan.forbid)].set(_FORBIDDEN)
        if plan.official:  # forgotten once the layer has run
            lowered = jnp.where(later, 0.0, lowered)
        if plan.eos_id is not None:
            time = 1.0 - step / plan.steps
            lowered = lowered.at[plan.eos_id].add(-self.knobs.eos_penalty * time)
        own = 0.0 if view.bias is None else view.bias.astype(jnp.float32)
        return view._replace(bias=lowered + own)

    def _tempered(self, view: View) -> View:
        if not self.plan.scaled:
            return view
        divisor = self.knobs.temperature
        hidden = view.hidden.astype(jnp.float32) / divisor
        return View(hidden, view.weight, view.bias / divisor)  # type: ignore[operator]

    def _filtered(self, view: View) -> Array:
        """`[batch, rows, vocab]` logits after temperature, top-p and top-k."""
        return self._kept(view_logits(self._tempered(view)))

    def _kept(self, logits: Array) -> Array:
        """Tempered logits after top-p and top-k."""
        top_p = self.knobs.top_p if self.plan.nucleus else None
        return nucleus(
            logits, top_p=top_p, top_k=self.plan.top_k, keep_ties=self.plan.official
        )

    def _pick(self, logits: Array, keys: Array, index: Array) -> Array:
        """Draws from tempered and filtered logits, each with its position's noise."""
        if not self.plan.sampled:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        ids = jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape)
        return perturbed_argmax(logits, uniform_at(keys, index, ids), 1.0)

    def _pick_whole(self, log_probs: Array, keys: Array, index: Array) -> Array:
        """The same from log-probabilities before temperature and filters."""
        if self.plan.scaled:
            log_probs = log_probs / self.knobs.temperature
        return self._pick(self._kept(log_probs), keys, index)

    def _draw(self, view: View, index: Array, turn: Array) -> Array:
        """`[batch, rows]` tokens for chosen positions."""
        plan = self.plan
        keys = _fold(self.keys, turn) if plan.drawn_first else self.keys
        hidden = jnp.take_along_axis(view.hidden, index[..., None], axis=1)
        view = view._replace(hidden=hidden)
        if plan.dense:
            return self._pick(self._filtered(view), keys, index)
        batch, rows = index.shape
        draw = None
        if plan.sampled:
            every = jnp.full(batch * rows, self.knobs.temperature)
            draw = Draw(
                jnp.repeat(keys, rows, axis=0), index.reshape(-1),
                jnp.zeros((batch * rows, 1), jnp.int32), every,
            )  # fmt: skip
        flat = hidden.reshape(batch * rows, 1, hidden.shape[-1])
        out = readout(flat, view.weight, Want(draw=draw), bias=view.bias)
        return out.choice.reshape(batch, rows)

    def _measure(self, view: View, turn: Array) -> tuple[Array, Array | None]:
        """Scores `[batch, seq]`, and tokens where these come first."""
        plan, (batch, seq) = self.plan, view.hidden.shape[:2]
        choice = None
        if plan.drawn_first:
            every = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), (batch, seq))
            choice = self._draw(view, every, turn)
        if plan.order in ("random", "origin"):
            return self._noise("order", jnp.zeros_like(turn), seq), choice
        if plan.order == "plain_confidence":
            found = vocab_statistics(*view[:2], choice, bias=view.bias, entropy=False)
            return jnp.exp(-found.cross_entropy), choice
        if plan.dense:
            scores = position_scores(self._filtered(view), plan.order, choice=choice)
            return scores, choice
        hidden, weight, bias = self._tempered(view)
        if plan.order == "margin":
            read = readout(hidden, weight, Want(top_k=2, log_sum_exp=True), bias=bias)
            best: Any = read.top_logits
            probs = jnp.exp(best - jnp.asarray(read.log_sum_exp)[..., None])
            return probs[..., 0] - probs[..., 1], choice
        entropy = plan.order == "entropy"
        found = vocab_statistics(hidden, weight, choice, bias=bias, entropy=entropy)
        scores = -found.entropy if entropy else jnp.exp(-found.cross_entropy)  # type: ignore[operator]
        return scores, choice

    # ---- one forward and its draws

    def step(self, state: State) -> State:
        plan = self.plan
        masked, index = self._eligible(state)
        guidance = self.knobs.guidance if plan.guided else None
        view = look(
            plan.model, self.params, state.tokens, self.valid,
            given=self.given, guidance=guidance,
        )  # fmt: skip
        live = jnp.any(self.masked(state.tokens), axis=1)
        if plan.layer is None:
            state = self._together(state, view, masked, index)
        else:
            state = self._one_by_one(state, view, masked, index)
        history = state.history
        if plan.history:
            history = history.at[state.step].set(state.tokens)
        return dataclasses.replace(
            state, forwards=state.forwards + live, step=state.step + 1, history=history
        )

    def _together(self, state: State, view: View, masked: Array, index: Array) -> State:
        """All tokens of this forward from what it says, each for itself."""
        plan = self.plan
        view = self._bias(view, state.step, jnp.bool_(False))
        choice: Array | None
        if plan.causal is not None:
            scores, choice, count = self._agreed(state, view, masked)
        else:
            scores, choice = self._measure(view, state.turn)
            scores, count = self._paced(state, masked, scores, index)
        if plan.energy is not None:
            choice = self._better(state, view, masked, choice)
        scores = self._shuffle(scores, state.turn)
        guarded = not plan.official
        at, taken = best_positions(scores, masked, count, plan.width, guarded=guarded)
        if choice is None:
            tokens = self._draw(view, at, state.turn)
        else:
            tokens = jnp.take_along_axis(choice, at, axis=1)
        if not guarded:  # there, what was not masked gets a mask
            real = jnp.take_along_axis(masked, at, axis=1)
            tokens = jnp.where(real, tokens, plan.model.mask_id)
        return self._write(state, at, tokens, taken)

    def _paced(
        self, state: State, masked: Array, scores: Array, index: Array
    ) -> tuple[Array, Array]:
        """Scores, and how many of the best are revealed."""
        if self.plan.order == "origin":
            return self._origin(state, masked, index)
        if self.plan.pace.kind == "threshold":
            sure = jnp.sum(masked & (scores > self.knobs.bound), axis=1)
            left = jnp.sum(masked, axis=1)
            count = jnp.minimum(jnp.maximum(sure, 1), left).astype(jnp.int32)
            return scores, count
        return scores, self._count(state, masked, index)

    def _one_by_one(
        self, state: State, view: View, masked: Array, index: Array
    ) -> State:
        """The tokens of this forward one after another, each told of those before."""
        plan = self.plan
        if plan.order == "origin":
            _, count = self._origin(state, masked, index)
        else:
            count = self._count(state, masked, index)
        most = jnp.max(count)
        Carry = tuple[Array, State, Array, Array]

        def goes_on(carry: Carry) -> Array:
            return carry[0] < most

        def draw(carry: Carry) -> Carry:
            number, state, hidden, path = carry
            here = self._bias(view._replace(hidden=hidden), state.step, number > 0)
            scores, choice = self._measure(here, state.turn)
            scores = self._shuffle(scores, state.turn)
            open_ = masked & self.masked(state.tokens)
            at, taken = best_positions(scores, open_, count - number, 1)
            if plan.clip:
                tokens, path = self._draw_clipped(here, view, at, state, path)
            elif choice is None:
                tokens = self._draw(here, at, state.turn)
            else:
                tokens = jnp.take_along_axis(choice, at, axis=1)
            state = self._write(state, at, tokens, taken)
            hidden = jax.lax.cond(
                number + 1 < most,
                lambda: self._refine(state.tokens, hidden, number),
                lambda: hidden,
            )
            return number + 1, state, hidden, path

        carry = (jnp.int32(0), state, view.hidden, jnp.zeros(state.turn.shape))
        return jax.lax.while_loop(goes_on, draw, carry)[1]

    def _draw_clipped(
        self, here: View, first: View, at: Array, state: State, path: Array
    ) -> tuple[Array, Array]:
        """Tokens `[batch, 1]` within what the marginals allow, and the new path."""
        first = self._bias(first, state.step, jnp.bool_(False))
        now, before = (
            jax.nn.log_softmax(view_logits(view._replace(
                hidden=jnp.take_along_axis(view.hidden, at[..., None], axis=1)
            )))
            for view in (here, first)
        )  # fmt: skip
        held = clip_conditional(now, before, path[:, None])
        tokens = self._pick_whole(held, self.keys, at)
        chance = jnp.take_along_axis(before, tokens[..., None], axis=2)[:, 0, 0]
        return tokens, path + chance

    def _refine(self, tokens: Array, hidden: Array, number: Array) -> Array:
        layer: Any = self.plan.layer
        new = layer.step(
            self.layer_params, self.params, tokens, hidden, self.valid, number
        )
        return new.astype(hidden.dtype)

    def _agreed(
        self, state: State, view: View, masked: Array
    ) -> tuple[Array, Array, Array]:
        """Draws for all masks, left ones first, and how many a causal model shares."""
        causal: Any = self.plan.causal
        every = jnp.arange(masked.shape[1], dtype=jnp.int32)[None]
        every = jnp.broadcast_to(every, masked.shape)
        own = jax.nn.log_softmax(view_logits(view))
        choice = self._pick_whole(own, self.keys, every)
        fill = jnp.where(masked, choice, state.tokens)
        told = jax.nn.log_softmax(causal(fill).astype(jnp.float32))
        share = self.knobs.bound
        mixed = jnp.where(own < _FORBIDDEN / 2, own, share * own + (1.0 - share) * told)
        same = choice == self._pick_whole(mixed, self.keys, every)
        first = masked & (jnp.cumsum(masked, axis=1) == 1)
        run = jnp.cumprod(same | first | ~masked, axis=1, dtype=jnp.int32)
        count = jnp.sum(run * masked, axis=1, dtype=jnp.int32)
        count = jnp.minimum(count, self.plan.pace.tokens)
        return -every.astype(jnp.float32), choice, count

    def _origin(self, state: State, masked: Array, index: Array) -> tuple[Array, Array]:
        """Each position for itself: those whose noise is below the step's share."""
        each = self.plan.steps // self.blocks
        share = jnp.asarray(grid_shares(each, self.plan.pace.eps))[index]
        share = jnp.where(index == each - 1, 1.0, share)
        turn = jnp.full_like(state.turn, 0) + state.step
        noise = self._noise("step", turn, masked.shape[1])
        count = jnp.sum(masked & (noise < share), axis=1, dtype=jnp.int32)
        return -noise, count

    def _shuffle(self, scores: Array, turn: Array) -> Array:
        """Scores whose best are a sample of positions without replacement."""
        if not self.plan.shuffled:
            return scores
        noise = self._noise("turn", turn, scores.shape[1])
        return scores / self.knobs.order_temperature - jnp.log(-jnp.log(noise))

    def _better(self, state: State, view: View, masked: Array, choice: Any) -> Array:
        """Of two fills of all masks the one that has the lower energy, row by row."""
        energy: Any = self.plan.energy
        seq = masked.shape[1]
        every = jnp.broadcast_to(jnp.arange(seq, dtype=jnp.int32), masked.shape)
        other = self._draw(view, every, state.turn + _OTHER)
        fills = [jnp.where(masked, c, state.tokens) for c in (choice, other)]
        keep = energy(fills[0]) <= energy(fills[1])
        return jnp.where(keep[:, None], choice, other)

    def _write(self, state: State, at: Array, tokens: Array, taken: Array) -> State:
        past = state.tokens.shape[1]
        where = jnp.where(taken, at, past)
        put = jax.vmap(lambda row, i, new: row.at[i].set(new, mode="drop"))
        rank = jnp.broadcast_to(jnp.arange(at.shape[1]), at.shape)
        turns = state.turn[:, None] + rank
        forwards = jnp.full_like(turns, 0) + state.step
        return dataclasses.replace(
            state,
            tokens=put(state.tokens, where, tokens),
            turn_of=put(state.turn_of, where, turns),
            forward_of=put(state.forward_of, where, forwards),
            turn=state.turn + jnp.sum(taken, axis=1, dtype=jnp.int32),
        )


def _fold(keys: Array, numbers: Array) -> Array:
    """Raw keys of the rows, each folded with its number."""

    def one(key: Array, number: Array) -> Array:
        folded = jax.random.fold_in(jax.random.wrap_key_data(key), number)
        return jax.random.key_data(folded)

    return jax.vmap(one)(keys, numbers.astype(jnp.uint32))
