"""Inputs of models that take images and texts."""

from typing import Any

from flax import struct

__all__ = ["ImageText"]


@struct.dataclass
class ImageText:
    """Images and texts, for a model that holds a tower beside a model of texts.

    A pytree that `Model` takes in place of ids.

    Attributes:
      ids: `[batch, seq]` integer ids. Of LLaVA each id of an image stands for one
        vector of an image: as many of them as there are vectors, in the order of the
        images, row by row of the batch.
      images: `[images, height, width, channels]` floating pixels, normalised as the
        model's processor does.

    Example:
      >>> import jax.numpy as jnp
      >>> from jtok.testing import tiny_model
      >>> both = ImageText(jnp.array([[1, 2, 95]]), jnp.ones((2, 32, 32, 3)))
      >>> tiny_model(family="clip")(both).logits.shape
      (2, 1)
    """

    ids: Any
    images: Any
