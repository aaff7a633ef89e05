"""Filling in the middle, with the cursor anywhere in a word."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from jtok.decode.byte_level import ByteLevel, ByteState
from jtok.decode.byte_model import as_bytes
from jtok.decode.byte_sampling import draw_bytes
from jtok.errors import check

__all__ = ["FillTokens", "fill_in_middle", "middle_state"]


class FillTokens(NamedTuple):
    """The special tokens of a model that was trained to fill in.

    Attributes:
      prefix: id before what stands left of the cursor.
      suffix: id before what stands right of it.
      middle: id before what goes between.
      order: `psm`: prefix, suffix, middle, so that the prefix is closed by a special
        token. `spm`: suffix first, and the middle goes on right behind the prefix, as
        one text whose last token is still open.
      start: ids before all that, as BOS.
    """

    prefix: int
    suffix: int
    middle: int
    order: Literal["psm", "spm"] = "psm"
    start: tuple[int, ...] = ()


def middle_state(
    by_byte: ByteLevel, prefix: str | bytes, suffix: str | bytes, tokens: FillTokens
) -> ByteState:
    """The state at the cursor.

    In the order `spm`, `<PRE> <SUF> suffix <MID> prefix`, covers of the prefix stay
    open and every cursor is exact. In `psm`, `<PRE> prefix <SUF> suffix <MID>`, the
    parts are encoded as whole texts. A part that is cut inside a character cannot end
    there; it is encoded as one that goes on, and the state is not exact.

    Args:
      by_byte: the model.
      prefix: text or bytes left of the cursor.
      suffix: text or bytes right of it.
      tokens: the special ids and their order.

    Returns:
      `ByteState` of one row.

    Raises:
      ArgumentError: an id that is no special token, another order, or text that the
        tokenizer cannot write.

    Source: Phan et al. 2025, arXiv 2410.09303, fill-in-the-middle.

    Example:
      >>> import numpy as np
      >>> from jtok.decode import byte_level
      >>> from jtok.text import Vocabulary
      >>> vocabulary = Vocabulary.train_bpe(["a b"], 259, ["<p>", "<s>", "<m>"])
      >>> by_byte = byte_level(lambda ids: np.zeros(259), vocabulary)
      >>> state = middle_state(by_byte, "a", "b", FillTokens(0, 1, 2, "spm"))
      >>> by_byte.distribution(state).shape
      (1, 257)
    """
    check(tokens.order in ("psm", "spm"), "tokens", tokens.order, "psm or spm")
    special = by_byte.vocabulary.special_ids
    ids = (tokens.prefix, tokens.suffix, tokens.middle, *tokens.start)
    odd = [id_ for id_ in ids if id_ not in special]
    check(not odd, "tokens", odd, "ids of special tokens")
    right, closed = by_byte.encode(as_bytes(suffix, "suffix"))
    head: Sequence[int]
    if tokens.order == "spm":
        head = (tokens.prefix, tokens.suffix, *right, tokens.middle)
        text: Any = as_bytes(prefix, "prefix")
    else:
        left, whole = by_byte.encode(as_bytes(prefix, "prefix"))
        closed = closed and whole
        head = (tokens.prefix, *left, tokens.suffix, *right, tokens.middle)
        text = b""
    state = by_byte.start(text, special_prefix_ids=(*tokens.start, *head))
    return state if closed else state.unresolved()


def fill_in_middle(
    by_byte: ByteLevel,
    prefix: str | bytes,
    suffix: str | bytes,
    *,
    tokens: FillTokens,
    max_bytes: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    allowed: Any = None,
) -> bytes:
    """Draws what goes between two texts, byte by byte, wherever the cursor stands.

    Args:
      by_byte: the model.
      prefix: text or bytes left of the cursor.
      suffix: text or bytes right of it.
      tokens: the special ids and their order.
      max_bytes: most bytes to draw.
      temperature: above 0; below 0.1 the most probable byte, the lowest of equals.
      top_p: mass of the nucleus, in (0, 1].
      seed: of the draws.
      allowed: `[257]` bool symbols that may come, or a function of the bytes so far.

    Returns:
      The bytes up to the end of the text.

    Raises:
      ArgumentError: as `middle_state`, or a number out of range.

    Source: Phan et al. 2025, arXiv 2410.09303, fill-in-the-middle.

    Example:
      >>> import numpy as np
      >>> from jtok.decode import byte_level
      >>> from jtok.text import Vocabulary
      >>> vocabulary = Vocabulary.train_bpe(["a b"], 259, ["<p>", "<s>", "<m>"])
      >>> by_byte = byte_level(lambda ids: np.zeros(259), vocabulary)
      >>> tokens = FillTokens(0, 1, 2)
      >>> len(fill_in_middle(by_byte, "a", "b", tokens=tokens, max_bytes=1))
      1
    """
    drawn = draw_bytes(
        middle_state(by_byte, prefix, suffix, tokens),
        by_byte.distribution,
        by_byte.push,
        rows=1,
        max_bytes=max_bytes,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        allowed=allowed,
    )
    return drawn[0]
