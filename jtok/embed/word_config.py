"""Sizes of the word-pooled language model and of the unit-level one beside it.

Source: Thawani et al. 2023, arXiv 2310.11628, and its code.
"""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from jtok.errors import ArgumentError, check

__all__ = ["UnitConfig", "WordPooledConfig", "check_units", "check_words"]

_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class WordPooledConfig:
    """A language model of words that are pooled from units and spelled in units.

    Attributes:
      vocab_size: units, the end of a word (0) included.
      width: of all three parts.
      prefixes: vectors a word is pooled into, at least 1.
      words: most words of a text; with `bos` the first needs no word before it.
      units: most units of a word.
      layers, heads: of the main model over words.
      encoder_layers, encoder_heads, encoder_mlp: of the encoder of a word.
      decoder_layers, decoder_heads: of the decoder that spells a word.
      dropout: rate, everywhere.
      bos: put a learnt word before the first, so that the first is predicted too.
      remat: compute the decoder's layers again in the backward pass.
      unroll: unroll the loops over layers: longer to compile, faster on a CPU.
      dtype: of parameters and activations, "float32" or "bfloat16".
      compat: "official" keeps what the code does differently: prefix ids that are also
        units, an encoder that sees padding, positions that are added twice, a loss
        over padding.

    Raises:
      ArgumentError: a size that is not positive, heads that do not divide the width, a
        rate outside [0, 1), or an unknown dtype or `compat`.

    Example:
      >>> WordPooledConfig(vocab_size=259, width=64, heads=4).row
      20
    """

    vocab_size: int
    width: int = 512
    prefixes: int = 4
    words: int = 192
    units: int = 16
    layers: int = 8
    heads: int = 8
    encoder_layers: int = 2
    encoder_heads: int = 4
    encoder_mlp: int = 2048
    decoder_layers: int = 2
    decoder_heads: int = 8
    dropout: float = 0.1
    bos: bool = False
    remat: bool = False
    unroll: bool = False
    dtype: str = "float32"
    compat: Literal["official"] | None = None

    def __post_init__(self) -> None:
        _check_sizes(self, least={"vocab_size": 2})
        _check_heads(self, ("heads", "encoder_heads", "decoder_heads"))
        check(self.compat in (None, "official"), "compat", self.compat, "'official'")

    @property
    def row(self) -> int:
        """Slots of one word, prefixes included."""
        return self.prefixes + self.units

    @property
    def official(self) -> bool:
        """Whether the code's own ways are kept."""
        return self.compat == "official"


@dataclasses.dataclass(frozen=True)
class UnitConfig:
    """The baseline: a language model whose words are units.

    Attributes:
      vocab_size: units.
      width: of the model.
      length: most units of a text.
      layers, heads: of the model.
      dropout: rate; also on the input where positions are added.
      positions: add learnt positions; the paper's code forgets them.
      unroll, dtype: as in `WordPooledConfig`.

    Raises:
      ArgumentError: as for `WordPooledConfig`.

    Example:
      >>> UnitConfig(vocab_size=259, width=64, heads=4).positions
      True
    """

    vocab_size: int
    width: int = 512
    length: int = 192
    layers: int = 8
    heads: int = 8
    dropout: float = 0.1
    positions: bool = True
    unroll: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_sizes(self, least={"vocab_size": 2})
        _check_heads(self, ("heads",))


def _check_sizes(config: Any, least: dict[str, int]) -> None:
    for field in dataclasses.fields(config):
        value, low = getattr(config, field.name), least.get(field.name, 1)
        if field.type is int:
            check(value >= low, field.name, value, f"at least {low}")
    check(0 <= config.dropout < 1, "dropout", config.dropout, "a rate in [0, 1)")
    check(config.dtype in _DTYPES, "dtype", config.dtype, f"one of {_DTYPES}")


def _check_heads(config: Any, names: tuple[str, ...]) -> None:
    for name in names:
        heads = getattr(config, name)
        good = config.width % heads == 0
        check(good, name, heads, f"a divisor of the width {config.width}")


def check_words(
    config: WordPooledConfig,
    units: Int[Array, "batch words units"] | Int[np.ndarray, "batch words units"],
    lengths: Int[Array, "batch words"] | Int[np.ndarray, "batch words"],
    mask: Bool[Array, "batch words"] | Bool[np.ndarray, "batch words"] | None = None,
    *,
    least: int = 1,
) -> None:
    """Refuses words that the model cannot read.

    Values are looked at outside `jit` only; inside, ids are clamped into the alphabet.

    Args:
      config: the model's.
      units: `[batch, words, units]` ids, those of a word first.
      lengths: `[batch, words]` units of each word.
      mask: `[batch, words]` True for words, which come first in their row.
      least: words that a row must have room for.

    Raises:
      ArgumentError: too few or too many words or units, a length outside 1..units, an
        id outside the alphabet, or a word behind a row's end.

    Example:
      >>> config = WordPooledConfig(vocab_size=9, units=2, width=8)
      >>> check_words(config, np.array([[[3, 0]]]), np.array([[3]]))
      Traceback (most recent call last):
      jtok.errors.ArgumentError: lengths: got 3 in row 0, expected 1..2, the ...
    """
    words, size = units.shape[1:]
    expected = f"{least} to {config.words} words"
    check(least <= words <= config.words, "units", f"{words} words", expected)
    good = 1 <= size <= config.units
    check(good, "units", f"{size} units a word", f"1 to {config.units}")
    if any(isinstance(x, jax.core.Tracer) for x in (units, lengths, mask)):
        return
    ids, sizes = np.asarray(units), np.asarray(lengths)
    valid = np.ones(sizes.shape, bool) if mask is None else np.asarray(mask)
    gaps = (valid[:, 1:] & ~valid[:, :-1]).any(1)
    check(not gaps.any(), "mask", valid[gaps][:1], "words first, then padding")
    for row in np.flatnonzero((valid & ((sizes < 1) | (sizes > size))).any(1))[:1]:
        wrong = [int(n) for n, v in zip(sizes[row], valid[row]) if v]
        value = next(n for n in wrong if not 1 <= n <= size)
        raise ArgumentError(
            f"lengths: got {value} in row {row}, expected 1..{size}, the units of a "
            "word; split longer ones."
        )
    spelled = valid[..., None] & (np.arange(size) < sizes[..., None])
    _check_ids(ids[spelled], config.vocab_size)


def check_units(
    config: UnitConfig, ids: Int[Array, "batch seq"], *, least: int = 1
) -> None:
    """Refuses rows that the unit-level model cannot read.

    Args:
      config: the model's.
      ids: `[batch, seq]`.
      least: units that a row must have.

    Raises:
      ArgumentError: too few or too many units, or an id outside the alphabet.

    Example:
      >>> check_units(UnitConfig(vocab_size=3, width=8), jnp.array([[1, 3]]))
      Traceback (most recent call last):
      jtok.errors.ArgumentError: units: got the id 3, expected 0 <= id < 3...
    """
    seq = ids.shape[1]
    good = least <= seq <= config.length
    check(good, "units", f"{seq} in a row", f"{least} to {config.length}")
    if not isinstance(ids, jax.core.Tracer):
        _check_ids(np.asarray(ids), config.vocab_size)


def _check_ids(ids: np.ndarray, size: int) -> None:
    wrong = ids[(ids < 0) | (ids >= size)]
    if wrong.size:
        raise ArgumentError(
            f"units: got the id {int(wrong[0])}, expected 0 <= id < {size}, the size "
            "of the alphabet."
        )
