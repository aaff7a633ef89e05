"""The Q-Former: the golden, masks, what text sees, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import ArgumentError, CheckpointError
from jtok.nn import QFormer, QFormerConfig, init_qformer, qformer_from_tensors
from jtok.testing import assert_close, load_golden

KEY = jax.random.key(0)
CONFIG = QFormerConfig(
    queries=3, width=8, layers=2, heads=2, mlp_width=12, image_width=5, vocab_size=11,
    max_positions=6,
)  # fmt: skip


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def golden():
    file = load_golden("token_compression_survey/qformer_a.npz")
    tensors = {n.removeprefix("w."): file[n] for n in file if n.startswith("w.")}
    return file, tensors


@pytest.fixture(scope="module")
def read(golden):
    file, tensors = golden
    config, params, tops = qformer_from_tensors(tensors, heads=int(file["cfg"][2]))
    assert tops == {}
    run = jax.jit(
        lambda queries, image, valid: QFormer(config).apply(
            {"params": params}, image, valid=valid, queries=queries
        )
    )
    return config, run


@pytest.fixture(scope="module")
def model():
    """Parameters larger than fresh ones, and compiled calls."""
    fresh = jax.jit(lambda key: init_qformer(key, CONFIG, embed_width=4))(KEY)
    params = jax.tree.map(lambda leaf: leaf * 12 if leaf.ndim > 1 else leaf, fresh)
    params = params["qformer"]
    apply = QFormer(CONFIG).apply
    both = jax.jit(
        lambda image, ids, valid, text_valid: apply(
            {"params": params}, image, valid=valid, ids=ids, text_valid=text_valid
        )
    )
    causal = jax.jit(
        lambda image, ids: apply({"params": params}, image, ids=ids, sees="causal")
    )
    alone = jax.jit(lambda image: apply({"params": params}, image))
    text = jax.jit(lambda ids: apply({"params": params}, ids=ids))
    return both, causal, alone, text, params


def test_outputs_of_transformers(golden, read):
    file, _ = golden
    config, run = read
    width, layers, heads, inner, image_width, every = file["cfg"].tolist()
    assert (config.width, config.layers, config.heads) == (width, layers, heads)
    assert (config.mlp_width, config.image_width) == (inner, image_width)
    assert config.cross_every == every
    queries, image = jnp.asarray(file["query"]), jnp.asarray(file["image"])
    mask = jnp.asarray(file["image_mask"]).astype(bool)
    got = run(queries, image, jnp.ones_like(mask))
    assert_close(got.queries, file["out"], atol=1e-5)  # stated with the goldens
    masked = run(queries, image, mask)
    assert_close(masked.queries, file["out_masked"], atol=1e-5)
    assert got.text is None
    assert_close(masked.seen.sum(-1), np.ones(masked.seen.shape[:2]), atol=1e-6)
    assert float(jnp.abs(jnp.where(mask[:, None], 0, masked.seen)).max()) == 0


def test_a_mask_removes_tokens_and_their_order_is_free(read):
    config, run = read
    queries, image = noise(0, 1, 4, config.width), noise(1, 2, 9, config.image_width)
    valid = jnp.ones((2, 9), bool)
    got = run(queries, image, valid).queries
    turn = np.random.default_rng(2).permutation(9)
    assert_close(run(queries, image[:, turn], valid).queries, got, atol=1e-5)
    few = run(queries, image.at[:, 6:].set(jnp.nan), valid.at[:, 6:].set(False))
    want = run(queries, image[:, :6], valid[:, :6])
    assert_close(few.queries, want.queries, atol=1e-5)
    assert_close(few.seen[:, :, :6], want.seen, atol=1e-6)
    # An image of padding alone is finite, and one like another.
    none = valid.at[1].set(False)
    first, second = run(queries, image, none), run(queries, image + 3.0, none)
    assert np.isfinite(first.queries).all()
    np.testing.assert_array_equal(first.queries[1], second.queries[1])


def test_who_sees_whom(model):
    both, causal, alone, text, _ = model
    image, valid = noise(3, 2, 4, 5), jnp.ones((2, 4), bool)
    ids = jnp.asarray([[1, 4, 2, 7], [3, 3, 9, 0]])
    later = ids.at[:, 3].set(5)
    real = jnp.ones(ids.shape, bool)
    free = alone(image)
    assert free.text is None
    # Words see no later ones, queries see no words.
    first, second = causal(image, ids), causal(image, later)
    assert_close(first.queries, free.queries, atol=1e-6)
    assert_close(first.text[:, :3], second.text[:, :3], atol=1e-6)
    assert np.abs(first.text[:, 3] - second.text[:, 3]).max() > 1e-3
    assert np.abs(causal(image + 1.0, ids).text - first.text).max() > 1e-3
    # Together all see all.
    first, second = both(image, ids, valid, real), both(image, later, valid, real)
    assert np.abs(first.queries - free.queries).max() > 1e-3
    assert np.abs(first.text[:, :3] - second.text[:, :3]).max() > 1e-4
    # A text alone sees itself, both ways, and no image.
    first, second = text(ids), text(later)
    assert first.queries is None and first.seen is None
    assert np.abs(first.text[:, 0] - second.text[:, 0]).max() > 1e-4


def test_padding_of_a_text_changes_nothing(model):
    both = model[0]
    image, valid = noise(4, 2, 4, 5), jnp.ones((2, 4), bool)
    ids = jnp.asarray([[1, 4, 2, 7], [3, 3, 9, 0]])
    short = both(image, ids[:, :3], valid, jnp.ones((2, 3), bool))
    cut = jnp.asarray([[True, True, True, False]] * 2)
    for last in (7, 1):
        wide = both(image, ids.at[:, 3].set(last), valid, cut)
        assert_close(wide.queries, short.queries, atol=1e-5)
        assert_close(wide.text[:, :3], short.text, atol=1e-5)


def test_gradients_reach_every_parameter(model):
    params, image = model[-1], noise(7, 2, 4, 5)
    ids = jnp.asarray([[1, 4, 2, 7], [3, 3, 9, 0]])

    def loss(params):
        out = QFormer(CONFIG).apply({"params": params}, image, ids=ids)
        weigh = lambda y: jnp.sum(y**2 * noise(8, *y.shape))
        return weigh(out.queries) + weigh(out.text)

    grads = jax.jit(jax.grad(loss))(params)
    # No text here has more than four words; a key's bias moves no softmax.
    assert float(jnp.abs(grads["places"][4:]).max()) == 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert float(jnp.abs(leaf).max()) > 1e-7 or "'key']['bias'" in name, name


def test_narrow_images_come_out_narrow(model):
    image = noise(5, 2, 4, 5)
    got = model[2](image.astype(jnp.bfloat16)).queries
    want = model[2](image).queries
    assert got.dtype == jnp.bfloat16
    assert np.abs(got - want).mean() < 0.1 * np.abs(want).mean()


def test_dropout_wants_a_key(model):
    config = dataclasses.replace(CONFIG, dropout=0.5)
    params = model[-1]
    image, module = noise(6, 1, 4, 5), QFormer(config)
    noisy = lambda key: module.apply(
        {"params": params}, image, deterministic=False, rngs={"dropout": key}
    )
    run = jax.jit(lambda key: noisy(key).queries)
    first, second = run(jax.random.key(1)), run(jax.random.key(2))
    np.testing.assert_array_equal(first, run(jax.random.key(1)))
    assert np.abs(first - second).max() > 0.1


def test_text_and_heads_are_read_by_name(golden):
    _, tensors = golden
    file, _ = golden
    full = {f"qformer.{name}": leaf for name, leaf in tensors.items()}
    for index in range(3):
        root = f"qformer.encoder.layer.{index}"
        for name in [n for n in full if n.startswith(root) and "_query" in n]:
            full[name.replace("_query", "")] = 2 * full[name]
    full["query_tokens"] = file["query"]
    full["embeddings.word_embeddings.weight"] = np.ones((7, 16), np.float32)
    full["embeddings.position_embeddings.weight"] = np.ones((5, 16), np.float32)
    full["embeddings.position_ids"] = np.arange(5)[None]
    full["itm_head.weight"] = np.ones((2, 16), np.float32)
    full["itm_head.bias"] = np.ones(2, np.float32)
    config, params, tops = qformer_from_tensors(full, heads=2)
    assert (config.queries, config.vocab_size, config.max_positions) == (4, 7, 5)
    assert tops["match"]["kernel"].shape == (16, 2)
    own = params["layer_1"]
    up = own["query_mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(own["text_mlp"]["up"]["kernel"], 2 * up)
    init = lambda key: init_qformer(key, config)["qformer"]
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(jax.eval_shape(init, KEY)) == shapes(params)


def test_damaged_weights_are_refused(golden):
    _, tensors = golden
    gone = "2.output_query.dense.bias"
    less = {n: t for n, t in tensors.items() if not n.endswith(gone)}
    with pytest.raises(CheckpointError, match=f"{gone} is missing"):
        qformer_from_tensors(less, heads=2)
    with pytest.raises(CheckpointError, match="no place for spare"):
        qformer_from_tensors({**tensors, "spare": tensors["layernorm.bias"]}, heads=2)
    odd = {n: t for n, t in tensors.items() if "0.crossattention" not in n}
    with pytest.raises(CheckpointError, match="read the image"):
        qformer_from_tensors(odd, heads=2)
    with pytest.raises(ArgumentError, match="heads: got 3"):
        qformer_from_tensors(tensors, heads=3)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda run: run(None), "image, ids: got None"),
        (lambda run: run(jnp.ones((1, 4, 6))), "image: got 'shape"),
        (lambda run: run(None, ids=jnp.zeros((1, 7), jnp.int32)), "ids: got '7 words'"),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    run = lambda *args, **kwargs: jax.eval_shape(
        lambda: QFormer(CONFIG).init(KEY, *args, **kwargs)
    )
    with pytest.raises(ArgumentError, match=said):
        call(run)


def test_a_text_wants_a_vocabulary():
    config = dataclasses.replace(CONFIG, vocab_size=0)
    with pytest.raises(ArgumentError, match="there is no vocabulary"):
        QFormer(config).init(KEY, ids=jnp.zeros((1, 3), jnp.int32))
    for change in ({"heads": 3}, {"dropout": 1.0}, {"vocab_size": -1}, {"queries": 0}):
        with pytest.raises(ArgumentError, match=next(iter(change))):
            dataclasses.replace(CONFIG, **change)
