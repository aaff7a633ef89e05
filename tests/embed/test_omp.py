"""Rows by a donor: what it lacks, bad rows, batches, a run that goes on."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import embed
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError
from jtok.testing import assert_close, tiny_model
from jtok.text import Vocabulary, overlap
from tests.contracts.embeddings import donor, rows, vocabularies

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def task():
    source, target = vocabularies()
    return rows(source), target, overlap(source, target)


@pytest.fixture(scope="module")
def whole(task):
    old, target, _ = task
    return embed.omp(donor(), k=4)(target, old, KEY)


def test_batches_choose_alike(task, whole):
    old, target, _ = task
    seen = []
    made, head, _ = embed.omp(
        donor(), k=4, batch=7, progress=lambda *what: seen.append(what)
    )(target, old, KEY)
    assert_close(made, whole[0], rtol=1e-4, atol=1e-5)
    assert_close(head, whole[1], rtol=1e-4, atol=1e-5)
    count = len(task[2].new_ids)
    assert seen[0] == ("input", 7, count) and seen[-1] == ("output", count, count)


def test_ids_without_a_donor_row_become_zero_and_others_stay(task, whole):
    old, target, shared = task
    giver = donor()
    last = target.size - 1
    assert last in shared.new_ids
    made, _, report = embed.omp(
        giver.replace(input=giver.input[:last], output=None), k=4
    )(target, old, KEY)
    np.testing.assert_array_equal(made[last], 0)
    assert report.counts()["zero"] == 1 and report.how["input"][last] == 0
    assert_close(made[:last], whole[0][:last], rtol=1e-4, atol=1e-5)


def test_a_source_with_fewer_rows(task):
    """Ids at and beyond the rows have none to copy."""
    old, target, shared = task
    at = int(shared.source_ids.max())
    short = embed.Rows(old.input[:at], None, old.vocabulary)
    made, _, report = embed.zero()(target, short, KEY)
    lost = shared.target_ids[shared.source_ids >= at]
    assert len(lost) == 1 and (report.copied_from[lost] == -1).all()
    np.testing.assert_array_equal(made[lost], 0)


def test_zero_and_repeated_donor_rows_do_no_harm(task):
    old, target, shared = task
    giver = donor()
    first = shared.target_ids[:6]
    bent = giver.input.at[first[:3]].set(0).at[first[3:]].set(giver.input[first[3]])
    bent = bent.at[shared.new_ids[0]].set(0)
    made, _, report = embed.omp(giver.replace(input=bent), k=8)(target, old, KEY)
    assert np.isfinite(np.asarray(made)).all()
    assert float(jnp.abs(made).max()) < 50 * float(jnp.abs(old.input).max())
    np.testing.assert_array_equal(made[shared.new_ids[0]], 0)
    assert report.how["input"][shared.new_ids[0]] == 0


def test_a_tied_donor_serves_both_matrices(task):
    old, target, _ = task
    giver = donor()
    tied = giver.replace(output=None)
    twice = giver.replace(output=giver.input)
    one, other = (embed.omp(g, k=4)(target, old, KEY) for g in (tied, twice))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_a_donor_of_another_vocabulary_is_matched_by_bytes(task):
    old, target, _ = task
    wide = Vocabulary.train_bpe(["a lantern in the catalogue, that is all " * 8], 300)
    giver = rows(wide, width=8, seed=9)
    made, _, report = embed.omp(giver, k=4)(target, old, KEY)
    known = overlap(wide, target)
    lost = np.intersect1d(known.new_ids, overlap(old.vocabulary, target).new_ids)
    assert lost.size and report.counts()["zero"] == lost.size
    np.testing.assert_array_equal(made[lost], 0)


def test_a_run_that_was_killed_goes_on(task, whole, tmp_path, monkeypatch):
    old, target, _ = task
    count = len(task[2].new_ids)

    class Killed(Exception):
        pass

    def stop(matrix, done, count):
        if matrix == "output":
            raise Killed

    with pytest.raises(Killed):
        embed.omp(donor(), k=4, resume=tmp_path, progress=stop)(target, old, KEY)
    before = sorted(tmp_path.iterdir())
    assert len(before) == 2 and not any("tmp" in file.name for file in before)

    from jtok.embed import omp as function  # noqa: F401

    module = sys.modules["jtok.embed.omp"]
    solved = []
    real = module.orthogonal_pursuit
    monkeypatch.setattr(
        module, "orthogonal_pursuit", lambda *a, **k: solved.append(1) or real(*a, **k)
    )
    made, head, _ = embed.omp(donor(), k=4, resume=tmp_path)(target, old, KEY)
    assert not solved  # both batches were there
    np.testing.assert_array_equal(made, whole[0])
    np.testing.assert_array_equal(head, whole[1])
    embed.omp(donor(), k=3, resume=tmp_path)(target, old, KEY)
    assert len(solved) == 2 and count  # another k is another problem


def test_under_a_mesh(task, whole):
    old, target, _ = task
    mesh = jax.make_mesh(
        (4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    with jax.set_mesh(mesh):
        made, _, _ = embed.omp(donor(), k=4, batch=16)(target, old, KEY)
    assert_close(made, whole[0], rtol=1e-4, atol=1e-5)


def test_options(task, whole):
    old, target, shared = task
    plain = whole[0]
    new = shared.new_ids
    scaled, _, _ = embed.omp(donor(), k=4, options=embed.Options(scale=2.0))(
        target, old, KEY
    )
    np.testing.assert_array_equal(scaled[new], 2 * plain[new])
    noisy, _, _ = embed.omp(donor(), k=4, options=embed.Options(noise=0.1))(
        target, old, KEY
    )
    spread = float(jnp.std(noisy[new] - plain[new]))
    assert 0.08 < spread < 0.12
    np.testing.assert_array_equal(noisy[shared.target_ids], plain[shared.target_ids])
    some = tuple(shared.source_ids[::2].tolist())
    _, _, report = embed.omp(donor(), k=4, options=embed.Options(anchors=some))(
        target, old, KEY
    )
    redone = shared.target_ids[~np.isin(shared.source_ids, some)]
    assert (report.copied_from[redone] == -1).all()
    assert report.extras["input"]["anchors"] == len(some)


def test_what_is_refused(task):
    old, target, _ = task
    with pytest.raises(ArgumentError, match="k: got 0"):
        embed.omp(donor(), k=0)
    with pytest.raises(ArgumentError, match="batch: got 0"):
        embed.omp(donor(), batch=0)
    with pytest.raises(ArgumentError, match=r"k: got 400, expected at most \d+"):
        embed.omp(donor(), k=400)(target, old, KEY)
    with pytest.raises(ArgumentTypeError, match="donor: got int"):
        embed.omp(3)
    bad = donor().input.at[5, 0].set(jnp.nan)
    with pytest.raises(ArgumentError, match=r"donor.input: the row of token 5"):
        embed.omp(donor().replace(input=bad))
    bad = old.replace(input=old.input.at[7, 0].set(jnp.inf))
    with pytest.raises(ArgumentError, match=r"source.input: the row of token 7"):
        embed.omp(donor(), k=4)(target, bad, KEY)
    with pytest.raises(VocabMismatchError, match="shares no token"):
        embed.omp(donor(), k=4, options=embed.Options(anchors=()))(target, old, KEY)
    headless = tiny_model(vocab_size=target.size)
    params = {k: v for k, v in headless.params.items() if k != "unembed"}
    with pytest.raises(ArgumentError, match="neither an unembedding nor a tied one"):
        embed.omp(headless.replace(params=params, vocabulary=target))
    with pytest.raises(ArgumentError, match="junk: got"):
        embed.zero(options=embed.Options(junk=(10_000,)))(target, old, KEY)
    with pytest.raises(ArgumentError, match="prefix_match"):
        embed.Options(prefix_match=("lm_head",))


def test_missing_vectors_are_named(task):
    old, target, _ = task
    with pytest.raises(ArgumentError, match="target_vectors: got None"):
        embed.focus(None)
    with pytest.raises(ArgumentError, match="source_vectors: got None"):
        embed.wechsel(None, np.ones((3, 2)))
    with pytest.raises(ArgumentError, match="target_vectors: got '3 rows'"):
        embed.focus(np.ones((3, 2)))(target, old, KEY)
    with pytest.raises(ArgumentError, match="width 3"):
        embed.wechsel(np.ones((4, 2)), np.ones((4, 3)))
    with pytest.raises(ArgumentError, match="counts"):
        embed.trans_tokenization(np.ones((2, 2), np.int32), np.full((2, 2), -1.0))


@pytest.mark.parametrize("k", [1, 3, 7])
def test_barycentric_weights_are_the_smallest_of_the_best(k):
    """Also where more neighbours than dimensions leave a choice (k = 7)."""
    targets = jax.random.normal(KEY, (3, 4))
    atoms = jax.random.normal(jax.random.key(1), (9, 4))
    near, found = embed.interpolation_weights(targets, atoms, k, weights="barycentric")
    for row in range(3):
        points = np.asarray(atoms, np.float64)[near[row]]
        system = np.zeros((k + 1, k + 1))
        system[:k, :k], system[k, :k], system[:k, k] = points @ points.T, 1, 1
        right = np.append(points @ np.asarray(targets[row], np.float64), 1.0)
        expected = (np.linalg.pinv(system, rcond=1e-10) @ right)[:k]
        assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_distances_to_near_points_keep_their_digits():
    """A sum of squares less a product would have lost them."""
    atoms = 100.0 + jnp.array([[0.0, 0.0], [0.0, 0.01], [5.0, 5.0]])
    targets = atoms[:1] + jnp.array([[0.0, 0.002]])
    near, found = embed.interpolation_weights(targets, atoms, 2, metric="euclidean")
    far = np.abs(np.asarray(targets[0, 1] - atoms[:2, 1], np.float64))
    assert near.tolist() == [[0, 1]]
    assert_close(found[0], (1 / far) / (1 / far).sum(), rtol=1e-4)


def test_quantiles_are_those_of_float32():
    """0.3 of 50 is a little above 15 there, so the row at 15 is below the bound."""
    lengths = jnp.where(jnp.arange(51) < 16, 1.0, 1000.0)[:, None]
    bad = embed.under_trained_rows(lengths, lengths, np.zeros(51, bool), quantile=0.3)
    assert bad.tolist() == [True] * 16 + [False] * 35
    bad = embed.under_trained_rows(lengths, lengths, np.zeros(51, bool), quantile=0.5)
    assert not bad.any() or bad.sum() == 16


def test_sums_of_weights():
    scores = jax.random.normal(KEY, (6, 9)) * 3
    weights = np.asarray(embed.sparsemax(scores))
    assert_close(weights.sum(1), np.ones(6), rtol=1e-5, atol=1e-6)
    assert (weights >= 0).all() and (weights == 0).any()
    # The nearest point of the simplex: no exchange of weight brings it nearer.
    best = scores - weights
    for row in range(6):
        gaps = np.asarray(best[row])
        assert gaps[weights[row] > 0].min() >= gaps.max() - 1e-5
    targets, atoms = scores[:, :4], jax.random.normal(jax.random.key(1), (9, 4))
    _, found = embed.interpolation_weights(targets, atoms, 5, weights="barycentric")
    assert_close(found.sum(1), jnp.ones(6), rtol=1e-4, atol=1e-4)
