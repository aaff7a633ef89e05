"""VisionZip, PruMerge, SparseVLM, attention scores: by hand, and their faults."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtok.compress import (
    attention_scores,
    compress,
    density_peaks,
    outlier_share,
    prumerge,
    prumerge_plus,
    sparsevlm,
    sparsevlm_counts,
    text_raters,
    visionzip,
    withdraw_layer,
)
from jtok.compress.sparsevlm import _counts
from jtok.errors import ArgumentError
from tests.compress.compiled import whole

# One program a call.
attention_scores, density_peaks = whole(attention_scores), whole(density_peaks)
outlier_share, text_raters = whole(outlier_share), whole(text_raters)
prumerge, prumerge_plus = whole(prumerge), whole(prumerge_plus)
sparsevlm, visionzip = whole(sparsevlm), whole(visionzip)


def normal(seed, *shape):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def cosines(x):
    unit = np.asarray(x) / np.linalg.norm(np.asarray(x), axis=-1, keepdims=True)
    return unit @ np.swapaxes(unit, -1, -2)


# VisionZip ------------------------


def test_visionzip_by_hand():
    x, keys, attn = normal(7, 1, 13, 4), normal(8, 1, 13, 3), normal(9, 1, 13) ** 2
    found = visionzip(x, budget=7, keys=keys, attn=attn, contextual=3, protect=1)
    dominant = sorted([0, *(1 + np.argsort(-np.asarray(attn)[0, 1:])[:3])])
    rest = [i for i in range(13) if i not in dominant]
    step = max(1, len(rest) // 3)
    targets = rest[::step][:3]
    near = cosines(keys[0])
    joins = {i: [i] for i in (*dominant, *targets)}
    for token in rest:
        if token not in targets:
            joins[targets[int(np.argmax(near[token, targets]))]].append(token)
    want = [np.asarray(x)[0][joins[i]].mean(0) for i in sorted(joins)]
    np.testing.assert_allclose(found.tokens[0], want, atol=1e-5)
    official = visionzip(
        x, budget=7, keys=keys, attn=attn, contextual=3, protect=1, order="official",
        compat="official",
    )  # fmt: skip
    assert official.keep[0].tolist() == dominant + targets
    for row, token in enumerate(targets):
        others = [i for i in joins[token] if i != token]
        mean = np.asarray(x)[0][others].mean(0) if others else 0
        np.testing.assert_allclose(
            official.tokens[0, 4 + row], np.asarray(x)[0, token] + mean, atol=1e-5
        )


def test_visionzip_of_targets_only_returns_them():
    x, attn = normal(10, 1, 6, 4), jnp.ones((1, 6))
    found = visionzip(x, budget=6, keys=x, attn=attn, contextual=6)
    np.testing.assert_array_equal(found.tokens, x)
    dropped = visionzip(x, budget=4, keys=x, attn=attn, contextual=0)
    assert dropped.assign.tolist() == [[0, 1, 2, 3, -1, -1]]
    for wrong in ({"contextual": 5}, {"contextual": -1}, {"protect": 5}):
        with pytest.raises(ArgumentError, match=f"^{next(iter(wrong))}"):
            visionzip(x, budget=4, keys=x, attn=attn, **wrong)


def test_the_dominant_tokens_of_visionzip_do_not_depend_on_the_order():
    x, attn = normal(11, 1, 12, 4), normal(12, 1, 12) ** 2
    shuffle = np.random.default_rng(0).permutation(12)
    plain = visionzip(x, budget=5, keys=x, attn=attn, contextual=0)
    mixed = visionzip(
        x[:, shuffle], budget=5, keys=x[:, shuffle], attn=attn[:, shuffle], contextual=0
    )
    assert set(shuffle[np.asarray(mixed.keep)[0]]) == set(np.asarray(plain.keep)[0])


# PruMerge ------------------------


def test_prumerge_is_a_mean_by_attention():
    x, keys, attn = normal(13, 1, 10, 4), normal(14, 1, 10, 3), normal(15, 1, 10) ** 2
    found = prumerge(x, budget=4, keys=keys, attn=attn, neighbours=3)
    wide, weight = np.asarray(x)[0], np.asarray(attn)[0]
    kept = sorted(np.argsort(-weight)[:3])
    assert found.keep[0].tolist() == [*kept, -1]
    near = cosines(keys[0])
    np.fill_diagonal(near, -9)
    for row, token in enumerate(kept):
        members = [token, *np.argsort(-near[token])[:3]]
        mean = np.average(wide[members], axis=0, weights=weight[members])
        np.testing.assert_allclose(found.tokens[0, row], mean, atol=1e-5)
    rest = [i for i in range(10) if i not in kept]
    mean = np.average(wide[rest], axis=0, weights=weight[rest])
    np.testing.assert_allclose(found.tokens[0, 3], mean, atol=1e-5)
    assert found.size[0].tolist() == [1, 1, 1, 7]
    # Tokens without any attention weigh the same, and nothing is divided by 0.
    still = prumerge(x, budget=4, keys=keys, attn=jnp.zeros((1, 10)), neighbours=9)
    np.testing.assert_allclose(still.tokens[0, 3], wide[3:].mean(0), atol=1e-5)
    with pytest.raises(ArgumentError, match="^neighbours"):
        prumerge(x, budget=4, keys=keys, attn=attn, neighbours=0)


def test_outliers_are_those_of_each_row():
    attn = np.abs(np.random.default_rng(0).normal(size=(2, 40))).astype(np.float32)
    attn[0, :3] += 8
    attn[1] *= 0.01
    attn[1, 5] = 0.2
    want = []
    for row in attn:
        low, high = np.percentile(row, [25, 75])
        want.append((row > high + 1.5 * (high - low)).mean())
    np.testing.assert_allclose(outlier_share(jnp.asarray(attn)), want, atol=1e-6)
    low, high = np.percentile(attn.ravel(), [25, 75])
    whole = (attn > high + 1.5 * (high - low)).mean()
    assert abs(whole - want[0]) > 0.01
    official = outlier_share(jnp.asarray(attn), compat="official")
    np.testing.assert_allclose(official, [whole, whole], atol=1e-6)
    real = jnp.arange(40)[None] < jnp.asarray([[40], [21]])
    low, high = np.percentile(attn[1, :21], [25, 75])
    some = (attn[1, :21] > high + 1.5 * (high - low)).mean()
    got = outlier_share(jnp.asarray(attn), valid=real)
    np.testing.assert_allclose(got, [want[0], some], atol=1e-6)


def test_an_adaptive_count_is_bounded_by_the_budget():
    x, attn = normal(16, 1, 40, 4), jnp.ones((1, 40)).at[0, 7:11].set(9.0)
    run = functools.partial(prumerge, x, keys=x, attn=attn, adaptive=True)
    assert run(budget=10).valid.sum() == 5
    assert run(budget=10).keep[0, :5].tolist() == [7, 8, 9, 10, -1]
    assert run(budget=3).keep[0].tolist() == [7, 8, -1]
    flat = jnp.ones((1, 40))
    none = prumerge(x, budget=10, keys=x, attn=flat, adaptive=True)
    assert none.keep[0, :2].tolist() == [0, -1] and none.valid.sum() == 2


def test_the_code_of_prumerge_cuts_a_float():
    seq = next(n for n in range(33, 99) for c in (5,) if int(n * (c / n)) < c)
    x, attn = normal(30, 1, seq, 4), jnp.ones((1, seq)).at[0, 7:12].set(9.0)
    run = functools.partial(
        prumerge, x, budget=seq, keys=x, attn=attn, adaptive=True, neighbours=2
    )
    assert run().valid.sum() == 6
    assert run(compat="official").valid.sum() == 5


def test_prumerge_plus_adds_evenly_spaced_tokens():
    x, attn = normal(17, 1, 40, 4), jnp.ones((1, 40)).at[0, 10:12].set(9.0)
    found = prumerge_plus(x, budget=40, keys=x, attn=attn, adaptive=True)
    # The share is 2 of 40: every int(20 / 3)-th token below the last.
    want = sorted({10, 11} | set(range(0, 39, 6)))
    count = int(found.valid.sum())
    assert found.keep[0, : count - 1].tolist() == want and count == len(want) + 1
    official = prumerge_plus(
        x, budget=40, keys=x, attn=attn, adaptive=True, order="official",
        compat="official",
    )  # fmt: skip
    assert official.keep[0, :5].tolist() == [10, 11, 0, 6, 12]
    flat = jnp.ones((1, 40))
    none = prumerge_plus(
        x, budget=40, keys=x, attn=flat, adaptive=True, compat="official"
    )
    assert none.valid.sum() == 1 and none.size[0, 0] == 40


# SparseVLM ------------------------


@given(total=st.integers(1, 600), budget=st.integers(1, 600), recycle=st.booleans())
def test_the_budget_of_sparsevlm_is_reached(total, budget, recycle):
    kept, again, groups = _counts(total, budget, recycle)
    assert kept + groups == min(total, budget) and kept >= 1
    assert again <= total - kept and groups <= again
    if again and kept > 1:
        assert again == int(0.3 * (total - kept)) + 1 and groups == again // 10 + 1


def test_sparsevlm_recycles_the_best_of_what_leaves():
    x, attn = normal(18, 1, 40, 4), normal(19, 1, 2, 3, 40) ** 2
    raters = jnp.asarray([[True, False, True]])
    found = sparsevlm(x, budget=12, attn=attn, raters=raters)
    score = np.asarray(attn)[0].mean(0)[[0, 2]].mean(0)
    np.testing.assert_allclose(found.score[0], score, rtol=1e-5)
    order = np.argsort(-score)
    kept, again, groups = _counts(40, 12, True)
    assert (kept, again, groups) == (11, 9, 1)
    assert found.keep[0].tolist() == [*sorted(order[:11]), -1]
    mean = np.asarray(x)[0][order[11:20]].mean(0)
    np.testing.assert_allclose(found.tokens[0, 11], mean, atol=1e-5)
    assert found.size[0, 11] == 9
    assert (np.asarray(found.assign)[0][order[20:]] == -1).all()
    with pytest.raises(ArgumentError, match="^text"):
        sparsevlm(x, budget=12, attn=attn)
    with pytest.raises(ArgumentError, match="^attn"):
        sparsevlm(x, budget=12, attn=attn[..., :9], raters=raters)


def test_words_that_are_padding_do_not_rate():
    x, text = normal(20, 1, 6, 4), normal(21, 1, 5, 4)
    short = text_raters(x, text[:, :3])
    real = jnp.arange(5)[None] < 3
    padded = text_raters(x, text, text_valid=real)
    np.testing.assert_allclose(padded.score[:, :3], short.score, atol=1e-6)
    np.testing.assert_array_equal(padded.rates, np.pad(short.rates, ((0, 0), (0, 2))))
    with pytest.raises(ArgumentError, match="^text"):
        text_raters.__wrapped__(x, text[..., :2])


def clusters_by_hand(x, count):
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1) / np.sqrt(x.shape[1])
    near = np.sort(distance, axis=1)[:, :count]
    density = np.exp(-(near**2).mean(1))
    apart = np.array(
        [distance[i][density > density[i]].min(initial=np.inf) for i in range(len(x))]
    )
    apart[np.isinf(apart)] = distance.max()
    centres = np.argsort(-density * apart, kind="stable")[:count]
    found = centres[np.argmin(distance[:, centres], axis=1)]
    found[centres] = centres
    return found


def test_clusters_by_hand_in_batches_of_other_sizes():
    x = normal(22, 2, 20, 3)
    real = jnp.arange(20)[None] < jnp.asarray([[20], [13]])
    count = jnp.asarray([5, 3])
    centre, rank = density_peaks(x, 5, valid=real, count=count)
    wide = np.asarray(x)
    np.testing.assert_array_equal(centre[0], clusters_by_hand(wide[0], 5))
    np.testing.assert_array_equal(centre[1, :13], clusters_by_hand(wide[1, :13], 3))
    assert centre[1, 13:].tolist() == list(range(13, 20))
    assert set(np.asarray(rank)[0]) == set(range(5))
    with pytest.raises(ArgumentError, match="^clusters"):
        density_peaks(x, 21)
    # Of two tokens that are the same the first is the denser one.
    twins = jnp.asarray([[[0.0], [0.0], [3.0], [3.5]]])
    assert density_peaks(twins, 2)[0].tolist() == [[0, 0, 2, 2]]
    same = density_peaks(jnp.ones((1, 6, 2)), 2)[0]
    assert same.tolist() == [[0, 1, 0, 0, 0, 0]]


def test_published_settings_of_sparsevlm():
    for mean, want in ((192, 203), (64, 79)):  # section 7 of the page
        counts = sparsevlm_counts(32, 576, mean=mean, recycle=False)
        assert round(sum(counts) / 32) == want
    assert sparsevlm_counts(32, 576)[3] == 309  # 300 and 9 clusters
    for wrong in ({"mean": 100}, {"kept": (3,)}, {"kept": (3, 2, 0)}):
        with pytest.raises(ArgumentError, match=f"^{next(iter(wrong))}"):
            sparsevlm_counts(32, 576, **wrong)


# Layers and attention ------------------------


def test_the_layer_from_which_the_image_can_be_gone():
    full = normal(23, 4, 9)
    others = jnp.stack([full + scale * normal(24, 4, 9) for scale in (2, 0.5, 0.1, 0)])
    truth = jax.nn.softmax(full)
    kl = [
        float(jnp.mean(jnp.sum(truth * jnp.log(truth / jax.nn.softmax(o)), -1)))
        for o in others
    ]
    assert kl == sorted(kl, reverse=True)
    between = (kl[1] + kl[2]) / 2
    assert withdraw_layer(full, others, threshold=between) == 3
    assert withdraw_layer(full, others, threshold=between, layers=(4, 8, 12, 16)) == 12
    assert withdraw_layer(full, others[:2], threshold=between) == 3
    for wrong in ({"threshold": 0.0}, {"threshold": 1.0, "layers": (2, 1, 3, 4)}):
        with pytest.raises(ArgumentError, match="threshold|layers"):
            withdraw_layer(full, others, **wrong)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_scores_equal_the_dense_ones(causal):
    query, key = normal(25, 2, 9, 4, 3), normal(26, 2, 9, 2, 3)
    real = jnp.arange(9)[None] < jnp.asarray([[9], [6]])
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, jnp.repeat(key, 2, axis=2))
    allow = real[:, None, None]
    if causal:
        allow = allow & jnp.tril(jnp.ones((9, 9), bool))[None, None]
    dense = jax.nn.softmax(jnp.where(allow, scores * 3**-0.5, -jnp.inf), axis=-1)
    get = functools.partial(attention_scores, query, key, valid=real, causal=causal)
    np.testing.assert_allclose(get(of="first"), dense[:, :, 0], atol=1e-5)
    last = np.stack([dense[0, :, 8], dense[1, :, 5]])
    np.testing.assert_allclose(get(of="last"), last, atol=1e-5)
    heard = jnp.where(real[:, None, :, None], dense, 0).sum(2)
    mean = heard / real.sum(1)[:, None, None]
    np.testing.assert_allclose(get(of="mean"), mean, atol=1e-5)
    rows = jnp.asarray([[2, 4], [1, 3]])
    picked = jnp.take_along_axis(dense, rows[:, None, :, None], axis=2)
    np.testing.assert_allclose(get(of=rows), picked, atol=1e-5)
    with pytest.raises(ArgumentError, match="^of"):
        attention_scores.__wrapped__(query, key, of="middle")


HOLES = ["adjacent", "divprune", "fastv", "prumerge", "random", "sparsevlm", "uniform",
         "visionzip"]  # fmt: skip


@pytest.mark.parametrize("name", HOLES)
def test_a_mask_is_as_good_as_removing_tokens(name):
    wide = normal(27, 1, 20, 4)
    real = np.random.default_rng(1).random(20) < 0.7
    attn = normal(28, 1, 3, 20) ** 2
    call = functools.partial(whole(compress), method=name, budget=8)
    options = {"key": {"key": jax.random.key(0)}} | {
        "sparsevlm": {"raters": jnp.ones((1, 3), bool)}
    }
    extra = options["key"] if name == "random" else options.get(name, {})
    masked = call(wide, keys=wide, attn=attn, valid=jnp.asarray(real)[None], **extra)
    at = np.flatnonzero(real)
    short = call(wide[:, at], keys=wide[:, at], attn=attn[..., at], **extra)
    keep = np.asarray(short.keep)
    np.testing.assert_array_equal(masked.keep, np.where(keep >= 0, at[keep], -1))
    np.testing.assert_array_equal(np.asarray(masked.assign)[:, at], short.assign)
    np.testing.assert_allclose(masked.tokens, short.tokens, atol=1e-5)
