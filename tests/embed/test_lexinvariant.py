"""Lexinvariant models: the laws of renaming, draws, partial tables, loss, decoding."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok import decode, models, train
from jtok.embed import (
    averaged_log_probs,
    dense_tables,
    example_keys,
    first_appearance,
    invariant_log_probs,
    lexinvariant_from,
    lexinvariant_hidden,
    lexinvariant_logits,
    lexinvariant_loss,
    lexinvariant_table,
    lexinvariant_target,
    share_unseen,
)
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError
from jtok.ops import Want, random_entries
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, tiny_model

KEY = jax.random.key(0)
VOCAB, WIDTH = 24, 32
MODEL = tiny_model(vocab_size=VOCAB, scale=1.0)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (3, 10)), jnp.int32)


LOGITS = jax.jit(lexinvariant_logits)


def loss_of(model, batch, **options):
    loss = jax.jit(lexinvariant_loss(model, **options))
    return loss(model.params, None, None, batch, KEY)


@pytest.fixture(scope="module")
def lex():
    return lexinvariant_from(MODEL, key=KEY, previous_token=True)


@pytest.fixture(scope="module")
def read(lex):
    """Logits against tables that are given."""
    return jax.jit(lambda ids, tables: lexinvariant_logits(lex, ids, tables=tables))


@pytest.fixture(scope="module")
def tables(lex):
    keys = example_keys(jax.random.key(5), jnp.arange(3))
    return dense_tables(lexinvariant_table(lex, keys))


# Renaming ------------------------


@settings(max_examples=6)
@given(names=st.permutations(range(VOCAB)))
def test_renaming_permutes_logits(read, tables, names):
    """Property 1: symbols and their rows renamed together."""
    names = jnp.array(names)
    want = read(IDS, tables)
    got = read(names[IDS], jnp.zeros_like(tables).at[:, names].set(tables))
    assert_close(got[..., names], want, atol=1e-6, rtol=1e-6)


def test_partial_tables_only_rename_random_symbols():
    """For 0 < q < 1 the law holds for symbols with random rows, not for the others."""
    half = lexinvariant_from(MODEL, key=KEY, q=0.5, row_scale=1.0)
    keys = example_keys(KEY, jnp.arange(1))
    ids = jnp.arange(VOCAB)[None]
    chosen = np.asarray(random_entries(keys, ids, 0.5))[0]
    rows = np.asarray(dense_tables(lexinvariant_table(half, keys)))[0]
    learned = np.asarray(half.params["learned"])
    assert 0 < chosen.sum() < VOCAB
    np.testing.assert_array_equal(rows[~chosen], learned[~chosen])
    assert not np.isclose(rows[chosen], learned[chosen]).all(-1).any()


def test_rows_of_unused_symbols_do_not_matter(lex, tables):
    """Property 2: swapping two absent symbols leaves all hidden states as they are."""
    run = jax.jit(functools.partial(lexinvariant_hidden, lex))
    ids = IDS % (VOCAB - 2)
    swapped = tables.at[:, -2].set(tables[:, -1]).at[:, -1].set(tables[:, -2])
    np.testing.assert_array_equal(run(ids, swapped), run(ids, tables))
    used = tables.at[:, ids[0, 0]].set(tables[:, -1])
    assert not np.array_equal(run(ids, used)[0], run(ids, tables)[0])


def test_first_appearance_gives_exact_invariance(lex):
    """Renamed texts get the same numbers to the last bit, unseen symbols equal ones."""
    names = jnp.asarray(np.random.default_rng(1).permutation(VOCAB))
    run = jax.jit(functools.partial(invariant_log_probs, lex, key=KEY))
    want, got = run(IDS), run(names[IDS])
    np.testing.assert_array_equal(got[..., names], want)
    assert_close(jnp.exp(want).sum(-1), np.ones(IDS.shape))
    unseen = sorted(set(range(VOCAB)) - set(IDS[0, :4].tolist()))
    assert float(np.ptp(np.asarray(want)[0, 3, unseen])) == 0.0


@settings(max_examples=10)
@given(st.lists(st.integers(0, 6), min_size=6, max_size=6))
def test_names_by_first_appearance(text):
    found = np.asarray(first_appearance(jnp.array([text]), 7, fixed_ids=(2,)))[0]
    assert sorted(found) == list(range(7)) and found[2] == 2
    order = [s for s in dict.fromkeys(text) if s != 2]
    order += [s for s in range(7) if s not in order and s != 2]
    assert [found[s] for s in order] == [0, 1, 3, 4, 5, 6]


def test_padding_names_nothing():
    mask = jnp.array([[True, False, True]])
    found = first_appearance(jnp.array([[3, 1, 0]]), 4, mask=mask)
    assert found.tolist() == [[1, 2, 3, 0]]


def test_unseen_symbols_share_what_they_have():
    logits = jax.random.normal(KEY, (2, 6, 7))
    ids = jnp.array([[0, 1, 0, 2, 5, 6], [3, 3, 3, 3, 3, 3]])
    log_probs = jax.nn.log_softmax(logits)
    found = np.asarray(share_unseen(log_probs, ids, kept_ids=(4,)))
    assert_close(np.exp(found).sum(-1), np.ones((2, 6)))
    before = np.asarray(log_probs)
    np.testing.assert_array_equal(found[0, 0, [0, 4]], before[0, 0, [0, 4]])
    assert np.ptp(found[1, 5, [0, 1, 2, 5, 6]]) == 0


# Draws ------------------------


def test_draws_belong_to_examples(lex):
    """Property 6: any batch order, any place; other steps have other tables."""
    keys = jax.jit(example_keys)
    index = jnp.array([4, 0, 9])
    table = jax.jit(lambda keys: dense_tables(lexinvariant_table(lex, keys)))
    one = table(keys(KEY, index))
    np.testing.assert_array_equal(table(keys(KEY, index[::-1])), one[::-1])
    np.testing.assert_array_equal(table(keys(KEY, jnp.array([4, 1, 2])))[0], one[0])
    step = jax.random.fold_in(KEY, 1)
    assert not np.isclose(table(keys(step, index)), one).any(-1).any()


@pytest.mark.medium
def test_eight_devices_draw_the_same(lex):
    """Loss and gradient are those of one device."""
    tokens = jax.random.randint(KEY, (8, 9), 0, VOCAB)
    loss = lexinvariant_loss(lex)
    run = jax.value_and_grad(
        lambda params: loss(params, None, None, {"tokens": tokens}, KEY)[0]
    )
    want, want_grads = jax.jit(run)(lex.params)
    with jax.set_mesh(mesh_from("data=4,model=2")):
        got, grads = jax.jit(lambda params: run(params))(lex.params)
    assert_close(got, want)
    jax.tree.map(functools.partial(assert_close, atol=1e-5), grads, want_grads)


def test_averages_over_draws(lex):
    ids = IDS[:, :4]
    run = jax.jit(averaged_log_probs, static_argnames="draws")
    found = run(lex, ids, KEY, draws=3)
    each = [
        jax.nn.softmax(LOGITS(lex, ids, jax.random.fold_in(KEY, k))) for k in range(3)
    ]
    assert_close(jnp.exp(found), sum(each) / 3)


# Parameters and partial tables ------------------------


def test_without_random_rows_it_is_the_tied_model():
    """Property 5: q = 0 gives the logits, and the loss, of the ordinary model."""
    tied = tiny_model(vocab_size=VOCAB, family="gpt2", scale=1.0)
    none = lexinvariant_from(tied, key=KEY, q=0.0, logit_scale="none")
    want = jax.jit(lambda ids: tied(ids).logits)(IDS)
    assert_close(LOGITS(none, IDS, KEY), want, atol=1e-5, rtol=1e-5)
    batch = {"tokens": IDS, "mask": IDS > 3}
    got, _ = loss_of(none, batch)
    want, _ = jax.jit(train.lm_loss(tied))(tied.params, None, None, batch, KEY)
    assert_close(got, want)


def test_nothing_is_indexed_by_ids(lex):
    """Property 5: q = 1 has no parameter of the vocabulary's size."""
    sizes = {n for leaf in jax.tree.leaves(lex.params) for n in np.shape(leaf)}
    assert VOCAB not in sizes
    half = lexinvariant_from(MODEL, key=KEY, q=0.5)
    assert half.params["learned"].shape == (VOCAB, WIDTH)
    spread = float(jnp.sqrt(jnp.mean(half.params["learned"] ** 2)))
    assert half.config.row_scale == pytest.approx(spread)


def test_fixed_and_excluded_symbols():
    """BOS keeps a learned row in every table; padding gets no probability."""
    options = {"fixed_ids": (1,), "excluded_ids": (0,), "logit_scale": "learned"}
    model = lexinvariant_from(MODEL, key=KEY, **options)
    keys = example_keys(KEY, jnp.arange(2))
    whole = dense_tables(lexinvariant_table(model, keys))
    assert_close(whole[:, 1], jnp.tile(model.params["fixed_rows"], (2, 1)))
    logits = LOGITS(model, IDS, KEY)
    assert bool(jnp.isneginf(logits[..., 0]).all())
    batch = {"tokens": IDS.at[:, 4].set(0)}
    run = jax.jit(jax.value_and_grad(lexinvariant_loss(model), has_aux=True))
    (_, (metrics, _)), grads = run(model.params, None, None, batch, KEY)
    assert int(metrics["tokens"]) == int((batch["tokens"][:, 1:] != 0).sum()) < 27
    assert float(jnp.abs(grads["fixed_rows"]).max()) > 0
    assert float(jnp.abs(grads["logit_scale"])) > 0
    found = jax.jit(invariant_log_probs)(model, IDS, KEY)
    assert bool(jnp.isneginf(found[..., 0]).all())


# Loss ------------------------


def test_the_loss_is_the_mean_of_dense_logits(lex):
    """Targets alone count; documents of a row are apart; padding changes nothing."""
    rng = np.random.default_rng(2)
    tokens = jnp.asarray(rng.integers(0, VOCAB, (2, 9)), jnp.int32)
    mask = jnp.asarray(rng.random((2, 9)) > 0.4)
    got, (metrics, _) = loss_of(lex, {"tokens": tokens, "mask": mask}, block=7)
    log_probs = jax.nn.log_softmax(LOGITS(lex, tokens[:, :-1], KEY))
    nats = -jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
    assert_close(got, jnp.sum(jnp.where(mask[:, 1:], nats, 0)) / mask[:, 1:].sum())
    assert int(metrics["tokens"]) == int(mask[:, 1:].sum())


def test_documents_of_a_row_are_apart(lex):
    """The second document of a row reads as if it stood alone with that table."""
    tokens = jax.random.randint(KEY, (1, 13), 0, VOCAB)
    positions = jnp.array([[*range(6), *range(7)]])
    batch = {"tokens": tokens, "positions": positions, "segments": positions * 0 + (
        jnp.arange(13) >= 6)[None], "mask": (jnp.arange(13) > 6)[None]}  # fmt: skip
    got, _ = loss_of(lex, batch)
    want, _ = loss_of(lex, {"tokens": tokens[:, 6:]})
    assert_close(got, want)


def test_training_never_beats_uniform_on_the_first_symbol():
    """Property 9: fresh tables, so nothing is learned of symbols by name."""
    small = tiny_model(vocab_size=8, scale=1.0)
    model = lexinvariant_from(small, key=KEY)
    # Symbol 3 always follows symbol 5: easy for fixed rows, hidden from fresh ones.
    tokens = jnp.tile(jnp.array([[5, 3]]), (32, 1))

    def last_losses(q):
        made = lexinvariant_from(small, key=KEY, q=q)
        result = train.fit(
            lexinvariant_loss(made), made.params, optimizer=train.adamw(1e-2),
            data=lambda step: {"tokens": tokens}, steps=40, key=KEY, progress=False,
        )  # fmt: skip
        return result.metrics["loss"][-10:].mean()

    assert model.config.q == 1
    # The symbol itself is known to be another one only by its row: log 7 at best.
    assert last_losses(1.0) > math.log(7) - 0.1
    assert last_losses(0.0) < 0.5


def test_bfloat16():
    config = dataclasses.replace(MODEL.config, dtype="bfloat16")
    narrow = models.Model(
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), MODEL.params), config
    )
    wide = lexinvariant_from(MODEL, key=KEY)
    model = lexinvariant_from(narrow, key=KEY)
    loss, _ = loss_of(model, {"tokens": IDS})
    want, _ = loss_of(wide, {"tokens": IDS})
    assert loss.dtype == jnp.float32
    assert_close(loss, want, rtol=3e-2)
    assert LOGITS(model, IDS, KEY).dtype == jnp.float32


def test_a_recurrent_decoder():
    """Any decoder that takes vectors: here Mamba."""
    model = lexinvariant_from(tiny_model(vocab_size=VOCAB, family="mamba"), key=KEY)
    logits = LOGITS(model, IDS, KEY)
    assert logits.shape == (3, 10, VOCAB)
    sooner = LOGITS(model, IDS.at[:, 4:].set(0), KEY)[:, :4]
    assert_close(logits[:, :4], sooner, atol=1e-4, rtol=1e-4)


# Decoding ------------------------


@pytest.mark.parametrize("previous", [True, False])
def test_greedy_decoding_is_the_argmax_of_logits(previous):
    """A table a row; the map of the previous token across steps and tree nodes."""
    model = lexinvariant_from(MODEL, key=KEY, previous_token=previous)
    target = lexinvariant_target(model, jax.random.key(3))
    prompts = [[3, 5, 3, 7], [2, 2, 9]]
    out = decode.generate(
        target, prompts, params=model.params, max_new_tokens=5,
        drafter=decode.prompt_lookup(),
    )  # fmt: skip
    for index, (prompt, tokens) in enumerate(zip(prompts, out.tokens)):
        text = list(prompt)
        for token in np.asarray(tokens).tolist():
            ids = jnp.array([text + [0] * (12 - len(text))])
            logits = LOGITS(model, ids, jax.random.key(3), examples=jnp.array([index]))
            assert token == int(jnp.argmax(logits[0, len(text) - 1]))
            text.append(token)


def test_the_target_reads_logits(lex):
    target = lexinvariant_target(lex, KEY)
    assert target.rewind is None and target.info.vocab_size == VOCAB
    plain = lexinvariant_target(lexinvariant_from(MODEL, key=KEY), KEY)
    cache = plain.init_cache(MODEL.params | {"body": MODEL.params}, 2, 8)
    back = plain.rewind(cache, jnp.zeros(2, jnp.int32))
    assert back.keys.shape == (2, 2)
    found = target.readout(lex.params, jnp.eye(VOCAB)[None, :3], Want())
    assert found.choice.tolist() == [[0, 1, 2]]


# Bad input ------------------------


def test_bad_input(lex):
    with pytest.raises(ArgumentError, match="q: got 1.2"):
        lexinvariant_from(MODEL, key=KEY, q=1.2)
    with pytest.raises(ValueError, match="q: got -0.5"):
        lexinvariant_from(MODEL, key=KEY, q=-0.5)
    with pytest.raises(ArgumentError, match="row_scale"):
        lexinvariant_from(MODEL, key=KEY, row_scale=0.0)
    with pytest.raises(ArgumentError, match="logit_scale"):
        dataclasses.replace(lex.config, logit_scale="sqrt")
    with pytest.raises(ArgumentError, match="fixed_ids"):
        lexinvariant_from(MODEL, key=KEY, fixed_ids=(VOCAB,))
    with pytest.raises(VocabMismatchError, match=f"ids in 0..{VOCAB - 1}"):
        lexinvariant_logits(lex, jnp.array([[VOCAB]]), KEY)
    with pytest.raises(VocabMismatchError):
        averaged_log_probs(lex, jnp.array([[-1]]), KEY)
    with pytest.raises(ArgumentError, match="a key or tables"):
        lexinvariant_logits(lex, IDS)
    with pytest.raises(ArgumentError, match="tables"):
        lexinvariant_logits(lex, IDS, tables=jnp.ones((3, VOCAB, 8)))
    with pytest.raises(ArgumentError, match="draws"):
        averaged_log_probs(lex, IDS, KEY, draws=0)
    half = lexinvariant_from(MODEL, key=KEY, q=0.5)
    with pytest.raises(ArgumentError, match="q=0.5"):
        invariant_log_probs(half, IDS, KEY)
    both = dataclasses.replace(MODEL.config, causal=False)
    with pytest.raises(ArgumentError, match="looks both ways"):
        lexinvariant_from(models.Model(MODEL.params, both), key=KEY)
    # A width that the rotation cannot halve is refused with the decoder's sizes.
    with pytest.raises(ArgumentError, match="even number of rotated dimensions"):
        dataclasses.replace(MODEL.config, head_dim=7)
    with pytest.raises(ArgumentTypeError, match="tokens"):
        lexinvariant_loss(lex)(lex.params, None, None, {"ids": IDS}, KEY)
