"""Both phases of the training of a network, on a tiny frozen model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtok.embed import (
    HypernetworkConfig,
    fit_rescalers,
    identity_error,
    identity_loss,
    init_hypernetwork,
    join_network,
    network_optimizer,
    predict_rows,
    sampled_batch,
    split_network,
    transfer_loss,
)
from jtok.embed.hypernetwork_training import with_specials
from jtok.errors import ArgumentError
from jtok.testing import tiny_model, tiny_vocabulary
from jtok.text import PieceQueue, byte_tokenizer, sample_vocabulary
from jtok.train import fit

VOCABULARY = tiny_vocabulary(258)
BASE = byte_tokenizer(VOCABULARY)
MODEL = tiny_model(vocab_size=258, family="gpt2")
SOURCE = MODEL.params["embed"]["tokens"]
KEY = jax.random.key(9)
CONFIG = HypernetworkConfig(
    row_width=32, source_size=258, pad_id=0, hidden=32, intermediate=32, heads=2,
    maxlen=3, layers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def network():
    forms = np.zeros((258, 3), np.int32)
    forms[:, 0] = np.arange(258)
    fresh = init_hypernetwork(CONFIG, jax.random.key(0))
    return fit_rescalers(fresh, SOURCE, forms)


@pytest.fixture(scope="module")
def batch():
    queue = PieceQueue(BASE, stride=1)
    texts = ["the cat sat on the mat, the hat", "a cat, a hat"]
    queue.add(texts)
    drawn = sample_vocabulary(queue.scores(), BASE, size=300, rng=0)
    made = sampled_batch(drawn, BASE, texts, length=12, maxlen=3, pad_id=0)
    return {name: jnp.asarray(value) for name, value in made.items()}


@pytest.fixture(scope="module")
def parts(network):
    return split_network(network, SOURCE, MODEL)


def test_the_first_phase_learns_the_rows_themselves(network):
    loss = identity_loss(network)
    trainable, frozen = split_network(network, SOURCE)
    rng = np.random.default_rng(0)
    data = lambda step: {"ids": rng.integers(0, 258, 64).astype(np.int32)}
    found = fit(
        loss, trainable, frozen=frozen, optimizer=network_optimizer(3e-3), data=data,
        steps=60, key=jax.random.key(1), progress=False,
    )  # fmt: skip
    losses = found.metrics["loss"]
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()
    trained = join_network(network, found.trainable, frozen)
    for name in ("in_scaler", "scaler"):
        same = trained.params[name]["w"] == network.params[name]["w"]
        assert same.all()  # rescalers never train


def numpy_nats(network, batch, compat):
    """The loss of the second phase, with all logits at once."""
    made = predict_rows(network, SOURCE, batch["forms"])
    rows, out, bias = with_specials(made, MODEL, batch["special"])
    vectors = rows[batch["tokens"]]
    hidden = MODEL(vectors, mask=batch["mask"], logits="none").hidden
    logits = np.asarray(hidden @ out.T + bias[None, None])
    batch = {name: np.asarray(value) for name, value in batch.items()}
    real = batch["used"] | (batch["special"] >= 0)
    logits = logits + np.where(real, 0.0, -1e5)[None, None]
    log_probs = logits - np.asarray(jax.nn.logsumexp(logits, axis=-1))[..., None]
    mask = batch["mask"]
    counts = mask[:, :-1] if compat else mask[:, :-1] & mask[:, 1:]
    nats = -np.take_along_axis(log_probs[:, :-1], batch["tokens"][:, 1:, None], axis=2)
    return (nats[..., 0] * counts).sum() / counts.sum()


@pytest.mark.parametrize("compat", [None, "official"])
def test_the_second_phase_is_cross_entropy_under_the_sampled_tokenizer(
    network, parts, batch, compat
):
    loss = jax.jit(transfer_loss(network, MODEL, chunk=100, compat=compat))
    total, (metrics, _) = loss(*parts, None, batch, KEY)
    expected = numpy_nats(network, batch, compat)
    assert float(metrics["nats"]) == pytest.approx(expected, rel=1e-4)
    both = metrics["nats"] + 0.5 * metrics["lexical"]
    assert float(total) == pytest.approx(float(both), rel=1e-6)


def test_specials_keep_their_rows_and_unused_ids_are_never_expected(network, batch):
    made = predict_rows(network, SOURCE, batch["forms"])
    rows, out, _ = with_specials(made, MODEL, batch["special"])
    assert batch["special"][0] == 0 and (rows[0] == SOURCE[0]).all()
    assert (out[0] == SOURCE[0]).all()
    assert not (rows[1] == SOURCE[1]).all()


def test_gradients_reach_the_network_and_leave_the_model(network, parts, batch):
    loss = transfer_loss(network, MODEL, chunk=100)
    gradient = jax.jit(jax.grad(lambda t: loss(t, parts[1], None, batch, KEY)[0]))
    sizes = jax.tree.map(jnp.linalg.norm, gradient(parts[0]))
    flat = {jax.tree_util.keystr(k): float(v)
            for k, v in jax.tree_util.tree_leaves_with_path(sizes)}  # fmt: skip
    # A shift of all keys of a query moves no softmax.
    still = [k for k, v in flat.items() if v < 1e-9 and "key']['bias" not in k]
    assert not still


def test_masked_targets_take_the_place_of_the_next_token(network, parts, batch):
    labels = np.full(batch["tokens"].shape, -1, np.int32)
    labels[0, 3] = batch["tokens"][0, 4]
    loss = jax.jit(transfer_loss(network, MODEL))
    _, (metrics, _) = loss(*parts, None, {**batch, "labels": labels}, KEY)
    assert int(metrics["tokens"]) == 1 and np.isfinite(metrics["nats"])


def test_a_prediction_that_is_the_source_has_no_identity_error(network):
    ids = jnp.arange(5)
    made = predict_rows(network, SOURCE, ids[:, None])._replace(input=SOURCE[:5])
    assert float(identity_error(made, SOURCE, ids)) == 0.0


def test_the_official_run_trains_the_rescaler_of_the_output_rows():
    config = HypernetworkConfig(
        row_width=4, source_size=8, pad_id=0, hidden=8, intermediate=8, heads=2,
        tied=False, layers=1,
    )  # fmt: skip
    network = init_hypernetwork(config, jax.random.key(0))
    source = jnp.ones((8, 8))
    assert "out_scaler" not in split_network(network, source)[0]
    assert "out_scaler" in split_network(network, source, compat="official")[0]


def test_the_optimizer_clips_and_decays_matrices_alone():
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    optimizer = network_optimizer(1.0)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert (updates["dense"]["kernel"] == -0.01).all()
    assert (updates["dense"]["bias"] == 0).all()
    big = jax.tree.map(lambda x: 1e3 * x, params)
    state = optimizer.update(big, optimizer.init(params), params)[1]
    first = optax.tree_utils.tree_get(state, "mu")
    assert float(optax.tree.norm(first)) == pytest.approx(0.1 * 0.1, rel=1e-4)


def test_bad_input(network, batch):
    with pytest.raises(ArgumentError, match="lexical: got -1"):
        transfer_loss(network, MODEL, lexical=-1.0)
    drawn = sample_vocabulary({}, BASE, size=300)
    with pytest.raises(ArgumentError, match="texts: got 0"):
        sampled_batch(drawn, BASE, [], length=4, maxlen=2, pad_id=0)
    with pytest.raises(ArgumentError, match="source: got"):
        split_network(network, SOURCE[:10])
