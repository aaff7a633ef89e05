"""Drafters that need no model: none, and prompt lookup."""

import functools
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jtok.decode.types import Drafter, Proposal, Tokens, Verdict
from jtok.errors import check
from jtok.models import Info
from jtok.ops import Tree

__all__ = ["find_continuation", "no_drafter", "prompt_lookup"]


def _no_state(info: Info, tokens: Tokens) -> tuple[()]:
    del info, tokens
    return ()


def _keep(state: Any, verdict: Verdict) -> Any:
    del verdict
    return state


@functools.lru_cache(maxsize=1)
def no_drafter() -> Drafter:
    """Plain decoding: one node, one token a call.

    Returns:
      `Drafter`.

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> out = generate(tiny_model(), [1], max_new_tokens=3, drafter=no_drafter())
      >>> out.stats.tokens_per_call
      1.0
    """

    def propose(state: Any, tokens: Tokens) -> tuple[Proposal, Any]:
        root = tokens.root[:, None]
        return Proposal(root, jnp.ones_like(root, bool), tree=Tree.chain(0)), state

    return Drafter(_no_state, propose, _keep)


@functools.lru_cache(maxsize=64)
def prompt_lookup(
    num_draft: int = 10,
    max_ngram: int = 3,
    min_ngram: int = 1,
    compat: Literal["official"] | None = None,
) -> Drafter:
    """Drafts what followed the newest n-gram where it stood before.

    The longest n-gram that occurred before wins, and of its places the earliest.

    Args:
      num_draft: tokens of the drafted chain, at least 1.
      max_ngram: longest n-gram to look for.
      min_ngram: shortest n-gram to look for, at least 1.
      compat: "official" takes only places that have `num_draft` tokens after them; by
        default what there is before the end of the text is drafted.

    Returns:
      `Drafter`.

    Raises:
      ArgumentError: a number out of range.

    Source: prompt lookup decoding as in Spec-Bench, `find_candidate_pred_tokens`.
    Differs: on the device, batched, and shorter continuations are used (see `compat`).

    Example:
      >>> from jtok.decode import generate
      >>> from jtok.testing import tiny_model
      >>> out = generate(tiny_model(), [1, 2, 1, 2], drafter=prompt_lookup(num_draft=3))
      >>> out.guarantee
      'token'
    """
    check(num_draft >= 1, "num_draft", num_draft, "at least 1")
    check(min_ngram >= 1, "min_ngram", min_ngram, "at least 1")
    check(max_ngram >= min_ngram, "max_ngram", max_ngram, f"at least {min_ngram}")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    tree = Tree.chain(num_draft)

    def propose(state: Any, tokens: Tokens) -> tuple[Proposal, Any]:
        drafts, found = find_continuation(
            tokens.ids,
            tokens.count,
            num_draft=num_draft,
            max_ngram=max_ngram,
            min_ngram=min_ngram,
            whole=compat == "official",
        )
        root = tokens.root[:, None]
        nodes = jnp.concatenate([root, drafts], axis=1)
        valid = jnp.concatenate([jnp.ones_like(root, bool), found], axis=1)
        return Proposal(nodes, valid, tree=tree), state

    return Drafter(_no_state, propose, _keep)


def find_continuation(
    ids: Int[Array, "batch capacity"],
    count: Int[Array, " batch"],
    *,
    num_draft: int,
    max_ngram: int,
    min_ngram: int = 1,
    whole: bool = False,
) -> tuple[Int[Array, "batch drafts"], Bool[Array, "batch drafts"]]:
    """What followed the earliest earlier place of the longest n-gram at the end.

    Args:
      ids: `[batch, capacity]` int32, the first `count` are real.
      count: `[batch]` int32, at least 1.
      num_draft: tokens to return (static).
      max_ngram: longest n-gram (static).
      min_ngram: shortest n-gram (static).
      whole: only places with `num_draft` tokens after them count (static).

    Returns:
      `[batch, num_draft]` int32 tokens and which of them exist; none without a match.

    Example:
      >>> ids, found = find_continuation(jnp.array([[4, 5, 6, 4]]), jnp.array([4]),
      ...                                num_draft=2, max_ngram=2)
      >>> ids.tolist(), found.tolist()
      ([[5, 6]], [[True, True]])
    """
    capacity = ids.shape[1]
    places = jnp.arange(capacity)
    best = jnp.full(count.shape, -1, jnp.int32)
    matches = jnp.ones(ids.shape, bool)
    for size in range(1, max_ngram + 1):
        # matches[i]: the `size` tokens that end at i equal those at the end.
        back = size - 1
        shifted = jnp.pad(ids, ((0, 0), (back, 0)), constant_values=-1)[:, :capacity]
        last = jnp.take_along_axis(ids, jnp.maximum(count - size, 0)[:, None], axis=1)
        matches &= (shifted == last) & (places >= back)[None]
        if size < min_ngram:
            continue
        after = count[:, None] - (places + 1)[None]
        enough = after >= (num_draft if whole else 1)
        # The n-gram must be shorter than the text, and stand before its end.
        good = matches & enough & (count[:, None] > size)
        hit = jnp.argmax(good, axis=1).astype(jnp.int32)
        best = jnp.where(jnp.any(good, axis=1), hit + 1, best)
    wanted = best[:, None] + jnp.arange(num_draft)[None]
    found = (best[:, None] >= 0) & (wanted < count[:, None])
    drafts = jnp.take_along_axis(ids, jnp.clip(wanted, 0, capacity - 1), axis=1)
    return drafts, found
