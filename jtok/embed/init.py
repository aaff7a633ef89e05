"""Vectors for a new vocabulary: what every method has in common.

A method is an `EmbeddingInit`: it gets the target vocabulary and a model's rows, and
returns rows for every target id. Tokens that both vocabularies have keep their rows
bit for bit; a method only makes the others, each matrix on its own.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jtok.errors import ArgumentError, VocabMismatchError, check
from jtok.text import Vocabulary
from jtok.text.overlap import Overlap, numeric_warning, overlap, prefix_matches

__all__ = [
    "HOW",
    "EmbeddingInit",
    "Made",
    "Options",
    "Report",
    "Rows",
    "Task",
    "check_anchors",
    "check_finite",
    "initialiser",
    "rows_of",
]

# How a row came to be, by the code in `Report.how`.
HOW = ("zero", "copied", "role", "prefix", "made", "fallback")
ZERO, COPIED, ROLE, PREFIX, MADE, FALLBACK = range(len(HOW))
MATRICES = ("input", "output")


@struct.dataclass
class Rows:
    """The vectors of a vocabulary.

    Attributes:
      input: `[rows, dim]`; more rows than ids are padding, ids beyond the rows have
        no vector.
      output: `[rows, dim]` rows that hidden states are compared with; None where
        they are the input rows.
      vocabulary: what the ids mean.
    """

    input: jax.Array
    output: jax.Array | None = None
    vocabulary: Any = struct.field(pytree_node=False, default=None)


@dataclasses.dataclass(frozen=True)
class Options:
    """What all methods take.

    Attributes:
      noise: standard deviation of normal noise added to made rows.
      scale: factor on made rows, before the noise.
      byte_match: let `<0xNN>` and the plain token of that byte be one.
      prefix_match: matrices ("input", "output") in which a new token takes the row of
        the longest proper prefix that the source has.
      anchors: source ids that may be copied and fitted to, such as
        `well_trained_tokens`; None for all.
      junk: target ids whose rows become zero.
      compat: "official" matches tokens by printed form, see `jtok.text.overlap`.
    """

    noise: float = 0.0
    scale: float = 1.0
    byte_match: bool = True
    prefix_match: tuple[str, ...] = ()
    anchors: tuple[int, ...] | None = None
    junk: tuple[int, ...] = ()
    compat: Literal["official"] | None = None

    def __post_init__(self) -> None:
        check(self.noise >= 0, "noise", self.noise, "0 or more")
        for name in self.prefix_match:
            check(name in MATRICES, "prefix_match", name, "'input' or 'output'")


@dataclasses.dataclass(frozen=True)
class Report:
    """How the rows of a vocabulary were made.

    Attributes:
      method: name of the method.
      how: matrix ("input", "output") -> `[target ids]` int8, an index into `HOW`.
      copied_from: `[target ids]` int32 source id of a copied row, else -1.
      source_hash: `Vocabulary.hash` of the vocabulary that the rows came from.
      target_hash: of the one that they are for.
      warnings: sentences for the user.
      extras: what the method tells beyond that, by matrix.
    """

    method: str
    how: Mapping[str, np.ndarray]
    copied_from: np.ndarray
    source_hash: str
    target_hash: str
    warnings: tuple[str, ...] = ()
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def counts(self, matrix: str = "input") -> dict[str, int]:
        """Number of rows by how they were made, those that occur."""
        codes, counts = np.unique(self.how[matrix], return_counts=True)
        return {
            HOW[code]: count
            for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
        }

    def summary(self) -> dict[str, Any]:
        """What fits into a JSON file: names, hashes and counts."""
        return {
            "method": self.method,
            "source_vocabulary": self.source_hash,
            "target_vocabulary": self.target_hash,
            "rows": {name: self.counts(name) for name in self.how},
            "warnings": list(self.warnings),
        }


# (target vocabulary, source rows, key) -> (input rows, output rows or None, report)
EmbeddingInit = Callable[
    [Vocabulary, Rows, jax.Array], tuple[jax.Array, jax.Array | None, Report]
]


class Task(NamedTuple):
    """One matrix to fill: what a method gets to see.

    Attributes:
      name: "input" or "output".
      source: `[rows, dim]` rows of the source, in their own dtype.
      source_vocabulary: what its ids mean.
      target_vocabulary: what the wanted ids mean.
      overlap: the shared tokens, all with a row in `source`.
      ids: `[new]` int32 target ids to make.
      key: typed PRNG key, of this matrix alone.
    """

    name: str
    source: jax.Array
    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    overlap: Overlap
    ids: np.ndarray
    key: jax.Array

    @property
    def anchors(self) -> tuple[np.ndarray, np.ndarray]:
        """Source and target ids of shared tokens to fit to, each source id once."""
        first = self.overlap.first
        return self.overlap.source_ids[first], self.overlap.target_ids[first]


class Made(NamedTuple):
    """What a method returns for a `Task`.

    Attributes:
      rows: `[new, dim]` float32.
      how: `[new]` int8 codes of `HOW`; None where all are "made".
      extras: for the report; JSON-able numbers and words, or arrays.
    """

    rows: jax.Array
    how: np.ndarray | None = None
    extras: Mapping[str, Any] = {}


def rows_of(model: Any) -> Rows:
    """The rows of a model's embedding and, unless tied, of its unembedding.

    Args:
      model: `jtok.models.Model` with a vocabulary.

    Returns:
      `Rows`, without copies.

    Raises:
      ArgumentError: the model has no vocabulary.

    Example:
      >>> from jtok.testing import tiny_model, tiny_vocabulary
      >>> model = tiny_model(vocab_size=280).replace(vocabulary=tiny_vocabulary())
      >>> rows_of(model).input.shape
      (280, 32)
    """
    if model.vocabulary is None:
        raise ArgumentError(
            "model: got one without a vocabulary, expected one whose tokenizer is "
            "known; set `model.replace(vocabulary=...)`."
        )
    output = None if model.config.tied else model.unembedding()[0]
    return Rows(model.params["embed"]["tokens"], output, model.vocabulary)


def check_finite(
    rows: Float[Array, "rows dim"], vocabulary: Vocabulary, name: str
) -> None:
    """Refuses rows with NaN or infinity, naming the first token at fault.

    Args:
      rows: `[rows, dim]`.
      vocabulary: what their ids mean.
      name: of the argument, for the message.

    Raises:
      ArgumentError: a row of a token is not finite.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> check_finite(jnp.ones((280, 2)), tiny_vocabulary(), "rows")
    """
    bad = np.flatnonzero(~np.asarray(_finite(rows)))
    bad = bad[bad < vocabulary.size]
    if bad.size:
        first = int(bad[0])
        raise ArgumentError(
            f"{name}: the row of token {first} ({vocabulary.surface_of(first)!r}) is "
            f"not finite, as are {bad.size - 1} more; expected finite numbers."
        )


@jax.jit
def _finite(rows: Array) -> Array:
    return jnp.isfinite(rows).all(axis=1)


def check_anchors(task: Task, least: int = 1, name: str = "k") -> None:
    """Refuses a task with fewer shared tokens than a method needs.

    Args:
      task: the matrix to fill.
      least: shared tokens needed.
      name: of the argument that needs them.

    Raises:
      VocabMismatchError: nothing is shared.
      ArgumentError: fewer than `least` are.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> vocabulary = tiny_vocabulary()
      >>> shared = jtok.text.overlap(vocabulary, vocabulary)
      >>> check_anchors(Task("input", jnp.ones((280, 2)), vocabulary, vocabulary,
      ...     shared, shared.new_ids, jax.random.key(0)), 4)
    """
    count = int(task.overlap.first.sum())
    if not count:
        raise VocabMismatchError(
            "target: it shares no token that has a vector with the source vocabulary; "
            "this method needs some."
        )
    check(count >= least, name, least, f"at most {count}, the number of shared tokens")


def initialiser(
    name: str,
    make: Callable[[Task], Made],
    options: Options | None = None,
    *,
    keep: Callable[[Overlap, Vocabulary], np.ndarray] | None = None,
) -> EmbeddingInit:
    """Makes an `EmbeddingInit` of a function that makes the new rows of one matrix.

    Shared rows are copied bit for bit, the others get what `make` returns, in float32
    and cast at the end. The two matrices are solved apart, with keys of their own.

    Args:
      name: of the method, for the report.
      make: `Task -> Made`.
      options: see `Options`.
      keep: which shared pairs to copy (`[shared]` bool), for methods that replace
        shared rows, too; None copies all.

    Returns:
      `EmbeddingInit`.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> ones = lambda task: Made(jnp.ones((len(task.ids), task.source.shape[1])))
      >>> rows = Rows(jnp.zeros((270, 2)), None, tiny_vocabulary(270))
      >>> made, _, report = initialiser("ones", ones)(
      ...     tiny_vocabulary(), rows, jax.random.key(0))
      >>> report.counts()
      {'copied': 269, 'role': 1, 'made': 10}
    """
    options = options or Options()

    def run(
        target: Vocabulary, source: Rows, key: jax.Array
    ) -> tuple[jax.Array, jax.Array | None, Report]:
        _check_source(source)
        shared = _shared(target, source, options)
        kept = shared if keep is None else shared.keep(keep(shared, target))
        done, how, extras = {}, {}, {}
        for number, matrix in enumerate(MATRICES):
            rows = getattr(source, matrix)
            if rows is None:
                continue
            check_finite(rows, source.vocabulary, f"source.{matrix}")
            part = jax.random.fold_in(key, number)
            done[matrix], how[matrix], extras[matrix] = _fill(
                matrix, rows, source.vocabulary, target, kept, shared, part, make,
                options,
            )  # fmt: skip
        warning = numeric_warning(source.vocabulary, target)
        report = Report(
            name,
            how,
            _take(target.size, kept),
            source.vocabulary.hash,
            target.hash,
            () if warning is None else (warning,),
            extras,
        )
        return done["input"], done.get("output"), report

    return run


def _check_source(source: Rows) -> None:
    shape = source.input.shape
    check(source.input.ndim == 2, "source.input", f"shape {shape}", "[rows, dim]")
    if source.output is not None:
        good = source.output.shape[0] == shape[0] and source.output.ndim == 2
        got = f"shape {source.output.shape}"
        check(good, "source.output", got, f"[{shape[0]}, dim] as the input has rows")
    known = isinstance(source.vocabulary, Vocabulary)
    check(known, "source.vocabulary", source.vocabulary, "a Vocabulary")


def _shared(target: Vocabulary, source: Rows, options: Options) -> Overlap:
    shared = overlap(
        source.vocabulary,
        target,
        byte_match=options.byte_match,
        compat=options.compat,
    )
    good = shared.source_ids < source.input.shape[0]
    if options.anchors is not None:
        good &= np.isin(shared.source_ids, np.asarray(options.anchors, np.int32))
    return shared if good.all() else shared.keep(good)


def _take(size: int, kept: Overlap) -> np.ndarray:
    take = np.full(size, -1, np.int32)
    take[kept.target_ids] = kept.source_ids
    return take


def _fill(
    matrix: str,
    rows: jax.Array,
    source_vocabulary: Vocabulary,
    target: Vocabulary,
    kept: Overlap,
    shared: Overlap,
    key: jax.Array,
    make: Callable[[Task], Made],
    options: Options,
) -> tuple[jax.Array, np.ndarray, dict[str, Any]]:
    """One matrix, how each row was made, and what the method says of it."""
    take, how = _take(target.size, kept), np.zeros(target.size, np.int8)
    how[kept.target_ids] = COPIED
    how[[pair[1] for pair in kept.roles.values()]] = ROLE
    ids = kept.new_ids
    if matrix in options.prefix_match:
        prefix = prefix_matches(source_vocabulary, target, ids, compat=options.compat)
        prefix[prefix >= rows.shape[0]] = -1
        found = prefix >= 0
        take[ids[found]], how[ids[found]] = prefix[found], PREFIX
        ids = ids[~found]
    make_key, noise_key = jax.random.split(key)
    task = Task(matrix, rows, source_vocabulary, target, shared, ids, make_key)
    made = make(task) if ids.size else Made(jnp.zeros((0, rows.shape[1])))
    good = made.rows.shape == (ids.size, rows.shape[1])
    expected = f"[{ids.size}, {rows.shape[1]}]"
    check(good, "make", f"rows of shape {made.rows.shape}", expected)
    codes = np.full(ids.size, MADE, np.int8) if made.how is None else made.how
    new = made.rows.astype(jnp.float32) * options.scale
    if options.noise:
        noise = options.noise * jax.random.normal(noise_key, new.shape)
        new = new + jnp.where(jnp.asarray(codes != ZERO)[:, None], noise, 0.0)
    how[ids] = codes
    junk = np.asarray(options.junk, np.int32)
    check(
        ((junk >= 0) & (junk < target.size)).all(),
        "junk",
        options.junk,
        f"ids in 0..{target.size - 1}",
    )
    how[junk] = ZERO
    done = _assemble(rows, jnp.asarray(take), jnp.asarray(ids), new, jnp.asarray(junk))
    return done, how, dict(made.extras)


@jax.jit
def _assemble(
    source: Float[Array, "rows dim"],
    take: Int[Array, " target"],
    ids: Int[Array, " new"],
    new: Float[Array, "new dim"],
    junk: Int[Array, " junk"],
) -> Float[Array, "target dim"]:
    copied = jnp.where((take >= 0)[:, None], source[jnp.maximum(take, 0)], 0)
    done = copied.astype(source.dtype).at[ids].set(new.astype(source.dtype))
    return done.at[junk].set(0)
