"""What every model of bytes offers: start, push, distribution, and what they make."""

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jtok.decode.byte_sampling import Allowed, draw_bytes, masked
from jtok.errors import ArgumentError, ArgumentTypeError, check

__all__ = ["ByteModel", "Text", "as_bytes", "listed"]

Text = str | bytes


class ByteModel(abc.ABC):
    """Probabilities of the next byte, one byte after another, for several texts.

    States are values: `push` gives a new one and leaves the old as it was.

    Example:
      >>> from jtok.decode import byte_level
      >>> from jtok.testing import tiny_vocabulary
      >>> by_byte = byte_level(lambda ids: np.zeros(280), tiny_vocabulary())
      >>> isinstance(by_byte, ByteModel), by_byte.sample("the", max_bytes=0)
      (True, b'')
    """

    @abc.abstractmethod
    def start(
        self, prompts: Any, *, special_prefix_ids: Sequence[int] | None = None
    ) -> Any:
        """The state after some prompts.

        Args:
          prompts: text or bytes, or a list of them.
          special_prefix_ids: ids before each prompt, which no token crosses; None for
            what the tokenizer puts before a text.
        """

    @abc.abstractmethod
    def push(self, state: Any, bytes_: int | bytes | Sequence[int]) -> Any:
        """The state after one byte more in every row.

        Args:
          state: from `start` or `push`.
          bytes_: a byte for each row; an int is one for all rows.
        """

    @abc.abstractmethod
    def distribution(self, state: Any) -> Float[np.ndarray, "rows 257"]:
        """`[rows, 257]` float32 log-probabilities; 256 is the end of the text."""

    def next_byte_logprobs(
        self,
        prompts: Any,
        *,
        special_prefix_ids: Sequence[int] | None = None,
        allowed: Any = None,
    ) -> Float[np.ndarray, "*rows 257"]:
        """Log-probabilities of the next byte.

        Args:
          prompts: text or bytes, or a list of them; empty ones are allowed.
          special_prefix_ids: as for `start`.
          allowed: `[257]` bool symbols that may come; the others get -inf.

        Returns:
          `[257]` float32 nats, `[rows, 257]` of a list; 256 is the end of the text.

        Raises:
          ArgumentError: text that the tokenizer cannot write.
          NoCoverError: no allowed symbol has mass.
        """
        _, single = listed(prompts)
        state = self.start(prompts, special_prefix_ids=special_prefix_ids)
        logs = self.distribution(state)
        if allowed is not None:
            with np.errstate(divide="ignore"):
                logs = np.log(masked(np.exp(logs), allowed))
        return logs[0] if single else logs

    def score(
        self,
        prompts: Any,
        continuations: Any,
        *,
        special_prefix_ids: Sequence[int] | None = None,
    ) -> Any:
        """Log-probability of continuations, whatever tokens they would be.

        Args:
          prompts: text or bytes, or a list of them.
          continuations: one for each prompt.
          special_prefix_ids: as for `start`.

        Returns:
          Nats: a float, or `[rows]` float64 of a list.

        Raises:
          ArgumentError: as `next_byte_logprobs`; or other numbers of texts.
        """
        texts, single = listed(prompts)
        tails, _ = listed(continuations)
        same = len(texts) == len(tails)
        check(same, "continuations", len(tails), f"{len(texts)}, one a prompt")
        state = self.start(prompts, special_prefix_ids=special_prefix_ids)
        rows = [as_bytes(tail, "continuations") for tail in tails]
        total = np.zeros(len(rows))
        for place in range(max(map(len, rows))):
            logs = self.distribution(state).astype(np.float64)
            # A row that is done repeats some byte that can come, uncounted.
            step = [
                row[place] if place < len(row) else int(np.argmax(logs[i, :256]))
                for i, row in enumerate(rows)
            ]
            for i, row in enumerate(rows):
                total[i] += logs[i, step[i]] if place < len(row) else 0.0
            dead = [i for i in range(len(rows)) if logs[i, step[i]] == -np.inf]
            if dead:
                return self._score_apart(texts, rows, special_prefix_ids, single)
            if place + 1 < max(map(len, rows)):
                state = self.push(state, step)
        return float(total[0]) if single else total

    def _score_apart(
        self, texts: list[Any], rows: list[bytes], ids: Any, single: bool
    ) -> Any:
        """Scores row by row, as one has a byte that cannot come: its score is -inf."""
        if len(texts) > 1:
            pairs = zip(texts, rows, strict=True)
            return np.asarray([self.score(*p, special_prefix_ids=ids) for p in pairs])
        return float("-inf") if single else np.asarray([-np.inf])

    def sample(
        self,
        prompts: Any,
        *,
        max_bytes: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        allowed: Allowed = None,
        special_prefix_ids: Sequence[int] | None = None,
    ) -> bytes | list[bytes]:
        """Draws text byte by byte; it stops at the end of the text.

        Args:
          prompts: text or bytes, or a list of them.
          max_bytes: most bytes of a row.
          temperature: above 0; below 0.1 the most probable byte, the lowest of equals.
          top_p: mass of the nucleus, in (0, 1].
          seed: row `i` draws from `(seed, i)`.
          allowed: `[257]` bool symbols that may come, or a function that gives it from
            the bytes drawn so far.
          special_prefix_ids: as for `start`.

        Returns:
          The bytes without the prompt; a list of them for a list of prompts.

        Raises:
          ArgumentError: a number out of range, or as `next_byte_logprobs`.
          NoCoverError: no allowed symbol has mass.
        """
        texts, single = listed(prompts)
        drawn = draw_bytes(
            self.start(prompts, special_prefix_ids=special_prefix_ids),
            self.distribution,
            self.push,
            rows=len(texts),
            max_bytes=max_bytes,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            allowed=allowed,
        )
        return drawn[0] if single else drawn


def listed(prompts: Any) -> tuple[list[Any], bool]:
    """Prompts as a list, and whether there was a single one."""
    if isinstance(prompts, str | bytes):
        return [prompts], True
    if not isinstance(prompts, Sequence):
        raise ArgumentTypeError(
            f"prompts: got {type(prompts).__name__}, expected text, bytes or a list."
        )
    check(len(prompts) > 0, "prompts", prompts, "at least one prompt")
    return list(prompts), False


def as_bytes(text: Any, name: str) -> bytes:
    """The bytes of a text.

    Raises:
      ArgumentError: lone surrogates.
      ArgumentTypeError: neither text nor bytes.
    """
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise ArgumentTypeError(
            f"{name}: got {type(text).__name__}, expected text or bytes."
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"{name}: got {text[:40]!r}, expected text without lone surrogates "
            f"(at {error.start})."
        ) from error


def pushed(bytes_: int | bytes | Sequence[int], rows: int) -> list[int]:
    """One byte for each row."""
    many = [bytes_] * rows if isinstance(bytes_, int | np.integer) else list(bytes_)
    good = len(many) == rows and all(0 <= byte < 256 for byte in many)
    check(good, "bytes_", bytes_, f"{rows} bytes, one a row, in 0..255")
    return [int(byte) for byte in many]
