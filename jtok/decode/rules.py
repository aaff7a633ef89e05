"""Which rule verifies a proposal."""

from typing import Any

from jtok.decode.rejection import rejection
from jtok.decode.types import Proposal, Rule
from jtok.decode.verify import EXACT
from jtok.errors import ArgumentError, ArgumentTypeError

__all__ = ["exact", "rule_for"]


def exact() -> Rule:
    """The rule that equals plain decoding token by token, for any drafts.

    Returns:
      `EXACT`.

    Example:
      >>> exact().guarantee
      'token'
    """
    return EXACT


def rule_for(rule: Rule | None, proposal: Proposal, *, sampled: bool) -> Rule:
    """The rule that a run uses.

    Args:
      rule: what the user chose, or None: rejection for drafts that come with their
        law where some row samples, else exact.
      proposal: one of the drafter's, or its shapes.
      sampled: whether some row has a temperature above 0.

    Returns:
      `Rule`.

    Raises:
      ArgumentError: the rule needs `q` and the proposal has none.
      ArgumentTypeError: `rule` is no `Rule`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jtok.ops import Tree
      >>> root = Proposal(jnp.ones((1, 1), int), jnp.ones((1, 1), bool),
      ...                 tree=Tree.chain(0))
      >>> rule_for(None, root, sampled=True).guarantee
      'token'
    """
    given: Any = rule
    if given is None:
        return rejection() if sampled and proposal.q is not None else EXACT
    if not isinstance(given, Rule):
        raise ArgumentTypeError(
            f"rule: got {type(given).__name__}, expected None or a Rule, such as "
            "rejection() gives."
        )
    if given.needs_q and proposal.q is None:
        raise ArgumentError(
            "rule: it needs the law q that drafts were drawn from, and this drafter "
            "has none (its drafts are point masses); expected None, exact() or "
            "sequential()."
        )
    return given
