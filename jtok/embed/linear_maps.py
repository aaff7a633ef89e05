"""Rows for new tokens by one map from a donor's space, fitted to the shared tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.embed.donors import donor_rows, donor_view
from jtok.embed.init import EmbeddingInit, Made, Options, Task, initialiser
from jtok.embed.neighbours import _spread
from jtok.embed.pursuit import combine, orthogonal_pursuit
from jtok.errors import check

__all__ = ["linear_map", "procrustes", "rotation", "sparse_basis"]

_HIGHEST = jax.lax.Precision.HIGHEST


def rotation(
    one: Float[Array, "points dim"], other: Float[Array, "points width"]
) -> Float[Array, "dim width"]:
    """The matrix with orthonormal rows or columns that best maps points to points.

    Args:
      one: `[points, dim]`.
      other: `[points, width]`.

    Returns:
      `[dim, width]` float32 `R` that minimises the distance of `one @ R` to `other`.

    Source: Schoenemann 1966; `R = U V^T` of the singular value decomposition of
      `one^T other`.

    Example:
      >>> rotation(jnp.eye(2), jnp.eye(2)[::-1]).round(3).tolist()
      [[0.0, 1.0], [1.0, 0.0]]
    """
    products = jnp.einsum("pd,pw->dw", one, other, precision=_HIGHEST)
    left, _, right = jnp.linalg.svd(products.astype(jnp.float32), full_matrices=False)
    return jnp.matmul(left, right, precision=_HIGHEST)


def procrustes(donor: Any, *, options: Options | None = None) -> EmbeddingInit:
    """New rows by the rotation that best maps the shared tokens' donor rows.

    Both clouds are centred at the means of their shared tokens.

    Args:
      donor: a `Model`, `Rows`, folder or hub id, as for `omp`.
      options: what all methods take.

    Returns:
      `EmbeddingInit`.

    Raises:
      VocabMismatchError: when it runs, nothing is shared.

    Source: the baseline `landmark_pca` of arXiv 2506.06607. Differs: its code uses the
      transposed rotation between randomly signed principal axes.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> old = Rows(jax.random.normal(jax.random.key(0), (270, 2)), None,
      ...     tiny_vocabulary(270))
      >>> donor = Rows(jax.random.normal(jax.random.key(1), (280, 2)), None,
      ...     tiny_vocabulary())
      >>> procrustes(donor)(donor.vocabulary, old, jax.random.key(0))[0].shape
      (280, 2)
    """
    giver = donor_rows(donor)

    def make(task: Task) -> Made:
        view = donor_view(task, giver)
        atoms, middle = _centred(view.atoms)
        base, base_middle = _centred(view.base)
        targets = view.targets.astype(jnp.float32) - middle
        turned = jnp.matmul(targets, rotation(atoms, base), precision=_HIGHEST)
        return _spread(turned + base_middle, view.found)

    return initialiser("procrustes", make, options)


def linear_map(
    donor: Any, *, penalty: float = 0.01, options: Options | None = None
) -> EmbeddingInit:
    """New rows by the linear map that best takes donor rows of shared tokens to theirs.

    Args:
      donor: a `Model`, `Rows`, folder or hub id, as for `omp`.
      penalty: of the map's squares, in parts of the mean variance of the donor's
        dimensions times the number of shared tokens (ridge); 0 for least squares.
      options: what all methods take.

    Returns:
      `EmbeddingInit`.

    Raises:
      ArgumentError: a negative `penalty`.
      VocabMismatchError: when it runs, nothing is shared.

    Source: Mikolov et al. 2013, arXiv 1309.4168, between the spaces of arXiv
      2506.06607; both clouds are centred.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> old = Rows(jax.random.normal(jax.random.key(0), (270, 2)), None,
      ...     tiny_vocabulary(270))
      >>> donor = Rows(jax.random.normal(jax.random.key(1), (280, 3)), None,
      ...     tiny_vocabulary())
      >>> linear_map(donor)(donor.vocabulary, old, jax.random.key(0))[0].shape
      (280, 2)
    """
    check(penalty >= 0, "penalty", penalty, "0 or more")
    giver = donor_rows(donor)

    def make(task: Task) -> Made:
        view = donor_view(task, giver)
        atoms, middle = _centred(view.atoms)
        base, base_middle = _centred(view.base)
        targets = view.targets.astype(jnp.float32) - middle
        mapped = jnp.matmul(targets, _map(atoms, base, penalty), precision=_HIGHEST)
        return _spread(mapped + base_middle, view.found)

    return initialiser("linear_map", make, options)


def _map(
    atoms: Float[Array, "atoms dim"], base: Float[Array, "atoms width"], penalty: float
) -> Float[Array, "dim width"]:
    if penalty == 0:
        return jnp.linalg.lstsq(atoms, base)[0]
    gram = jnp.einsum("ad,ae->de", atoms, atoms, precision=_HIGHEST)
    both = jnp.einsum("ad,aw->dw", atoms, base, precision=_HIGHEST)
    dim = gram.shape[0]
    ridge = penalty * jnp.trace(gram) / dim + jnp.finfo(jnp.float32).tiny
    factor = jax.scipy.linalg.cho_factor(gram + ridge * jnp.eye(dim))
    return jax.scipy.linalg.cho_solve(factor, both)


def _centred(
    rows: Float[Array, "rows dim"],
) -> tuple[Float[Array, "rows dim"], Float[Array, "1 dim"]]:
    rows = rows.astype(jnp.float32)
    middle = rows.mean(axis=0, keepdims=True)
    return rows - middle, middle


def sparse_basis(
    donor: Any,
    *,
    k: int = 8,
    directions: int | None = None,
    penalty: float = 0.01,
    options: Options | None = None,
) -> EmbeddingInit:
    """New rows by coefficients along principal directions made of a few shared tokens.

    Each principal direction of the shared donor rows is approximated by `k` of them;
    the same combinations of the source's rows are its image. A new token has the
    coefficients that fit its donor row best.

    Args:
      donor: a `Model`, `Rows`, folder or hub id, as for `omp`.
      k: shared tokens in each direction.
      directions: how many; None takes as many as the narrower of both spaces has.
      penalty: of the coefficients' squares, in parts of the mean variance of the
        directions, which are nearly dependent where few tokens make them; 0 for none.
      options: what all methods take.

    Returns:
      `EmbeddingInit`.

    Raises:
      ArgumentError: `k` or `directions` below 1 or a negative `penalty`; when it runs,
        more than there are.
      VocabMismatchError: when it runs, nothing is shared.

    Source: the method `stb` of the code of arXiv 2506.06607, which fails there.
      Differs: fitted and applied to centred rows throughout; the penalty.

    Example:
      >>> from jtok.testing import tiny_vocabulary
      >>> old = Rows(jax.random.normal(jax.random.key(0), (270, 2)), None,
      ...     tiny_vocabulary(270))
      >>> donor = Rows(jax.random.normal(jax.random.key(1), (280, 3)), None,
      ...     tiny_vocabulary())
      >>> sparse_basis(donor)(donor.vocabulary, old, jax.random.key(0))[0].shape
      (280, 2)
    """
    check(k >= 1, "k", k, "at least 1")
    good = directions is None or directions >= 1
    check(good, "directions", directions, "None or at least 1")
    check(penalty >= 0, "penalty", penalty, "0 or more")
    giver = donor_rows(donor)

    def make(task: Task) -> Made:
        view = donor_view(task, giver, least=k)
        atoms, middle = _centred(view.atoms)
        base, base_middle = _centred(view.base)
        most = min(atoms.shape[1], base.shape[1])
        count = most if directions is None else directions
        check(count <= most, "directions", directions, f"at most {most}")
        axes = jnp.linalg.svd(atoms, full_matrices=False)[2][:count]
        found = orthogonal_pursuit(axes, atoms, k)
        ours, theirs = combine(found, atoms), combine(found, base)
        targets = view.targets.astype(jnp.float32) - middle
        # The ridge fit of coefficients, times their images, is that of a map.
        made = jnp.matmul(targets, _map(ours, theirs, penalty), precision=_HIGHEST)
        return _spread(made + base_middle, view.found)

    return initialiser("sparse_basis", make, options)
