"""A trained network as one of the ways to make rows for another vocabulary.

Source: Minixhofer et al. 2024, arXiv 2405.07883, section 3.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok.embed.hypernetwork import (
    Hypernetwork,
    PredictedRows,
    apply_network,
    language_index,
    source_rows,
)
from jtok.embed.init import (
    EmbeddingInit,
    Made,
    Options,
    Report,
    Rows,
    Task,
    initialiser,
)
from jtok.errors import ArgumentError, VocabMismatchError, check
from jtok.text import Vocabulary, byte_converted, surface_forms

__all__ = ["hypernetwork", "predict_vocabulary"]


def predict_vocabulary(
    network: Hypernetwork,
    rows: Rows,
    target: Vocabulary,
    *,
    language: int | str | None = None,
    batch: int = 5000,
    maxlen: int | None = None,
) -> tuple[PredictedRows, np.ndarray]:
    """Predicts the rows of all tokens of a vocabulary, however large.

    Special tokens get what the network says, too; copy theirs.

    Args:
      network: the network.
      rows: of the source model, with its vocabulary.
      target: the vocabulary whose tokens are wanted.
      language: as for `predict_rows`.
      batch: tokens at a time; one compilation serves all.
      maxlen: pieces to read; None is the network's own.

    Returns:
      `PredictedRows` of `target.size` tokens, and `[size]` bool: the token has more
      pieces than are read. Gaps of the vocabulary are all padding.

    Raises:
      ArgumentError: `batch` below 1, or rows that do not fit.
      VocabMismatchError: the rows are not of the network's source vocabulary.

    Source: arXiv 2411.18553v1, section 3.3.

    Example:
      >>> from jtok.embed import HypernetworkConfig, init_hypernetwork
      >>> from jtok.testing import tiny_vocabulary
      >>> rows = Rows(jnp.ones((280, 32)), None, tiny_vocabulary())
      >>> config = HypernetworkConfig(row_width=32, source_size=280, pad_id=0,
      ...     hidden=16, intermediate=32, heads=2)
      >>> network = init_hypernetwork(config, jax.random.key(0))
      >>> made, long = predict_vocabulary(network, rows, tiny_vocabulary(270))
      >>> made.input.shape, int(long.sum())
      ((270, 32), 0)
    """
    check(batch >= 1, "batch", batch, "at least 1")
    config = network.config
    _check_owner(network, rows.vocabulary)
    source = source_rows(rows, config)
    index = language_index(network, language)
    forms, long = _target_forms(network, rows.vocabulary, target, maxlen)
    run = jax.jit(apply_network, static_argnums=(1, 5))
    parts = []
    for start in range(0, len(forms), batch):
        part = forms[start : start + batch]
        if len(forms) > batch:
            filler = ((0, batch - len(part)), (0, 0))
            part = np.pad(part, filler, constant_values=config.pad_id)
        parts.append(run(network.params, config, source, part, index, None))
    joined = jax.tree.map(lambda *x: jnp.concatenate(x)[: target.size], *parts)
    return joined, long


def _target_forms(
    network: Hypernetwork, base: Vocabulary, target: Vocabulary, maxlen: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Surface forms of all target ids, and which of them are cut off."""
    config = network.config
    source = byte_converted(base)
    most = config.source_size + config.extra
    if source.size > most:
        raise VocabMismatchError(
            f"rows: the vocabulary has {source.size} tokens and bytes, expected at "
            f"most {most}, those of the network."
        )
    spelled = byte_converted(target).token_bytes[: target.size]
    filled = [place for place, token in enumerate(spelled) if token]
    size = config.maxlen if maxlen is None else maxlen
    found = surface_forms(
        source, [spelled[i] for i in filled], maxlen=size, pad_id=config.pad_id
    )
    forms = np.full((target.size, size), config.pad_id, np.int32)
    long = np.zeros(target.size, bool)
    forms[filled], long[filled] = found.ids, found.truncated
    return forms, long


def _check_owner(network: Hypernetwork, vocabulary: Any) -> None:
    known = isinstance(vocabulary, Vocabulary)
    check(known, "rows.vocabulary", vocabulary, "a Vocabulary")
    if network.vocabulary not in (None, vocabulary.hash):
        raise VocabMismatchError(
            f"network: it was trained for the vocabulary {network.vocabulary!r}, got "
            f"rows of {vocabulary.hash!r}."
        )


def hypernetwork(
    network: Hypernetwork,
    *,
    language: int | str | None = None,
    copy_shared: bool = False,
    batch: int = 5000,
    options: Options | None = None,
) -> EmbeddingInit:
    """Rows for a new vocabulary by a network.

    Args:
      network: trained for the source vocabulary.
      language: as for `predict_rows`.
      copy_shared: keep the rows of all tokens that both vocabularies have; False
        keeps those of special tokens alone, as networks are trained.
      batch: tokens at a time.
      options: as for the other methods.

    Returns:
      `EmbeddingInit`; `extras` of its report count the tokens that are cut off.

    Raises:
      ArgumentError: `batch` below 1; when it is called: rows that do not fit, or
        `source.output` is missing or there against the network's sizes.
      VocabMismatchError: another source vocabulary.

    Source: arXiv 2405.07883, section 3.

    Example:
      >>> from jtok.embed import HypernetworkConfig, init_hypernetwork
      >>> from jtok.testing import tiny_vocabulary
      >>> config = HypernetworkConfig(row_width=32, source_size=280, pad_id=0,
      ...     hidden=16, intermediate=32, heads=2)
      >>> method = hypernetwork(init_hypernetwork(config, jax.random.key(0)))
      >>> rows = Rows(jnp.ones((280, 32)), None, tiny_vocabulary())
      >>> method(tiny_vocabulary(270), rows, jax.random.key(1))[0].shape
      (270, 32)
    """
    check(batch >= 1, "batch", batch, "at least 1")

    def run(
        target: Vocabulary, source: Rows, key: jax.Array
    ) -> tuple[jax.Array, jax.Array | None, Report]:
        if network.config.tied != (source.output is None):
            raise ArgumentError(
                f"source.output: the network is {_kind(network.config.tied)}, the rows "
                f"are {_kind(source.output is None)}; expected both alike."
            )
        made, long = predict_vocabulary(
            network, source, target, language=language, batch=batch
        )

        def make(task: Task) -> Made:
            rows: Any = made.input if task.name == "input" else made.output
            extras = {"truncated": int(long[task.ids].sum())}
            return Made(rows[jnp.asarray(task.ids)], extras=extras)

        keep = None if copy_shared else _specials_only
        return initialiser("hypernetwork", make, options, keep=keep)(
            target, source, key
        )

    return run


def _kind(tied: bool) -> str:
    return "tied" if tied else "untied"


def _specials_only(shared: Any, target: Vocabulary) -> np.ndarray:
    return np.isin(shared.target_ids, sorted(target.special_ids))
