"""Methods against the official code, array by array."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import embed
from jtok.errors import ArgumentError
from jtok.testing import assert_close, load_golden
from jtok.text import Vocabulary, overlap

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # of the goldens' README
LEAST_SQUARES = {"rtol": 1e-3, "atol": 1e-4}


def arrays(name):
    return load_golden(f"omp_transplant/{name}.npz")


# The whole of it ------------------------


def vocabulary(tokens, roles, level):
    """A vocabulary of these printed forms, byte-level or metaspace."""
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False,
                          "trim_offsets": True, "use_regex": True} if level else None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)},
                  "merges": []},
    }  # fmt: skip
    named = {f"{role}_token": token for role, token in roles.items()}
    return Vocabulary.from_json(json.dumps(spec), named)


@pytest.fixture(scope="module")
def pipeline():
    file = arrays("pipeline")
    base = vocabulary(
        file["base_tokens"].tolist(),
        {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
        True,
    )
    roles = {role: f"<{role}>" for role in ("bos", "eos", "unk", "pad")}
    donor = vocabulary(file["donor_tokens"].tolist(), roles, False)
    old = embed.Rows(jnp.asarray(file["base_embed"]), None, base)
    giver = embed.Rows(jnp.asarray(file["donor_embed"]), None, donor)
    return file, old, giver


def test_the_shared_tokens_are_the_official_ones(pipeline):
    file, old, giver = pipeline
    found = overlap(
        old.vocabulary, giver.vocabulary, compat="official", byte_match=False
    )
    np.testing.assert_array_equal(found.target_ids, file["shared_donor_ids"])
    np.testing.assert_array_equal(found.source_ids, file["shared_base_ids"])
    by_bytes = overlap(old.vocabulary, giver.vocabulary)
    table = dict(zip(by_bytes.target_ids.tolist(), by_bytes.source_ids.tolist()))
    names = {file["donor_tokens"][new]: file["base_tokens"][old]
             for new, old in table.items()}  # fmt: skip
    # The byte-level e-acute is the byte E9, which here is no UTF-8 letter's.
    assert "é" not in names and names["the"] == "the" and names["<bos>"] == "<s>"


CASES = {
    "out_omp": {},
    "out_omp_junk": {"junk": True},
    "out_omp_byte": {"byte_match": True},
    "out_omp_prefix": {"prefix_match": ("input",)},
    "out_zero": {},
    "out_mean": {},
}


@pytest.mark.parametrize("name", CASES)
def test_whole_matrices(pipeline, name):
    file, old, giver = pipeline
    how = {"byte_match": False, **CASES[name]}
    if how.get("junk"):
        how["junk"] = tuple(file["junk_ids"].tolist())
    options = embed.Options(**how, compat="official")
    method = {
        "out_zero": lambda: embed.zero(options=options),
        "out_mean": lambda: embed.mean(options=options),
    }.get(name, lambda: embed.omp(giver, k=int(file["omp_k"]), options=options))()
    made, _, report = method(giver.vocabulary, old, jax.random.key(0))
    wanted = file[name].copy()
    if name in ("out_zero", "out_mean"):
        # Ours makes rows for ids beyond the donor's, which these methods need not know.
        made, wanted = made[:26], wanted[:26]
    assert_close(made, wanted, **TOLERANCE)
    shared = file["shared_donor_ids"]
    np.testing.assert_array_equal(np.asarray(made)[shared], wanted[shared])
    assert report.counts()["copied"] + report.counts()["role"] >= len(shared)


# Pursuits ------------------------


@pytest.fixture(scope="module")
def core():
    file = arrays("omp_core")
    file.ignore("seed", reason="of the generator that made the inputs")
    return file


@pytest.mark.parametrize("way", ["direct", "gram"])
@pytest.mark.parametrize("k", [1, 4, 8, 16])
def test_orthogonal_pursuit(core, k, way):
    targets, atoms, base = (
        jnp.asarray(core[name]) for name in ("targets", "donor_shared", "base_shared")
    )
    assert core["min_selection_gap"] > 1e-6  # far from ties: indices are exact
    found = embed.orthogonal_pursuit(targets, atoms, k, implementation=way)
    np.testing.assert_array_equal(found.indices, core[f"k{k}_indices"])
    assert_close(found.coefficients, core[f"k{k}_coeff"], **TOLERANCE)
    assert_close(embed.combine(found, base), core[f"k{k}_new_embed"], **TOLERANCE)
    assert_close(found.residuals, core[f"k{k}_resid_norm"], **TOLERANCE)


def test_other_conventions(core):
    targets, atoms = jnp.asarray(core["targets"]), jnp.asarray(core["donor_shared"])
    again = embed.orthogonal_pursuit(targets, atoms, int(core["reorth3_k"]))
    np.testing.assert_array_equal(again.indices, core["reorth3_indices"])
    assert_close(again.coefficients, core["reorth3_coeff"], **TOLERANCE)
    narrow = (jnp.asarray(core[f"bf16_{n}_as_f32"]) for n in ("targets", "donor"))
    found = embed.orthogonal_pursuit(
        *(rows.astype(jnp.bfloat16) for rows in narrow), int(core["bf16_k"])
    )
    assert core["bf16_min_gap"] > 1e-6 and found.coefficients.dtype == jnp.float32
    np.testing.assert_array_equal(found.indices, core["bf16_indices"])
    assert_close(found.coefficients, core["bf16_coeff"], **TOLERANCE)
    plain = embed.matching_pursuit(targets, atoms, int(core["mp_k"]), compat="official")
    np.testing.assert_array_equal(plain.indices, core["mp_indices"])
    assert_close(plain.coefficients, core["mp_coeff"], **TOLERANCE)


@pytest.mark.parametrize("way", ["direct", "gram"])
def test_normalised_atoms(core, way):
    targets, k = jnp.asarray(core["targets"]), int(core["unit_k"])
    unit, raw = jnp.asarray(core["unit_donor"]), jnp.asarray(core["donor_shared"])
    indices, coefficients = core["unit_indices"], core["unit_coeff"]
    assert core["unit_min_gap"] > 1e-6
    found = embed.orthogonal_pursuit(targets, unit, k, implementation=way)
    np.testing.assert_array_equal(found.indices, indices)
    assert_close(found.coefficients, coefficients, **TOLERANCE)
    found = embed.orthogonal_pursuit(
        targets, raw, k, normalize_atoms=True, implementation=way
    )
    lengths = np.linalg.norm(np.asarray(raw), axis=1)
    np.testing.assert_array_equal(found.indices, indices)
    assert_close(found.coefficients, coefficients / lengths[indices], **TOLERANCE)


@pytest.mark.parametrize("way", ["direct", "gram"])
def test_degenerate_dictionaries(way):
    file = arrays("omp_edge")
    atoms, targets = jnp.asarray(file["span_donor"]), jnp.asarray(file["span_targets"])
    solve = lambda t, a, k: embed.orthogonal_pursuit(t, a, k, implementation=way)
    found = solve(targets, atoms, 4)
    np.testing.assert_array_equal(found.indices[1:, 0], file["span_indices"][1:, 0])
    # The official ones go on with noise below 1e-6; ours stops.
    assert_close(found.coefficients, file["span_coeff"], rtol=1e-4, atol=1e-5)
    assert (np.asarray(found.indices)[:, 1:] == -1).all() and found.indices[0, 0] == -1
    assert_close(embed.combine(found, atoms), file["span_recon"], rtol=0.0, atol=1e-5)
    full = jnp.asarray(file["full_targets"])
    whole = embed.combine(solve(full, atoms, int(file["full_k"])), atoms)
    assert_close(whole, file["full_recon"], rtol=0.0, atol=1e-4)
    over = solve(full, atoms, int(file["overfull_k"]))
    error = float(jnp.abs(embed.combine(over, atoms) - full).max())
    assert error < 1e-3 < file["overfull_official_recon_err"]
    most = float(jnp.abs(over.coefficients).max())
    assert most < 100 < file["overfull_official_max_abs_coeff"]
    twins = jnp.asarray(file["dup_donor"])
    one, other = file["dup_pair"]
    np.testing.assert_array_equal(twins[one], twins[other])
    found = solve(jnp.asarray(file["dup_target"]), twins, 4)
    support = found.indices[0][found.indices[0] >= 0]
    np.testing.assert_array_equal(support, file["dup_expected_support"])
    expected = file["dup_expected_coeff"]
    assert_close(found.coefficients[0, : len(expected)], expected, rtol=0.0, atol=1e-4)
    wild = np.abs(file["dup_official_coeff"][0]).max()
    assert wild > 1e6 and other in file["dup_official_indices"][0]


def test_turned_atoms():
    file = arrays("mp_rope")
    targets, atoms, base = (
        jnp.asarray(file[name]) for name in ("targets", "donor_shared", "base_shared")
    )
    heads, bases = (
        [kind(file[f"{name}_{side}"]) for side in ("donor", "base")]
        for name, kind in (("heads", int), ("rope_base", float))
    )
    found = embed.rope_pursuit(
        targets, atoms, int(file["k"]), heads=heads[0], base=bases[0]
    )
    np.testing.assert_array_equal(found.indices, file["indices"])
    assert_close(found.coefficients, file["coeff"], rtol=1e-3, atol=1e-5)
    assert_close(found.greedy, file["donor_approx"], rtol=1e-3, atol=1e-5)
    turned = embed.turn(
        base[found.indices], found.positions, heads=heads[1], base=bases[1]
    )
    new = jnp.einsum("nk,nkd->nd", found.coefficients, turned)
    assert_close(new, file["new_embed"], rtol=1e-3, atol=1e-5)


# The others ------------------------


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    "scheme", ["distance_proportional", "barycentric", "least_squares"]
)
def test_interpolation(metric, scheme):
    file, name = arrays("common_interpolation"), f"{metric}_{scheme}"
    targets, atoms = jnp.asarray(file["targets"]), jnp.asarray(file["donor_shared"])
    near, weights = embed.interpolation_weights(
        targets, atoms, int(file["k"]), metric=metric, weights=scheme
    )
    np.testing.assert_array_equal(near, file[f"{name}_indices"])
    assert_close(weights, file[f"{name}_weights"], **LEAST_SQUARES)
    made = embed.weighted_rows(near, weights, jnp.asarray(file["base_shared"]))
    assert_close(made, file[f"{name}_new_embed"], **LEAST_SQUARES)


@pytest.mark.parametrize("scheme", ["mean", "sum", "weighted_mean", "first_last"])
def test_pieces(scheme):
    file = arrays("subword_magikarp")
    ids, rows = file["decomposition"], jnp.asarray(file["base_embed"])
    for matrix, name in (("input", "embed"), ("output", "head")):
        weights = embed.piece_weights(ids, scheme, matrix, compat="official")
        made = embed.weighted_rows(jnp.asarray(ids), jnp.asarray(weights), rows)
        assert_close(made, file[f"{scheme}_{name}"], **TOLERANCE)
    if scheme == "weighted_mean":  # by default the other way round
        ours = embed.piece_weights(ids, scheme, "output")
        official = embed.piece_weights(ids, scheme, "input", compat="official")
        np.testing.assert_array_equal(ours, official)


def test_who_is_well_trained():
    file = arrays("subword_magikarp")
    rows, head = jnp.asarray(file["magikarp_embed"]), jnp.asarray(file["magikarp_head"])
    unused = np.ones(len(rows), bool)
    unused[file["magikarp_vocab_ids"]] = False
    unused[file["magikarp_reserved_id"]] = True
    for name, output in (("untied", head), ("tied", None)):
        bad = embed.under_trained_rows(
            rows, output, unused, quantile=float(file["magikarp_quantile"])
        )
        np.testing.assert_array_equal(~bad, file[f"magikarp_good_{name}"] == 1)


def letters(count, first=0):
    """A vocabulary of `count` words that others do not share."""
    numbers = range(first, first + count)
    return of_words({f"w{number}": number - first for number in numbers})


def of_words(words):
    model = {"type": "WordLevel", "vocab": words, "unk_token": next(iter(words))}
    spec = {"version": "1.0", "added_tokens": [], "model": model}
    return Vocabulary.from_json(json.dumps(spec))


def test_wechsel():
    file = arrays("baselines")
    old = embed.Rows(jnp.asarray(file["source_matrix"]), None, letters(45))
    target = letters(25, first=100)
    real = ~np.isin(np.arange(25), file["zero_aux_rows"])
    for name, count, heat in (("n10_t0p1", 10, 0.1), ("n3_t1p0", 3, 1.0)):
        method = embed.wechsel(
            file["source_aux"], file["target_aux"], neighbours=count,
            temperature=heat, compat="official",
        )  # fmt: skip
        made, _, report = method(target, old, jax.random.key(0))
        wanted = file[f"wechsel_{name}"]
        # The unknown word has a role, and so its row.
        real[0] = False
        assert_close(made[real], wanted[real], **TOLERANCE)
        assert report.counts()["fallback"] == 2


def test_focus_and_sparsemax():
    file = arrays("baselines")
    done = embed.sparsemax(jnp.asarray(file["sparsemax_in"]))
    assert_close(done, file["sparsemax_out"], **TOLERANCE)
    shared, rows = file["focus_overlap_rows"], file["focus_rows"]
    one = file["target_aux"][rows]
    other = file["source_aux"][shared]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other)]
    assert_close(unit[0] @ unit[1].T, file["focus_cosine"], **TOLERANCE)
    weights = embed.sparsemax(jnp.asarray(file["focus_cosine"]))
    assert_close(weights, file["focus_sparsemax"], **TOLERANCE)
    # The method itself: a target that has the shared words first, then the new ones.
    words = {**{f"w{i}": i for i in shared.tolist()},
             **{f"n{i}": len(shared) + i for i in range(len(rows))}}  # fmt: skip
    target = of_words(words)
    old = embed.Rows(jnp.asarray(file["source_matrix"]), None, letters(45))
    method = embed.focus(np.concatenate([other, one]))
    made, _, _ = method(target, old, jax.random.key(0))
    assert_close(made[len(shared) :], file["focus_out"][rows], **TOLERANCE)
    rest = np.setdiff1d(np.arange(25), rows)
    assert (file["focus_out"][rest] == 0).all()


def test_linear_maps():
    file = arrays("baselines")
    a, b, targets = (
        jnp.asarray(file[f"lm_{name}"]) for name in ("points_a", "points_b", "targets")
    )
    rows = jnp.concatenate([a, targets])
    old, giver = letters(60), letters(66)
    source = embed.Rows(b, None, old)
    donor = embed.Rows(rows, None, giver)
    errors = {}
    for name, method in (
        ("procrustes", embed.procrustes(donor)),
        ("least_squares", embed.linear_map(donor, penalty=0.0)),
    ):
        made, _, _ = method(giver, source, jax.random.key(0))
        assert_close(made[60:], file[f"lm_{name}"], **LEAST_SQUARES)
        errors[name] = np.linalg.norm(made[60:] - file["lm_true_b"])
    size = np.linalg.norm(file["lm_true_b"])
    assert errors["least_squares"] < 0.1 * size < errors["procrustes"] < size


def test_a_sparse_basis_finds_a_map_that_is_there():
    draws = np.random.default_rng(4)
    rows = jnp.asarray(draws.normal(size=(66, 5)), jnp.float32)
    turn = jnp.asarray(draws.normal(size=(5, 4)), jnp.float32)
    source = embed.Rows(rows[:60] @ turn, None, letters(60))
    giver = letters(66)
    donor = embed.Rows(rows, None, giver)
    for penalty, tolerance in ((0.0, 1e-3), (0.01, 0.2)):
        method = embed.sparse_basis(donor, k=6, directions=4, penalty=penalty)
        made, _, _ = method(giver, source, jax.random.key(0))
        lost = np.linalg.norm(made[60:] - rows[60:] @ turn, axis=1)
        assert (lost < tolerance + 3 * _off_axes(rows[:60], 4, rows[60:])).all()
    bad = {"penalty": -1.0}
    with pytest.raises(ArgumentError, match="penalty: got -1"):
        embed.sparse_basis(donor, **bad)


def _off_axes(known, count, targets):
    """What the first principal directions leave of each target, times the map."""
    middle = np.asarray(known).mean(0)
    axes = np.linalg.svd(np.asarray(known) - middle)[2][:count]
    rest = np.asarray(targets) - middle
    return np.linalg.norm(rest - rest @ axes.T @ axes, axis=1)


def test_trans_tokenization():
    file = arrays("baselines")
    target = letters(5, first=100)
    old = embed.Rows(jnp.asarray(file["source_matrix"]), None, letters(45))
    method = embed.trans_tokenization(file["tt_ids"], file["tt_prob"] * 7)
    made, _, _ = method(target, old, jax.random.key(0))
    assert_close(made[1:], file["tt_out"][1:], **TOLERANCE)
    rows = embed.weighted_rows(
        jnp.asarray(file["tt_ids"]), jnp.asarray(file["tt_prob"]), old.input
    )
    assert_close(rows, file["tt_out"], **TOLERANCE)
