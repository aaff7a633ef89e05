"""Rows of new tokens that need nothing but the old ones."""

import jax
import jax.numpy as jnp
import numpy as np

from jtok.embed import fitted_rows


def test_fitted_rows_have_the_mean_and_covariance_of_the_rows():
    draws = np.random.default_rng(0)
    rows = draws.normal(size=(300, 4)) @ draws.normal(size=(4, 4)) + [1, -2, 0, 5]
    drawn = fitted_rows(jnp.asarray(rows, jnp.float32), 40_000, jax.random.key(1))
    spread = np.cov(rows, rowvar=False, ddof=0)
    size = np.sqrt(np.diag(spread))
    # Five standard errors of the sample.
    assert (np.abs(drawn.mean(0) - rows.mean(0)) < 5 * size / 200).all()
    error = np.cov(np.asarray(drawn), rowvar=False) - spread
    assert (np.abs(error) < 5 * np.sqrt(2) * np.outer(size, size) / 200).all()
