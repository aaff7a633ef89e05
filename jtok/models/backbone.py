"""What a kind of model is made of, chosen by the type of its configuration."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jtok import nn
from jtok.errors import ArgumentTypeError

__all__ = ["Backbone", "backbone_of"]

PyTree = Any


def _no_cache(config: Any, batch: int, capacity: int) -> Any:
    del batch, capacity
    raise ArgumentTypeError(
        f"model: got a model of family {config.family!r}, which looks both ways and "
        "reads its whole input at once, expected a model with a cache."
    )


def _no_target(config: Any, read: Any = ()) -> Any:
    del read
    raise ArgumentTypeError(
        f"model: got a model of family {config.family!r}, which looks both ways and "
        "does not decode, expected a causal model with an unembedding."
    )


class Backbone(NamedTuple):
    """One kind of model, as pure functions that `Model`, `init` and decoding call.

    `Model` is one class for all kinds; the type of its `config` says which backbone
    runs. A new kind is a configuration class, a module with these functions, and a row
    in this module's table. Parameters of every kind are `embed`, `layers` (a tuple, or
    one tree stacked on a leading axis), `final_norm` (but of encoders whose norms come
    last) and, unless tied, `unembed`; encoders add their heads. Models of several
    parts have those of the texts' there, and the tower's in `vision`. The logical axes
    of all of them stand in the one table of `jtok.models.checkpoint`.

    Attributes:
      init_params: `(config, key) -> params`, with layers split.
      forward: `(params, config, inputs, *, positions, mask, bias, cache, taps, gates,
        logits) -> Output`. What has no meaning for the kind is refused by the
        argument's name.
      init_cache: `(config, batch, capacity) -> cache`, empty; refuses where the kind
        looks both ways and reads its whole input at once.
      target: `(config, read) -> Target`, where `read` are (site, layer) pairs; equal
        arguments give the same functions. Refuses likewise.
      compresses: whether `forward` also takes `compress`; others refuse it.
    """

    init_params: Callable[..., PyTree]
    forward: Callable[..., Any]
    init_cache: Callable[..., PyTree] = _no_cache
    target: Callable[..., Any] = _no_target
    compresses: bool = False


def backbone_of(config: Any) -> Backbone:
    """The backbone that a configuration is for.

    Args:
      config: of a decoder, an encoder, a tower, or a model of several of them.

    Returns:
      Its `Backbone`.

    Raises:
      ArgumentTypeError: no configuration of a model; the known are listed.

    Example:
      >>> from jtok.testing import tiny_config
      >>> backbone_of(tiny_config()).target(tiny_config()).info.trees
      True
    """
    table = _backbones()
    if type(config) not in table:
        known = ", ".join(kind.__name__ for kind in table)
        raise ArgumentTypeError(
            f"config: got {type(config).__name__}, expected one of {known}."
        )
    return table[type(config)]


@functools.cache
def _backbones() -> dict[type, Backbone]:
    # Here and not above, as these modules ask for the backbone of their callers.
    from jtok.models import (
        cache,
        checkpoint,
        clip,
        encoder,
        llava,
        mamba,
        model,
        sound,
        target,
        tower,
    )

    return {
        nn.DecoderConfig: Backbone(
            checkpoint.init_decoder,
            model.decoder_forward,
            cache.init_decoder_cache,
            target.decoder_target,
        ),
        nn.MambaConfig: Backbone(
            mamba.init_params, mamba.forward, mamba.init_cache, mamba.target
        ),
        nn.EncoderConfig: Backbone(
            encoder.init_params,
            encoder.forward,
            compresses=True,
        ),
        nn.SoundConfig: Backbone(
            sound.init_params,
            sound.forward,
            compresses=True,
        ),
        nn.TowerConfig: Backbone(
            tower.init_params,
            tower.forward,
            compresses=True,
        ),
        nn.ClipConfig: Backbone(
            clip.init_params,
            clip.forward,
            compresses=True,
        ),
        nn.LlavaConfig: Backbone(
            llava.init_params,
            llava.forward,
            llava.init_cache,
            llava.target,
            compresses=True,
        ),
    }
