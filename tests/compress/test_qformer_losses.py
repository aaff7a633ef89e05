"""The Q-Former's three objectives: by hand, and learning from them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtok.compress import (
    ImageTexts,
    caption_loss,
    contrast_loss,
    match_loss,
    qformer_losses,
)
from jtok.compress.qformer_losses import _others
from jtok.errors import ArgumentError
from jtok.nn import QFormer, QFormerConfig, QFormerHeads, init_qformer
from jtok.testing import assert_close

KEY = jax.random.key(0)
CONFIG = QFormerConfig(
    queries=2, width=8, layers=1, heads=2, mlp_width=12, image_width=5, vocab_size=9,
    max_positions=6, dropout=0.1,
)  # fmt: skip
FIRST = 8


@pytest.fixture(scope="module")
def params():
    fresh = jax.jit(lambda key: init_qformer(key, CONFIG, embed_width=4))(KEY)
    return jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 1 else leaf, fresh)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(1, 8, (4, 5)), jnp.int32)
    return ImageTexts(
        jnp.asarray(rng.normal(size=(4, 3, 5)), jnp.float32), ids,
        valid=jnp.ones((4, 3), bool).at[1, 2].set(False),
        text_valid=jnp.arange(5)[None] < jnp.asarray([[5], [4], [5], [3]]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(params, batch):
    """The outputs that the losses read, and the losses, each compiled once."""
    run = QFormer(CONFIG).apply

    @jax.jit
    def everything(params, batch):
        own = {"params": params["qformer"]}
        image = run(own, batch.image, valid=batch.valid).queries
        text = run(own, ids=batch.ids, text_valid=batch.text_valid).text
        ids = batch.ids.at[:, 0].set(FIRST)
        caption = run(
            own, batch.image, valid=batch.valid, ids=ids,
            text_valid=batch.text_valid, sees="causal",
        ).text  # fmt: skip
        hidden, bias = QFormerHeads(CONFIG, 4).apply(
            {"params": params["heads"]}, caption, method="predict"
        )
        sharp, near = contrast_loss(params, CONFIG, batch, smoothing=0.0)
        soft, _ = contrast_loss(params, CONFIG, batch)
        said = [
            caption_loss(params, CONFIG, batch, first_id=FIRST, smoothing=s)
            for s in (0.0, 0.1)
        ]
        logits = hidden @ params["qformer"]["words"].T + bias[None, None]
        return image, text, ids, logits, sharp, soft, near, said

    return everything(params, batch)


def cross_entropy(logits, targets, smoothing):
    """With the target spread as the field does it."""
    log_probs = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    own = np.take_along_axis(log_probs, np.asarray(targets)[..., None], -1)[..., 0]
    return -(1 - smoothing) * own - smoothing * log_probs.mean(-1)


def test_contrast_is_that_of_numpy(params, found):
    image, text, _, _, sharp, soft, near, _ = found
    heads = jax.tree.map(np.asarray, params["heads"])
    unit = lambda y: y / np.linalg.norm(y, axis=-1, keepdims=True)
    left = unit(np.asarray(image) @ heads["image"]["kernel"] + heads["image"]["bias"])
    right = unit(
        np.asarray(text)[:, 0] @ heads["text"]["kernel"] + heads["text"]["bias"]
    )
    want = np.einsum("iqd,td->itq", left, right).max(-1) / 0.07
    assert_close(near, want, atol=1e-4)
    for smoothing, loss in ((0.0, sharp), (0.1, soft)):
        each = [cross_entropy(m, np.arange(4), smoothing) for m in (want, want.T)]
        assert_close(loss, np.mean(each, dtype=np.float32), atol=1e-4)


def test_captions_are_those_of_all_logits(batch, found):
    _, _, ids, logits, _, _, _, said = found
    mask = np.asarray(batch.text_valid)[:, 1:]
    for smoothing, loss in zip((0.0, 0.1), said, strict=True):
        each = cross_entropy(logits[:, :-1], ids[:, 1:], smoothing)
        assert_close(loss, each[mask].mean(dtype=np.float32), atol=1e-5)


def test_others_are_never_oneself_and_likelier_where_similar():
    near = jnp.asarray([[9.0, 5.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    keys = jax.random.split(KEY, 400)
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: _others(k, near)))(keys))
    assert (drawn != np.arange(3)).all()
    share = (drawn[:, 0] == 1).mean()
    # exp(5) against exp(0), each with 1e-4 more: .98 of the draws; 400 of them.
    assert 0.95 < share < 1.0 and 0.3 < (drawn[:, 1] == 0).mean() < 0.7


def test_matching_reads_pairs_and_what_was_put_together(params, batch, found):
    near = found[6]
    run = jax.jit(
        lambda params, near, key: match_loss(params, CONFIG, batch, near, key=key)
    )
    loss, right = run(params, near, KEY)
    assert np.isfinite(loss) and 0 <= right <= 1
    # A head that always says "no match" is right in two of three.
    blind = jax.tree.map(jnp.zeros_like, params["heads"]["match"])
    blind["bias"] = jnp.asarray([3.0, -3.0])
    heads = {**params["heads"], "match": blind}
    loss, right = run({**params, "heads": heads}, near, KEY)
    assert float(right) == pytest.approx(2 / 3)
    want = (2 * np.log1p(np.exp(-6)) + np.log1p(np.exp(6))) / 3
    assert float(loss) == pytest.approx(want, rel=1e-5)


@pytest.mark.slow
def test_all_three_are_learnt(params, batch):
    optimizer = optax.adam(0.01)

    def loss(params, key):
        return qformer_losses(params, CONFIG, batch, first_id=FIRST, key=key)

    @jax.jit
    def fit(params, key):
        def step(carry, key):
            params, state = carry
            (_, parts), grad = jax.value_and_grad(loss, has_aux=True)(params, key)
            change, state = optimizer.update(grad, state)
            sizes = jax.tree.map(lambda g: jnp.abs(g).max(), grad)
            return (optax.apply_updates(params, change), state), (parts, sizes)

        start = params, optimizer.init(params)
        return jax.lax.scan(step, start, jax.random.split(key, 300))[1]

    parts, sizes = fit(params, KEY)
    # Rows of the table of places beyond the text are the only idle ones.
    assert all(float(leaf.max()) > 0 for leaf in jax.tree.leaves(sizes))
    for name in ("contrast", "match", "caption"):
        assert parts[name][-10:].mean() < 0.75 * parts[name][:10].mean(), name
    assert parts["matched"][-10:].mean() > 0.8


def test_dropout_draws(params, batch):
    run = jax.jit(lambda key: contrast_loss(params, CONFIG, batch, key=key)[0])
    assert abs(float(run(KEY) - run(jax.random.key(1)))) > 1e-4


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda p, b: contrast_loss(p, CONFIG, b, smoothing=1.5), "smoothing: got 1.5"),
        (lambda p, b: caption_loss(p, CONFIG, b, first_id=9), "first_id: got 9"),
        (
            lambda p, b: caption_loss(
                p, CONFIG, b._replace(ids=b.ids[:, :1], text_valid=None), first_id=1
            ),
            "batch: got 'texts of 1 word'",
        ),
        (
            lambda p, b: match_loss(p, CONFIG, b, jnp.zeros((3, 3)), key=KEY),
            "near: got 'shape",
        ),
        (
            lambda p, b: match_loss(
                p, CONFIG, jax.tree.map(lambda y: y[:1], b), jnp.zeros((1, 1)), key=KEY
            ),
            "batch: got '1 pair'",
        ),
    ],
)
def test_bad_input_is_refused(params, batch, call, said):
    with pytest.raises(ArgumentError, match=said):
        jax.eval_shape(call, params, batch)
