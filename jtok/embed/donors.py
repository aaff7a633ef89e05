"""A donor: another model whose rows say what the new tokens are like."""

import os
from typing import Any, NamedTuple

import jax
import numpy as np

from jtok import models
from jtok.embed.init import Rows, Task, check_anchors, check_finite, rows_of
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.text.overlap import overlap

__all__ = ["DonorRows", "donor_rows", "donor_view"]


class DonorRows(NamedTuple):
    """What a method that has a donor works on, for one matrix.

    Attributes:
      atoms: `[anchors, donor dim]` donor rows of shared tokens.
      base: `[anchors, dim]` the source's rows of the same tokens.
      targets: `[found, donor dim]` donor rows of the new tokens that have one.
      found: `[new]` bool: the donor has a row for this new token.
    """

    atoms: jax.Array
    base: jax.Array
    targets: jax.Array
    found: np.ndarray


def donor_rows(donor: Any) -> Rows:
    """The rows of a donor, read from disk where it is a name.

    Args:
      donor: `jtok.models.Model`, `Rows` (without an output, its input rows are both),
        a folder or a hub id.

    Returns:
      `Rows`.

    Raises:
      ArgumentError: a model without a vocabulary, or with neither an unembedding nor
        a tied one.
      ArgumentTypeError: another kind of thing.

    Example:
      >>> from jtok.testing import tiny_model, tiny_vocabulary
      >>> model = tiny_model(vocab_size=280).replace(vocabulary=tiny_vocabulary())
      >>> donor_rows(model).input.shape
      (280, 32)
    """
    if isinstance(donor, str | os.PathLike):
        donor = models.load(donor)
    if isinstance(donor, Rows):
        rows = donor
    elif isinstance(donor, models.Model):
        if not donor.config.tied and "unembed" not in donor.params:
            raise ArgumentError(
                "donor: got a model with neither an unembedding nor a tied one, "
                "expected one that predicts tokens."
            )
        rows = rows_of(donor)
    else:
        raise ArgumentTypeError(
            f"donor: got {type(donor).__name__}, expected a Model, Rows, a folder or a "
            "hub id."
        )
    check_finite(rows.input, rows.vocabulary, "donor.input")
    if rows.output is not None:
        check_finite(rows.output, rows.vocabulary, "donor.output")
    return rows


def donor_view(
    task: Task, donor: Rows, *, least: int = 1, name: str = "k"
) -> DonorRows:
    """Lines up a donor's rows with a task's shared and new tokens.

    Args:
      task: the matrix to fill.
      donor: whose vocabulary is the target's, or shares tokens with it.
      least: shared tokens that are needed.
      name: of the argument that needs them, for messages.

    Returns:
      `DonorRows`, anchors by ascending target id.

    Raises:
      VocabMismatchError: the vocabularies share no token with rows.
      ArgumentError: they share fewer than `least`.

    Example:
      >>> donor_view.__name__
      'donor_view'
    """
    matrix = donor.output if task.name == "output" else donor.input
    matrix = donor.input if matrix is None else matrix
    ids = _donor_ids(task, donor, matrix.shape[0])
    source_ids, target_ids = task.anchors
    there = ids[target_ids] >= 0
    shared = task._replace(overlap=_only(task, ids))
    check_anchors(shared, least, name)
    new = ids[task.ids]
    return DonorRows(
        matrix[ids[target_ids[there]]],
        task.source[source_ids[there]],
        matrix[new[new >= 0]],
        new >= 0,
    )


def _donor_ids(task: Task, donor: Rows, rows: int) -> np.ndarray:
    """The donor's id of every target id, -1 where it has no row."""
    target = task.target_vocabulary
    if donor.vocabulary == target:
        ids = np.arange(target.size, dtype=np.int32)
    else:
        shared = overlap(donor.vocabulary, target)
        ids = np.full(target.size, -1, np.int32)
        ids[shared.target_ids] = shared.source_ids
    return np.where(ids < rows, ids, -1)


def _only(task: Task, ids: np.ndarray) -> Any:
    """The shared tokens that have a donor row, too."""
    return task.overlap.keep(ids[task.overlap.target_ids] >= 0)
