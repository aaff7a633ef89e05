"""What prepares other inputs than text, as a checkpoint's folder says."""

import pathlib
from typing import Any

__all__ = ["load_processor"]


def load_processor(folder: pathlib.Path, config: Any, vocabulary: Any) -> Any | None:
    """The processor of a checkpoint, None where it has none.

    Args:
      folder: of the checkpoint.
      config: of its model.
      vocabulary: its tokenizer, or None.

    Returns:
      What `Model.processor` holds, with a method `save(folder)`.
    """
    del folder, config, vocabulary
    return None
