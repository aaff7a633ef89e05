"""Models of different vocabularies, averaged byte by byte."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from jtok.decode.byte_level import ByteLevel
from jtok.decode.byte_model import ByteModel, pushed
from jtok.errors import VocabMismatchError, check

__all__ = ["ByteEnsemble", "byte_ensemble"]


class ByteEnsemble(ByteModel):
    """Several byte-level models as one; made by `byte_ensemble`.

    A state is the tuple of the members' states.

    Example:
      >>> from jtok.decode import byte_level
      >>> from jtok.testing import tiny_vocabulary
      >>> member = byte_level(lambda ids: np.zeros(280), tiny_vocabulary())
      >>> both = byte_ensemble([member, member])
      >>> both.is_exact(both.start("th")).tolist()
      [True]
    """

    def __init__(
        self, members: Sequence[ByteLevel], weights: np.ndarray, mean: str
    ) -> None:
        self.members, self.weights, self.mean = tuple(members), weights, mean

    def start(
        self, prompts: Any, *, special_prefix_ids: Sequence[int] | None = None
    ) -> tuple[Any, ...]:
        """The members' states after some prompts.

        Args:
          prompts: text or bytes, or a list of them.
          special_prefix_ids: None; ids mean something else to every member.

        Returns:
          A state for each member.

        Raises:
          ArgumentError: `special_prefix_ids` were given.
        """
        check(
            special_prefix_ids is None, "special_prefix_ids", special_prefix_ids,
            "None: give each member its own in byte_level",
        )  # fmt: skip
        return tuple(member.start(prompts) for member in self.members)

    def push(self, state: tuple[Any, ...], bytes_: Any) -> tuple[Any, ...]:
        """The states after one byte more in every row.

        Args:
          state: from `start` or `push`.
          bytes_: a byte for each row, or one for all.

        Returns:
          A state for each member.
        """
        step = pushed(bytes_, len(state[0].rows))
        pairs = zip(self.members, state, strict=True)
        return tuple(member.push(one, step) for member, one in pairs)

    def distribution(self, state: tuple[Any, ...]) -> Float[np.ndarray, "rows 257"]:
        """Log-probabilities of the next byte.

        Args:
          state: from `start` or `push`.

        Returns:
          `[rows, 257]` float32 nats; 256 is the end of the text.
        """
        pairs = zip(self.members, state, strict=True)
        return self._mean([member.distribution(one) for member, one in pairs])

    def symbol_logprobs(self, state: tuple[Any, ...]) -> Float[np.ndarray, "rows all"]:
        """Log-probabilities with a symbol for each special token.

        Args:
          state: from `start` or `push`.

        Returns:
          `[rows, 256 + specials]` float32 nats.

        Raises:
          VocabMismatchError: the members' special tokens are not the same, in order.
        """
        named = [_special_names(member) for member in self.members]
        if any(names != named[0] for names in named):
            raise VocabMismatchError(
                f"members: their special tokens are {named[0]} and others, expected "
                "the same for each; distribution() folds them into one."
            )
        pairs = zip(self.members, state, strict=True)
        return self._mean([member.symbol_logprobs(one) for member, one in pairs])

    def is_exact(self, state: tuple[Any, ...]) -> Bool[np.ndarray, " rows"]:
        """Whether every member counted all mass.

        Args:
          state: from `start` or `push`.

        Returns:
          `[rows]` bool.
        """
        pairs = zip(self.members, state, strict=True)
        return np.all([member.is_exact(one) for member, one in pairs], axis=0)

    def _mean(self, logs: list[np.ndarray]) -> np.ndarray:
        stacked = np.stack(logs).astype(np.float64)
        weights = self.weights[:, None, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.mean == "arithmetic":
                mixed = np.logaddexp.reduce(stacked + np.log(weights), axis=0)
            else:
                shares = np.where(weights > 0, stacked * weights, 0.0)
                mixed = shares.sum(0)
                mixed = mixed - np.logaddexp.reduce(mixed, axis=-1, keepdims=True)
        return mixed.astype(np.float32)


def byte_ensemble(
    members: Sequence[ByteLevel],
    weights: Sequence[int | float] | None = None,
    *,
    mean: Literal["arithmetic", "geometric"] = "arithmetic",
) -> ByteEnsemble:
    """Averages models byte by byte, whatever their vocabularies.

    Args:
      members: byte-level models; each keeps its own state, and every byte is pushed to
        all of them.
      weights: of the members, not negative; divided by their sum. None for equal ones.
      mean: of the probabilities, or geometric (of the logarithms, normalised).

    Returns:
      `ByteEnsemble`, with the methods of a `ByteLevel` that need no tokens.

    Raises:
      ArgumentError: no members, or weights that are no weights.
      VocabMismatchError: some members can end a text and others cannot.

    Source: Phan et al. 2025, arXiv 2410.09303, ensembles. Differs: weights, geometric.

    Example:
      >>> from jtok.decode import byte_level
      >>> from jtok.testing import tiny_vocabulary
      >>> member = byte_level(lambda ids: np.zeros(280), tiny_vocabulary())
      >>> byte_ensemble([member, member]).next_byte_logprobs("th").shape
      (257,)
    """
    check(len(members) > 0, "members", members, "at least one")
    check(mean in ("arithmetic", "geometric"), "mean", mean, "arithmetic or geometric")
    given = [1.0] * len(members) if weights is None else list(weights)
    good = len(given) == len(members) and all(
        math.isfinite(weight) and weight >= 0 for weight in given
    )
    check(
        good and sum(given) > 0, "weights", weights,
        f"{len(members)} numbers >= 0, not all 0",
    )  # fmt: skip
    ends = {bool(member.symbols) for member in members}
    if len(ends) > 1:
        raise VocabMismatchError(
            "members: some have special tokens that end a text and others have none, "
            "expected the same meaning of the end of a text."
        )
    return ByteEnsemble(members, np.asarray(given, np.float64) / sum(given), mean)


def _special_names(member: ByteLevel) -> list[str]:
    """Roles, else texts, of the special tokens that have a symbol."""
    roles = {id_: role for role, id_ in member.vocabulary.special.items()}
    surface = member.vocabulary.surface_of
    return [roles.get(id_, surface(id_) or "") for id_ in member.symbols]
