"""Methods of the survey's page against their official functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.compress import (
    Budget,
    attention_scores,
    compress,
    density_peaks,
    divprune,
    dycoke_budget,
    farthest_first,
    fastv_budget,
    text_raters,
)
from jtok.compress.sparsevlm import relevance
from jtok.ops import unit_rows
from jtok.testing import load_golden
from tests.compress.compiled import whole

compress, density_peaks = whole(compress), whole(density_peaks)
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
FOLDER = "token_compression_survey"


def number(golden, name):
    return round(float(golden[name]), 4)


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_divprune(case):
    golden = load_golden(f"{FOLDER}/divprune_a.npz")
    x = jnp.asarray(golden[f"{case}.x"])[None]
    unit = unit_rows(x[0])
    np.testing.assert_allclose(1 - unit @ unit.T, golden[f"{case}.dist"], **TOLERANCE)
    count = Budget(keep=number(golden, f"{case}.ratio")).of(x.shape[1], "half_even")
    in_order = golden[f"{case}.selected_in_order"]
    assert count == len(in_order)
    order, _ = jax.jit(farthest_first, static_argnums=1)(x, count)
    np.testing.assert_array_equal(order[0], in_order)
    ratio = Budget(keep=number(golden, f"{case}.ratio"))
    found = compress(x, method=divprune, budget=ratio)
    want = golden[f"{case}.selected_sorted"]
    np.testing.assert_array_equal(found.keep[0], want)
    np.testing.assert_array_equal(found.tokens[0], x[0, want])


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_dycoke(case):
    golden = load_golden(f"{FOLDER}/dycoke_a.npz")
    x = jnp.asarray(golden[f"{case}.x"])[None]
    places = int(golden[f"{case}.tokens_per_frame"])
    frames = x.shape[1] // places
    ratio = number(golden, f"{case}.merging_ratio")
    budget = dycoke_budget(frames, places, ratio, compat="official")
    found = compress(
        x, method="dycoke", budget=budget, grid=(frames, 1, places), compat="official"
    )
    np.testing.assert_array_equal(found.tokens[0], golden[f"{case}.out"])


@pytest.mark.parametrize("case", ["a", "b"])
def test_visionzip(case):
    golden = load_golden(f"{FOLDER}/visionzip_a.npz")
    dominant, contextual = (
        int(golden[f"{case}.{name}"]) for name in ("dominant", "contextual")
    )
    found = compress(
        jnp.asarray(golden[f"{case}.hidden"]),
        method="visionzip",
        budget=1 + dominant + contextual,
        keys=jnp.asarray(golden[f"{case}.key_metric"]),
        attn=jnp.asarray(golden[f"{case}.attn"])[:, :, 0],
        contextual=contextual,
        protect=1,
        compat="official",
    )
    kept = np.sort(golden[f"{case}.kept_indices_cls_first"], axis=1)
    np.testing.assert_array_equal(found.keep[:, : dominant + 1], kept)
    np.testing.assert_allclose(found.tokens, golden[f"{case}.out"], **TOLERANCE)


@pytest.mark.parametrize("case", ["adaptive", "fixed"])
def test_prumerge(case):
    golden = load_golden(f"{FOLDER}/prumerge_a.npz")
    keys, queries = (
        jnp.asarray(golden[f"{case}.{name}"])[:, :, None]
        for name in ("keys", "queries")
    )
    attn = attention_scores(queries, keys, of="first")[:, 0, 1:]
    np.testing.assert_allclose(attn, golden[f"{case}.cls_attn"], **TOLERANCE)
    x = jnp.asarray(golden[f"{case}.features_no_cls"])
    kept = int(golden[f"{case}.num_kept"])
    ratio = number(golden, f"{case}.ratio")
    assert int(x.shape[1] * ratio + 1e-2) == kept
    # The cap of the adaptive count is far away.
    adaptive = case == "adaptive"
    found = compress(
        x, method="prumerge", budget=30 if adaptive else kept + 1, adaptive=adaptive,
        keys=keys[:, 1:, 0], attn=attn, compat="official",
    )  # fmt: skip
    assert int(found.valid.sum()) == kept + 1
    np.testing.assert_array_equal(found.keep[:, :kept], golden[f"{case}.kept_idx"])
    out = found.tokens[:, : kept + 1]
    np.testing.assert_allclose(out, golden[f"{case}.out"], **TOLERANCE)


def test_sparsevlm():
    golden = load_golden(f"{FOLDER}/sparsevlm_a.npz")
    start, image, words = golden["layout"].tolist()
    hidden = jnp.asarray(golden["hidden"])
    x = hidden[:, start : start + image]
    text_at = start + image
    text = hidden[:, text_at : text_at + words]
    raters = text_raters(x, text)
    np.testing.assert_allclose(raters.score, golden["rater_scores"], **TOLERANCE)
    np.testing.assert_array_equal(np.flatnonzero(raters.rates), golden["rater_idx"])
    attn = jnp.asarray(golden["attn"])
    attn = attn[:, :, text_at : text_at + words, start : start + image]
    for count in (30, 17):
        found = compress(
            x, method="sparsevlm", budget=count, attn=attn, text=text, recycle=False
        )
        mask = np.zeros((1, image), int)
        mask[0, np.asarray(found.keep)[0]] = 1
        np.testing.assert_array_equal(mask, golden[f"k{count}.mask"])
        want = golden[f"k{count}.relevance"]
        np.testing.assert_allclose(found.score, want, **TOLERANCE)
        got = relevance(attn, raters.rates)
        np.testing.assert_allclose(got, want, **TOLERANCE)


def test_clusters_of_sparsevlm():
    golden = load_golden(f"{FOLDER}/sparsevlm_a.npz")
    x, count = jnp.asarray(golden["cluster.x"]), int(golden["cluster.k"])
    _, rank = density_peaks(x, count)
    means = [
        np.asarray(x)[0][np.asarray(rank)[0] == group].mean(0) for group in range(count)
    ]
    np.testing.assert_allclose(
        np.stack(means)[None], golden["cluster.out"], **TOLERANCE
    )


@pytest.mark.parametrize("case", ["half", "q75", "r0"])
def test_fastv(case):
    golden = load_golden(f"{FOLDER}/fastv_a.npz")
    attn = jnp.asarray(golden[f"{case}.attn"])
    start, image = golden[f"{case}.layout"].tolist()
    seq = attn.shape[-1]
    index = jnp.arange(seq)[None]
    found = compress(
        jnp.ones((1, seq, 2)),
        method="fastv",
        budget=fastv_budget(seq, image, number(golden, f"{case}.ratio_dropped")),
        attn=attn[:, :, -1],
        among=(index >= start) & (index < start + image),
    )
    np.testing.assert_array_equal(found.keep[0], golden[f"{case}.keep"])
    np.testing.assert_array_equal(found.position[0, :, 0], golden[f"{case}.keep"])
