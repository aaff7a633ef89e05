"""Sizes of an encoder that is pre-trained on masked n-grams.

Source: Xiao et al. 2021, arXiv 2010.12148, section 3.
"""

import dataclasses
from typing import Any

from flax import struct

from jtok import nn
from jtok.errors import ArgumentTypeError, VocabMismatchError, check
from jtok.models import Model
from jtok.models.families_heads import head_options
from jtok.text import Lexicon

__all__ = ["GramConfig", "GramModel", "gram_config"]

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class GramConfig:
    """Sizes of what pre-training adds to an encoder.

    Attributes:
      encoder: of the main model, whose `vocab_size` counts tokens without n-grams.
      lexicon_size: number of n-grams.
      longest: tokens of an n-gram at most; as many fine queries have a vector.
      rank: width of the table of all classes; None makes it the encoder's. A narrow one
        makes hundreds of thousands of n-grams affordable.
      generator: of the model that fills masks; None for none.
      tied: generator and main model share the table of all classes.
    """

    encoder: nn.EncoderConfig
    lexicon_size: int
    longest: int = 3
    rank: int | None = None
    generator: nn.EncoderConfig | None = None
    tied: bool = True

    def __post_init__(self) -> None:
        check(self.lexicon_size >= 0, "lexicon_size", self.lexicon_size, "0 or more")
        check(self.longest >= 2, "longest", self.longest, "at least 2")
        check(self.rank is None or self.rank >= 1, "rank", self.rank, "None or >= 1")
        for name, sizes in (("encoder", self.encoder), ("generator", self.generator)):
            if sizes is not None:
                _check_encoder(name, sizes)
                bare = sizes.head is None and not sizes.pooler
                expected = "a bare one, see gram_config"
                check(bare, name, "an encoder with a head", expected)
        other = self.generator
        if other is not None:
            same = other.vocab_size == self.encoder.vocab_size
            tokens = f"{self.encoder.vocab_size} tokens, as the encoder has"
            check(same, "generator", f"{other.vocab_size} tokens", tokens)
            wide = not self.tied or other.width == self.encoder.width
            width = f"{self.encoder.width}, as the table that it shares"
            check(wide, "generator", f"a width of {other.width}", width)

    @property
    def num_classes(self) -> int:
        """Tokens and n-grams together."""
        return self.encoder.vocab_size + self.lexicon_size


def _check_encoder(name: str, sizes: Any) -> None:
    if not isinstance(sizes, nn.EncoderConfig):
        kind = type(sizes).__name__
        raise ArgumentTypeError(f"{name}: got a {kind}, expected an EncoderConfig.")
    plain = sizes.positions == "learned" and not sizes.norm_first
    plain = plain and not sizes.windows
    expected = "learned positions, norms that come last and no windows"
    check(plain, name, f"an encoder of family {sizes.family!r}", expected)
    good = sizes.relative in (None, "ernie")
    check(good, name, f"relative={sizes.relative!r}", "None or 'ernie'")


@struct.dataclass
class GramModel:
    """An encoder in pre-training: a frozen pytree.

    Attributes:
      params: `encoder` (without rows for tokens), `table` `[classes, width or rank]`,
        with a rank `tokens` `[vocab, width]` and `up` `[rank, width]`, `queries`
        `[longest, width]`, the heads `coarse` and `fine`, and with a generator
        `generator` and `replaced`.
      config: sizes.
    """

    params: PyTree
    config: GramConfig = struct.field(pytree_node=False)


def gram_config(
    model: Model,
    lexicon: Lexicon,
    *,
    generator_layers: int = 0,
    rank: int | None = None,
    tied: bool = True,
) -> GramConfig:
    """The sizes for pre-training a given encoder further.

    Args:
      model: the encoder; what it has of heads and pooler is left out.
      lexicon: the n-grams.
      generator_layers: of a generator as wide as the encoder; 0 for none.
      rank: width of the table of all classes; None makes it the encoder's.
      tied: generator and main model share the table of all classes.

    Returns:
      `GramConfig`.

    Raises:
      ArgumentError: another kind of encoder, or more layers than it has.
      VocabMismatchError: a lexicon of another vocabulary.

    Source: arXiv 2010.12148, section 3.4.

    Example:
      >>> from jtok.testing import tiny_model
      >>> lexicon = jtok.text.Lexicon.of([(5, 6)], vocab_size=96)
      >>> gram_config(tiny_model(family="bert"), lexicon).num_classes
      97
    """
    sizes = model.config
    _check_encoder("model", sizes)
    _check_lexicon(model, lexicon)
    good = 0 <= generator_layers <= sizes.num_layers
    wanted = f"0 to {sizes.num_layers}"
    check(good, "generator_layers", generator_layers, wanted)
    options = head_options(sizes.family, None)
    bare = dataclasses.replace(sizes, next_sentence=False, **options)
    small = dataclasses.replace(bare, num_layers=max(generator_layers, 1))
    return GramConfig(
        encoder=bare,
        lexicon_size=len(lexicon),
        longest=lexicon.longest,
        rank=rank,
        generator=small if generator_layers else None,
        tied=tied,
    )


def _check_lexicon(model: Model, lexicon: Lexicon) -> None:
    known = getattr(model.vocabulary, "hash", None)
    differs = None not in (known, lexicon.vocabulary) and known != lexicon.vocabulary
    if differs or lexicon.vocab_size != model.config.vocab_size:
        raise VocabMismatchError(
            f"lexicon: made with {lexicon.vocab_size} ids (vocabulary "
            f"{lexicon.vocabulary}), the model has {model.config.vocab_size} ids "
            f"(vocabulary {known})."
        )
