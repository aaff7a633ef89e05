"""What byte by byte decoding is compared with: prompts taken as whole tokens."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from jtok.decode._byte_models import NextToken
from jtok.decode.byte_level import ByteLevel, _made
from jtok.models import Model, Target
from jtok.text import Vocabulary

__all__ = ["token_healing", "token_prompt"]


def token_prompt(
    lm: Model | Target | NextToken | Callable[[Any], Any],
    vocabulary: Vocabulary | None = None,
    *,
    params: Any = None,
    masking: Literal["renorm", "mask", "fast"] = "renorm",
    special_prefix_ids: Sequence[int] | None = None,
) -> ByteLevel:
    """The naive baseline: the prompt's own encoding, and any token after it.

    The next byte is the first byte of the next token. That the prompt was encoded as it
    stands already says that the text does not go on in a way that would have changed
    its last token, which is why cuts inside a word come out wrong.

    Args:
      lm: as for `byte_level`.
      vocabulary: as for `byte_level`.
      params: as for `byte_level`.
      masking: as for `byte_level`; `fast` is what people do: the model as it is.
      special_prefix_ids: as for `byte_level`.

    Returns:
      `ByteLevel` whose states are never exact.

    Raises:
      ArgumentError: as `byte_level`.

    Source: Phan et al. 2025, arXiv 2410.09303, the token-level baseline.

    Example:
      >>> import numpy as np
      >>> from jtok.testing import tiny_vocabulary
      >>> naive = token_prompt(lambda ids: np.zeros(280), tiny_vocabulary())
      >>> naive.next_byte_logprobs(b"th").shape
      (257,)
    """
    return _made(
        lm, vocabulary, params, masking, "bytes", None, 0.0, special_prefix_ids, None,
        None, "token",
    )  # fmt: skip


def token_healing(
    lm: Model | Target | NextToken | Callable[[Any], Any],
    vocabulary: Vocabulary | None = None,
    *,
    params: Any = None,
    masking: Literal["renorm", "mask", "fast"] = "renorm",
    special_prefix_ids: Sequence[int] | None = None,
) -> ByteLevel:
    """Token healing: the prompt without its last token, whose bytes must come again.

    Exact only where one token back is enough, and all other ways to write the prompt
    are improbable.

    Args:
      lm: as for `byte_level`.
      vocabulary: as for `byte_level`.
      params: as for `byte_level`.
      masking: as for `byte_level`; `fast` is what people do: the model as it is.
      special_prefix_ids: as for `byte_level`.

    Returns:
      `ByteLevel` whose states are never exact.

    Raises:
      ArgumentError: as `byte_level`.

    Source: token healing of the guidance library, the baseline of Phan et al. 2025,
    arXiv 2410.09303.

    Example:
      >>> import numpy as np
      >>> from jtok.testing import tiny_vocabulary
      >>> healed = token_healing(lambda ids: np.zeros(280), tiny_vocabulary())
      >>> healed.next_byte_logprobs(b"th").shape
      (257,)
    """
    return _made(
        lm, vocabulary, params, masking, "bytes", None, 0.0, special_prefix_ids, None,
        None, "healed",
    )  # fmt: skip
