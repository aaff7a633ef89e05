"""Networks that predict rows, against the official ones and their own laws."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.embed import (
    HypernetworkConfig,
    PieceMixerConfig,
    Rows,
    correct_rows,
    fit_rescalers,
    fit_residual_rescalers,
    hypernetwork,
    identity_error,
    init_hypernetwork,
    init_residual_network,
    lexical_error,
    predict_rows,
    predict_vocabulary,
    source_rows,
)
from jtok.errors import ArgumentError, VocabMismatchError
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, load_golden, tiny_model, tiny_vocabulary
from tests.embed.networks import FILES, MIXERS, golden_mixer, golden_network
from tests.text.dynamic_base import unigram

predict = jax.jit(predict_rows, static_argnames=("language", "chunk"))
correct = jax.jit(correct_rows)
BOTH = pytest.mark.parametrize("name", sorted(FILES))
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
SMALL = HypernetworkConfig(
    row_width=32,
    source_size=280,
    pad_id=0,
    hidden=16,
    intermediate=32,
    heads=2,
    maxlen=3,
)


def predicted(name, forms, **options):
    network, language, source = golden_network(name, **options)
    return predict(network, source, forms, language=language)


def compare(made, file, stage):
    for part, rows in (("in", made.input), ("out", made.output), ("bias", made.bias)):
        if rows is not None:
            np.testing.assert_allclose(
                rows, file[f"{stage}_rescale_{part}"], **TOLERANCE
            )


@BOTH
def test_rows_are_the_official_ones(name):
    file = load_golden(FILES[name])
    made = predicted(name, jnp.asarray(file["surface_forms"]))
    compare(made, file, "before")
    assert (made.output is None) == (name == "tied")
    assert np.isfinite(made.input[1]).all()  # nothing but padding


@BOTH
def test_rescalers_are_the_official_ones(name):
    file = load_golden(FILES[name])
    network, language, source = golden_network(name)
    fitted = fit_rescalers(network, source, file["anchor_surface_forms"])
    for key in file:
        if key.startswith("rescaled/"):
            _, scaler, leaf = key.split("/")
            got = fitted.params[scaler][leaf]
            np.testing.assert_allclose(got, file[key], rtol=2e-4, atol=1e-5)
    forms = jnp.asarray(file["surface_forms"])
    compare(predict(fitted, source, forms, language=language), file, "after")
    # What comes out of the anchors is as the source rows are.
    made = predict(
        fitted, source, file["anchor_surface_forms"],
        language=None if language is None else 0,
    )  # fmt: skip
    d = network.config.row_width
    np.testing.assert_allclose(made.input.mean(0), source[:, :d].mean(0), atol=1e-4)
    np.testing.assert_allclose(made.input.std(0), source[:, :d].std(0), atol=1e-4)


@BOTH
def test_errors_are_the_official_ones(name):
    file = load_golden(FILES[name])
    forms = jnp.asarray(file["surface_forms"])
    network, _, source = golden_network(name)
    made = predicted(name, forms, rescaled=True)
    config = network.config
    sizes = {"source_size": config.source_size, "pad_id": config.pad_id}
    got = lexical_error(made, source, forms, **sizes, compat="official")
    assert float(got) == pytest.approx(float(file["lexical_loss_zett"]), rel=1e-4)
    mask = np.all(np.asarray(forms[:, 1:]) == config.pad_id, axis=1)
    assert mask.tolist() == file["lexical_mask"].astype(bool).tolist()
    first = jnp.minimum(forms[:, 0], config.source_size - 1)
    got = identity_error(made, source, first)
    expected = float(file["identity_loss_on_first_piece"])
    assert float(got) == pytest.approx(expected, rel=1e-4)
    # By default neither the fallback byte of row 0 nor the padding of row 1 counts.
    ours = lexical_error(made, source, forms, **sizes)
    fewer = lexical_error(
        jax.tree.map(lambda x: x[2:], made), source, forms[2:], **sizes
    )
    assert float(ours) == pytest.approx(float(fewer), rel=1e-6)


def test_a_perfect_row_has_no_error():
    network, _, source = golden_network("tied")
    forms = jnp.array([[7, 2], [9, 2]])
    made = predict(network, source, forms, language=0)
    made = made._replace(input=source[forms[:, 0]])
    assert float(lexical_error(made, source, forms, source_size=50, pad_id=2)) == 0.0


@BOTH
def test_padding_order_and_fallback_rows(name):
    network, language, source = golden_network(name, rescaled=True)
    forms = np.full((4, 4), network.config.pad_id)
    forms[:, :3] = [[5, 6, 7], [3, 52, 2], [51, 2, 2], [8, 9, 2]]
    run = lambda f, s=source: predict(network, s, f, language=language).input
    base = run(forms)
    wider = np.pad(forms, ((0, 0), (0, 3)), constant_values=network.config.pad_id)
    np.testing.assert_allclose(run(wider), base, atol=2e-6)
    np.testing.assert_allclose(run(forms[::-1].copy()), base[::-1], atol=2e-6)
    # A lone fallback id reads nothing of the source.
    np.testing.assert_allclose(run(forms, source + 1.0)[2], base[2], atol=2e-6)
    assert np.abs(run(forms, source + 1.0)[1] - base[1]).max() > 1e-3
    chunked = predict(network, source, forms, language=language, chunk=3)
    np.testing.assert_allclose(chunked.input, base, atol=2e-6)


def test_bfloat16_is_near_and_rows_are_float32():
    network, _, source = golden_network("untied", rescaled=True)
    forms = load_golden(FILES["untied"])["surface_forms"]
    config = dataclasses.replace(network.config, dtype="bfloat16")
    narrow = predict(network.replace(config=config), source, forms)
    wide = predict(network, source, forms)
    assert narrow.input.dtype == jnp.float32
    assert 0 < np.abs(narrow.input - wide.input).max() < 0.2 * np.abs(wide.input).max()


def test_tokens_are_shared_by_the_devices():
    network, language, source = golden_network("tied", rescaled=True)
    forms = load_golden(FILES["tied"])["surface_forms"][:16]
    alone = predict(network, source, forms, language=language).input
    with jax.set_mesh(mesh_from("data=4,model=2")):
        run = jax.jit(
            lambda f: predict_rows(network, source, f, language=language).input
        )
        shared = run(jnp.asarray(forms))
    np.testing.assert_allclose(shared, alone, atol=2e-6)


@pytest.mark.parametrize("name", ["mlp_first", "mlp_mean"])
def test_corrected_rows_are_the_official_ones(name):
    file = load_golden(MIXERS)
    rows, mask = jnp.asarray(file["embeddings"]), jnp.asarray(file["mask"]).astype(bool)
    got = correct(golden_mixer(name), rows, mask)
    np.testing.assert_allclose(got, file[f"{name}/out"], **TOLERANCE)
    network = golden_mixer(name)
    fresh = init_residual_network(network.config, jax.random.key(0))
    expected = file[f"{name}/init_out"]
    np.testing.assert_allclose(correct(fresh, rows, mask), expected, atol=1e-6)
    for key in file:
        if key.startswith(f"{name}/init_param"):
            assert (file[key] == (1 if key.endswith("w") else 0)).all()
    source = rows.reshape(-1, 2, 12)
    fitted = fit_residual_rescalers(fresh, source)
    np.testing.assert_allclose(correct(fitted, rows, mask), expected, atol=1e-5)


@pytest.mark.parametrize("pooling, rows_of", [("mean", "first"), ("first", "mean")])
def test_states_and_rows_are_pooled_apart(pooling, rows_of):
    """With one layer of MLP in NumPy; a linear map of the same width goes before."""
    config = PieceMixerConfig(
        row_width=4, hidden=4, intermediate=8, layers=1, max_pieces=3, alpha=2.0,
        pooling=pooling, row_pooling=rows_of, widen=True,
    )  # fmt: skip
    fresh = init_residual_network(config, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    draw = lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape)
    network = fresh.replace(params=jax.tree.map(draw, fresh.params))
    rows = np.asarray(jax.random.normal(jax.random.key(2), (2, 3, 1, 4)))
    mask = np.array([[True, True, False], [True, True, True]])
    tree = jax.tree.map(np.asarray, network.params)
    dense = lambda x, at: x @ at["kernel"] + at["bias"]
    given = rows[:, :, 0] * tree["in_rescaler"]["w"][0] + tree["in_rescaler"]["b"][0]
    inside, layer = tree["transformer"], tree["transformer"]["layers_0"]
    x = dense(given, tree["input_linear"])
    x = x + inside["position_embeddings"]["embedding"][None]
    inner = np.asarray(jax.nn.gelu(dense(x, layer["mlp"]["intermediate"])))
    x = x + dense(inner, layer["mlp"]["output"])
    norm = layer["post_mlp_layernorm"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    x = x * norm["scale"] + norm["bias"]
    weight = mask / mask.sum(1, keepdims=True)
    pool = lambda y, how: (
        y[:, 0] if how == "first" else np.einsum("np,npd->nd", weight, y)
    )
    made = pool(given, rows_of) + dense(pool(x, pooling), tree["output_linear"])
    out = made * tree["out_rescaler"]["w"][0] + tree["out_rescaler"]["b"][0]
    got = correct(network, jnp.asarray(rows), jnp.asarray(mask))
    np.testing.assert_allclose(got[:, 0], out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, name",
    [({"row_pooling": "last"}, "row_pooling"), ({"widen": False}, "widen")],
)
def test_mixers_that_cannot_be(options, name):
    build = inspect.unwrap(PieceMixerConfig)
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        build(row_width=4, hidden=8, intermediate=8, **options)


def test_pieces_see_each_other_with_attention():
    config = PieceMixerConfig(
        row_width=4, hidden=8, intermediate=8, attention_heads=2, max_pieces=3
    )
    network = init_residual_network(config, jax.random.key(0))
    params = dict(network.params)
    params["output_linear"] = {"kernel": jax.random.normal(jax.random.key(2), (8, 4)),
                               "bias": jnp.zeros(4)}  # fmt: skip
    network = network.replace(params=params)
    rows = jax.random.normal(jax.random.key(1), (2, 3, 1, 4))
    mask = jnp.array([[True, True, False], [True, True, True]])
    base = correct(network, rows, mask)
    moved = correct(network, rows.at[:, 1:].add(1.0), mask)
    assert np.abs(moved - base).max() > 1e-4
    hidden = correct(network, rows.at[0, 2].add(1.0), mask)
    np.testing.assert_allclose(hidden[0], base[0], atol=1e-6)
    assert np.isfinite(correct(network, rows, jnp.zeros((2, 3), bool))).all()


def test_as_a_way_to_make_rows():
    base, target = tiny_vocabulary(), tiny_vocabulary(270)
    network = init_hypernetwork(SMALL, jax.random.key(0), vocabulary=base)
    rows = Rows(tiny_model(vocab_size=280, family="gpt2").params["embed"]["tokens"],
                None, base)  # fmt: skip
    made, output, report = hypernetwork(network)(target, rows, jax.random.key(1))
    assert output is None and report.counts() == {"role": 1, "made": 269}
    direct, long = predict_vocabulary(network, rows, target, batch=100)
    assert_close(made[1:], direct.input[1:])
    assert (made[0] == rows.input[0]).all()  # the special token
    kept, _, report = hypernetwork(network, copy_shared=True)(
        target, rows, jax.random.key(1)
    )
    assert report.counts() == {"role": 1, "copied": 269}
    assert (kept == rows.input[:270]).all() and not long.any()


def test_another_vocabulary_is_refused():
    network = init_hypernetwork(SMALL, jax.random.key(0), vocabulary=tiny_vocabulary())
    other = Rows(jnp.ones((280, 32)), None, tiny_vocabulary(270))
    with pytest.raises(VocabMismatchError, match="it was trained for"):
        predict_vocabulary(network, other, tiny_vocabulary())
    untied = Rows(jnp.ones((280, 32)), jnp.ones((280, 32)), tiny_vocabulary())
    with pytest.raises(ArgumentError, match="the network is tied"):
        hypernetwork(network)(tiny_vocabulary(), untied, jax.random.key(0))
    small = dataclasses.replace(SMALL, source_size=9)
    lone = init_hypernetwork(small, jax.random.key(0))
    with pytest.raises(VocabMismatchError, match="those of the network"):
        predict_vocabulary(lone, Rows(jnp.ones((11, 32)), None, unigram()), unigram())


def bad_language(language):
    network, _, source = golden_network("tied")
    inspect.unwrap(predict_rows)(network, source, jnp.ones((1, 2), jnp.int32),
                                 language=language)  # fmt: skip


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bad_language(3), "language: got 3"),
        (lambda: bad_language(None), "language: got None"),
        (lambda: bad_language("en"), "language: got 'en'"),
        (
            lambda: predict_rows(*golden_network("untied")[::2],
                                 jnp.ones((1, 2), jnp.int32), language=0),
            "it has no languages",
        ),
        (
            lambda: predict_rows(golden_network("untied")[0], jnp.ones((50, 16)),
                                 jnp.ones((1, 2), jnp.int32)),
            "input and output rows",
        ),
        (
            lambda: predict_rows(golden_network("untied")[0], jnp.ones((49, 32)),
                                 jnp.ones((1, 2), jnp.int32)),
            "50 rows or more",
        ),
        (
            lambda: predict_rows(*golden_network("untied")[::2],
                                 jnp.ones((1, 17), jnp.int32)),
            "1 to 16 pieces",
        ),
        (lambda: dataclasses.replace(SMALL, maxlen=0), "maxlen: got 0"),
        (lambda: dataclasses.replace(SMALL, pad_id=None), "pad_id: got None"),
        (lambda: dataclasses.replace(SMALL, heads=3), "heads: got 3"),
        (lambda: init_hypernetwork(SMALL, jax.random.key(0), languages=("en",)),
         "languages"),
        (lambda: source_rows(tiny_model(), dataclasses.replace(SMALL, row_width=8)),
         "source: got"),
        (lambda: PieceMixerConfig(row_width=4, hidden=4, intermediate=4, kinds=3),
         "kinds: got 3"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
