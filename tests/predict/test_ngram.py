"""The encoder with fine queries, its losses, and what is left of it afterwards."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import models, train
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError
from jtok.models import Segments
from jtok.ops import Draw, cross_entropy, gumbel_at, row_keys
from jtok.ops.sharding import mesh_from
from jtok.predict import (
    GramLayout,
    coarse_rows,
    encode_grams,
    encode_with_queries,
    fill_masks,
    generator_of,
    gram_batches,
    gram_config,
    gram_features,
    gram_loss,
    gram_losses,
    init_grams,
    plain_encoder,
    read_grams,
    replaced_nats,
    sample_grams,
    unit_nats,
)
from jtok.testing import assert_close, tiny_grams, tiny_model
from jtok.text import Lexicon

KEY = jax.random.key(0)
ENCODE = jax.jit(encode_grams, static_argnames="fine")
READ = jax.jit(read_grams, static_argnames="objective")
LOSSES = jax.jit(gram_losses, static_argnames=("objective", "chunk"))


@pytest.fixture(scope="module", params=("bert", "ernie"))
def pair(request):
    return tiny_grams(family=request.param)


@pytest.fixture(scope="module")
def full():
    """With a generator that has tables of its own."""
    return tiny_grams(family="ernie", generator_layers=1, tied=False)


def valid(values, mask):
    return np.asarray(values)[np.asarray(mask)]


# Fine queries ------------------------


def test_queries_equal_the_masked_form(pair):
    model, batch = pair
    found = ENCODE(model, batch)
    params, sizes = model.params, model.config.encoder
    left, fine = batch.left_mask.shape[1], batch.fine_mask.shape[1]
    plain = plain_encoder(model)
    rows = jnp.concatenate(
        [params["table"][batch.left_ids], params["queries"][batch.fine_slots]], axis=1
    )
    types = np.take_along_axis(batch.left_types, batch.fine_places, axis=1)
    types = jnp.asarray(np.concatenate([batch.left_types, types], axis=1))
    positions = np.broadcast_to(np.arange(left), batch.left_mask.shape)
    positions = jnp.asarray(np.concatenate([positions, batch.fine_places], axis=1))
    allow = np.zeros((2, left + fine, left + fine), bool)
    allow[:, :, :left] = batch.left_mask[:, None]
    allow[:, left:, left:] = np.eye(fine, dtype=bool)
    mask = jnp.asarray(allow)

    @jax.jit
    def run(model, rows, positions):
        inputs = Segments(rows, types, None, positions)
        return model(inputs, mask=mask, positions=positions, logits="none").hidden

    want = run(plain, rows, positions)
    real = [batch.left_mask, batch.fine_mask]
    for got, part, mask in zip(found, (want[:, :left], want[:, left:]), real):
        assert_close(valid(got, mask), valid(part, mask))
    assert sizes.relative == plain.config.relative


def test_the_left_part_does_not_see_them_nor_they_each_other(pair):
    model, batch = pair
    with_them, alone = ENCODE(model, batch), ENCODE(model, batch, fine=False)
    assert alone.fine is None
    assert_close(with_them.left, alone.left, atol=1e-6)
    order = np.arange(batch.fine_mask.shape[1])[::-1]
    turned = batch._replace(
        fine_places=batch.fine_places[:, order], fine_slots=batch.fine_slots[:, order]
    )
    assert_close(ENCODE(model, turned).fine, with_them.fine[:, order], atol=1e-6)
    slots = batch.fine_slots.copy()
    slots[:, 1:] = 2 - slots[:, 1:]
    other = ENCODE(model, batch._replace(fine_slots=slots))
    assert_close(other.fine[:, 0], with_them.fine[:, 0], atol=1e-6)
    assert float(jnp.abs(other.fine[:, 1] - with_them.fine[:, 1]).max()) > 1e-3


def test_padding_changes_nothing(pair):
    model, batch = pair
    size = int(batch.left_mask.sum(1).max()) + 1
    short = batch._replace(
        **{f: getattr(batch, f)[:, :size] for f in batch._fields if f[:5] == "left_"}
    )
    junk = np.where(batch.left_mask, batch.left_ids, 50)
    found, less = ENCODE(model, batch), ENCODE(model, short)
    more = ENCODE(model, batch._replace(left_ids=junk))
    for other in (less, more):
        got, want = other.left[:, :size], found.left[:, :size]
        mask = batch.left_mask[:, :size]
        assert_close(valid(got, mask), valid(want, mask))
        mask = batch.fine_mask
        assert_close(valid(other.fine, mask), valid(found.fine, mask))


def test_stacked_layers_give_the_same_and_the_same_gradients(full):
    model, batch = full
    loss = gram_loss(model)

    def stacked(params):
        encoder = models.stack_layers(params["encoder"])
        small = models.stack_layers(params["generator"]["encoder"])
        own = {**params["generator"], "encoder": small}
        return {**params, "encoder": encoder, "generator": own}

    grad = jax.jit(lambda params: jax.value_and_grad(
        lambda p: loss(p, None, None, batch, KEY)[0])(params))  # fmt: skip
    value, by_layer = grad(model.params)
    again, whole = grad(stacked(model.params))
    assert_close(value, again)
    jax.tree.map(functools.partial(assert_close, atol=1e-4), stacked(by_layer), whole)
    assert all(
        float(jnp.abs(x).max()) > 0 for x in (by_layer["queries"], whole["table"])
    )


# Losses ------------------------


def test_losses_of_the_golden(golden):
    file = golden("ernie_gram/comprehensive.npz")
    for name in ("coarse", "fine"):
        logits, targets = file[f"logits_{name}"], file[f"{name}_target"]
        nats = cross_entropy(
            jnp.asarray(logits), jnp.eye(logits.shape[-1]), jnp.asarray(targets),
            mask=jnp.asarray(targets >= 0),
        )  # fmt: skip
        assert_close(float(nats.sum()), float(file[f"loss_{name}_sum"]), rtol=1e-6)
        assert (targets >= 0).sum() == file[f"loss_{name}_n"]
    labels = file["rtd_label"]
    nats = np.asarray(
        replaced_nats(jnp.asarray(file["logits_rtd"]), jnp.asarray(labels == 1))
    )
    assert_close(float(nats[labels >= 0].sum()), float(file["loss_rtd_sum"]), rtol=1e-6)
    assert (labels >= 0).sum() == file["loss_rtd_n"]


def test_a_loss_is_what_its_parts_say(full):
    model, batch = full
    found = LOSSES(model, batch, objective="comprehensive", key=KEY)
    assert set(found.sums) == {"coarse", "fine", "generator", "replaced"}
    counts = {"coarse": batch.gram_mask, "fine": batch.fine_mask}
    counts |= {"generator": batch.gram_mask, "replaced": batch.left_mask}
    for name, mask in counts.items():
        assert int(found.counts[name]) == mask.sum()
    state = KEY
    run = lambda **options: jax.jit(gram_loss(model, **options))(
        model.params, None, state, batch, KEY
    )
    loss, (metrics, kept) = run()
    units = batch.gram_mask.sum()
    assert_close(float(loss), float(sum(found.sums.values())) / units)
    assert kept is not None and int(metrics["tokens"]) == batch.left_mask.sum()
    for name in counts:
        assert_close(metrics[f"{name}_nats"], found.means[name])
    own, _ = run(per="own", weights={"replaced": 50.0, "generator": 0.0})
    means = found.means
    assert_close(
        float(own), float(means["coarse"] + means["fine"] + 50 * means["replaced"])
    )


def test_without_ngrams_all_objectives_are_masked_lm():
    base = tiny_model(family="bert")
    lexicon = Lexicon.of([], vocab_size=base.config.vocab_size)
    model = init_grams(gram_config(base, lexicon), KEY)
    model = model.replace(params={**model.params, "fine": model.params["coarse"]})
    layout = GramLayout(
        cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=16, fine=8, grams=6, rate=0.4
    )
    texts = [np.arange(4, 14), np.arange(30, 38)]
    make = functools.partial(gram_batches, texts, lexicon, layout, batch_size=2, seed=0)
    batch, spread = make()[0], make(contiguous=True)[0]
    jax.tree.map(np.testing.assert_array_equal, batch, spread)
    explicit = LOSSES(model, batch, objective="explicit").sums["coarse"]
    contiguous = LOSSES(model, spread, objective="contiguous").sums["fine"]
    assert_close(float(explicit), float(contiguous))
    both = LOSSES(model, batch, objective="comprehensive")
    assert_close(float(both.sums["coarse"]), float(explicit))
    assert both.counts["fine"] == both.counts["coarse"]


def test_nothing_chosen_is_no_loss_and_no_nan(full):
    model, batch = full
    empty = batch._replace(
        gram_mask=np.zeros_like(batch.gram_mask),
        fine_mask=np.zeros_like(batch.fine_mask),
    )
    run = jax.jit(jax.value_and_grad(gram_loss(model), has_aux=True))
    (loss, (metrics, _)), grads = run(model.params, None, None, empty, KEY)
    assert float(loss) == 0.0
    assert all(bool(jnp.isfinite(x)) for x in metrics.values())
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(grads))


def test_units_as_products_of_their_tokens():
    model, batch = tiny_grams(contiguous=True)
    reads = READ(model, batch, objective="contiguous")
    assert reads.coarse is None
    nats = np.asarray(reads.fine.cross_entropy)
    found = np.asarray(unit_nats(reads.fine.cross_entropy, batch))
    for row in range(2):
        for unit in range(batch.gram_mask[row].sum()):
            mine = batch.fine_mask[row] & (batch.fine_grams[row] == unit)
            assert_close(found[row, unit], nats[row][mine].sum())
    assert np.all(found[~batch.gram_mask] == 0)


def test_logits_of_all_classes_are_never_written():
    base = tiny_model(family="bert")
    lexicon = Lexicon.of(
        [(i // 90, i % 90) for i in range(8000)], vocab_size=base.config.vocab_size
    )
    config = gram_config(base, lexicon, rank=8, generator_layers=1)
    model = jax.eval_shape(lambda: init_grams(config, KEY))
    shape = lambda size: jax.ShapeDtypeStruct((64, size), jnp.int32)
    mask = lambda size: jax.ShapeDtypeStruct((64, size), bool)
    batch = type(tiny_grams()[1])(
        shape(16), shape(16), mask(16), *[shape(80)] * 2, mask(80), *[shape(8)] * 4,
        mask(8),
    )  # fmt: skip
    loss = gram_loss(model, "explicit")
    run = jax.jit(jax.grad(lambda *args: loss(*args)[0]))
    key = jax.eval_shape(lambda: KEY)
    used = run.lower(model.params, None, None, batch, key).compile().memory_analysis()
    assert used.temp_size_in_bytes < 4 * 64 * 80 * config.num_classes / 2


# Relation modelling ------------------------


def test_draws_are_gumbel_maxima_and_follow_the_softmax(golden):
    file = golden("ernie_gram/sampling.npz")
    logits, noise = jnp.asarray(file["gen_logits"]), jnp.asarray(file["gumbel"])
    batch, places, classes = logits.shape
    draw = Draw(
        keys=row_keys(jnp.arange(batch)), start=jnp.zeros(batch, jnp.int32),
        depth=jnp.zeros((batch, places), jnp.int32), temperature=jnp.ones(batch),
    )  # fmt: skip
    noised = draw.noised(draw.scaled(logits), noise)
    np.testing.assert_array_equal(jnp.argmax(noised, -1), file["sampled"])
    # Here the noise is that of a position of a row.
    rows, bias = jnp.eye(classes), jnp.linspace(-1, 1, classes)
    found = jax.jit(sample_grams)(logits, rows, bias, KEY)
    keys = row_keys(jax.random.bits(KEY, (batch,)))
    ids = jnp.broadcast_to(jnp.arange(classes), (batch, places, classes))
    at = jnp.broadcast_to(jnp.arange(places)[None], (batch, places))
    wanted = logits + bias[None, None] + gumbel_at(keys, at, ids)
    np.testing.assert_array_equal(found, jnp.argmax(wanted, -1))
    many = jnp.broadcast_to(logits[:1, :1], (500, 4, classes))
    drawn = jax.jit(sample_grams)(many, rows, jnp.zeros(classes), KEY)
    shares = np.bincount(np.asarray(drawn).ravel(), minlength=classes) / 2000
    probs = np.asarray(jax.nn.softmax(logits[0, 0]))
    assert np.abs(shares - probs).max() < 0.04  # 4 standard deviations


def test_labels_are_all_original_iff_the_draw_is_true():
    _, batch = tiny_grams()
    ids, original = fill_masks(batch, jnp.asarray(batch.gram_ids))
    assert bool(original.all())
    assert not np.any(np.asarray(ids)[batch.left_mask] == 2)
    wrong = np.where(np.arange(6) == 0, 99, batch.gram_ids)
    ids, original = fill_masks(batch, jnp.asarray(wrong))
    for row in range(2):
        place = batch.gram_places[row, 0]
        assert ids[row, place] == 99
        assert np.flatnonzero(~np.asarray(original[row])).tolist() == [place]


def test_the_main_model_sees_what_was_drawn_and_predicts_the_truth(full):
    model, batch = full
    found = LOSSES(model, batch, objective="comprehensive", key=KEY)
    small = generator_of(model)
    left = ENCODE(small, batch, fine=False).left
    hidden = jnp.take_along_axis(left, batch.gram_places[..., None], axis=1)
    features = gram_features(small.params["coarse"], small.config.encoder, hidden)
    drawn = jax.jit(sample_grams)(features, *coarse_rows(small), KEY)
    ids, original = fill_masks(batch, drawn)
    reads = jax.jit(read_grams)(model, batch, left_ids=ids)
    nats = jnp.where(batch.gram_mask, reads.coarse.cross_entropy, 0.0)
    assert_close(found.sums["coarse"], nats.sum())
    logits = reads.states.left @ model.params["replaced"]["kernel"]
    nats = jnp.where(batch.left_mask, replaced_nats(logits, original), 0.0)
    assert_close(found.sums["replaced"], nats.sum())


def test_no_gradient_goes_through_the_draw(full):
    model, batch = full
    loss = gram_loss(model, weights={"generator": 0.0})
    grads = jax.jit(jax.grad(lambda p: loss(p, None, None, batch, KEY)[0]))(
        model.params
    )
    for leaf in jax.tree.leaves(grads["generator"]):
        assert float(jnp.abs(leaf).max()) == 0.0
    assert float(jnp.abs(grads["replaced"]["kernel"]).max()) > 0


# Sizes, dtypes, devices ------------------------


@pytest.mark.parametrize("options", ({"rank": 8}, {"rank": 8, "tied": False}, {}))
def test_tables_narrow_or_shared(options):
    model, batch = tiny_grams(generator_layers=1, **options)
    rank = options.get("rank", 32)
    assert model.params["table"].shape == (100, rank)
    assert ("table" in model.params["generator"]) == (not options.get("tied", True))
    found = LOSSES(model, batch, objective="comprehensive", key=KEY)
    assert all(bool(jnp.isfinite(x)) for x in found.sums.values())
    ids = jnp.asarray(np.where(batch.left_ids == 2, 97, batch.left_ids))
    table = model.params["table"]
    table = table.at[97].add(jnp.arange(rank))
    changed = model.replace(params={**model.params, "table": table})
    here, there = (ENCODE(m, batch, left_ids=ids).left for m in (model, changed))
    assert float(jnp.abs(here - there).max()) > 1e-3  # n-grams are input rows, too


def test_bfloat16_keeps_losses_in_float32():
    model, batch = tiny_grams(sizes={"dtype": "bfloat16"})
    assert model.params["table"].dtype == jnp.bfloat16
    found = LOSSES(model, batch, objective="comprehensive")
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), model.params)
    encoder = dataclasses.replace(model.config.encoder, dtype="float32")
    config = dataclasses.replace(model.config, encoder=encoder)
    want = LOSSES(model.replace(params=wide, config=config), batch,
                  objective="comprehensive")  # fmt: skip
    for name, total in found.sums.items():
        assert total.dtype == jnp.float32
        assert_close(float(total), float(want.sums[name]), rtol=2e-2)


def test_on_a_mesh_as_without():
    model, batch = tiny_grams(rows=4, generator_layers=1)
    alone = LOSSES(model, batch, objective="comprehensive", key=KEY)
    with jax.set_mesh(mesh_from("data=4,model=2")):
        found = LOSSES(model, batch, objective="comprehensive", key=KEY)
    for name, total in alone.sums.items():
        assert_close(float(found.sums[name]), float(total), rtol=1e-4)


# From an encoder, and back to one ------------------------


@pytest.mark.medium
def test_training_goes_on_from_an_encoder_and_leaves_one(tmp_path):
    base = tiny_model(family="ernie", seed=3)
    lexicon = Lexicon.of([(5, 6), (7, 8, 9)], vocab_size=base.config.vocab_size)
    config = gram_config(base, lexicon, generator_layers=1)
    model = init_grams(config, KEY, model=base, lexicon=lexicon)
    tokens = base.params["embed"]["tokens"]
    assert_close(model.params["table"][97], tokens[7:10].mean(0))
    kept = plain_encoder(model)
    ids = jnp.array([[0, 5, 6, 1]])
    hidden = lambda model: model(ids, logits="none").hidden
    assert_close(hidden(kept), hidden(base))
    layout = GramLayout(
        cls_id=0, sep_id=1, mask_id=2, pad_id=3, left=16, fine=8, grams=6, rate=0.4
    )
    texts = [np.tile([5, 6, 7, 8, 9, 11], 2), np.tile([7, 8, 9, 12], 3)]
    data = gram_batches(texts, lexicon, layout, batch_size=4, seed=0)
    params = {**model.params, "encoder": models.stack_layers(model.params["encoder"])}
    out = train.fit(
        gram_loss(model), params, optimizer=train.adamw(3e-3), data=data, steps=30,
        key=KEY, progress=False,
    )  # fmt: skip
    losses = out.metrics["loss"]
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()
    trained = plain_encoder(model.replace(params=out.trainable))
    models.save(trained, tmp_path / "out")
    again = models.load(tmp_path / "out")
    assert again.config.vocab_size == base.config.vocab_size
    assert again.config.head is None and not again.config.pooler
    np.testing.assert_array_equal(hidden(again), hidden(trained))
    assert float(jnp.abs(hidden(trained) - hidden(base)).max()) > 1e-2


# Bad input ------------------------


def test_bad_input_is_refused():
    base = tiny_model(family="bert")
    lexicon = Lexicon.of([(5, 6)], vocab_size=base.config.vocab_size)
    for other in (Lexicon.of([(5, 6)], vocab_size=50),):
        with pytest.raises(VocabMismatchError, match="made with 50 ids"):
            gram_config(base, other)
    with pytest.raises(ArgumentTypeError, match="model: got a DecoderConfig"):
        gram_config(tiny_model(), lexicon)
    for family in ("modernbert", "t5"):
        with pytest.raises(ArgumentError, match=f"model: got .*{family}"):
            gram_config(tiny_model(family=family), lexicon)
    with pytest.raises(ArgumentError, match="generator_layers: got 3"):
        gram_config(base, lexicon, generator_layers=3)
    config = gram_config(base, lexicon)
    for field, value in (("lexicon_size", -1), ("longest", 1), ("rank", 0)):
        with pytest.raises(ArgumentError, match=f"{field}: got {value}"):
            dataclasses.replace(config, **{field: value})
    narrow = dataclasses.replace(config.encoder, width=16, num_heads=2)
    with pytest.raises(ArgumentError, match="generator: got 'a width of 16'"):
        dataclasses.replace(config, generator=narrow)
    assert dataclasses.replace(config, generator=narrow, tied=False).generator
    fewer = dataclasses.replace(config.encoder, vocab_size=50)
    with pytest.raises(ArgumentError, match="generator: got '50 tokens'"):
        dataclasses.replace(config, generator=fewer)
    with pytest.raises(ArgumentError, match="a bare one"):
        dataclasses.replace(
            config, encoder=dataclasses.replace(config.encoder, pooler=True)
        )
    with pytest.raises(ArgumentError, match="lexicon: got"):
        init_grams(config, KEY, lexicon=Lexicon.of([], vocab_size=96))
    with pytest.raises(ArgumentError, match="model: got 'num_layers=2'"):
        deep = dataclasses.replace(config.encoder, num_layers=3)
        init_grams(dataclasses.replace(config, encoder=deep), KEY, model=base)
    model, batch = tiny_grams(generator_layers=1)
    with pytest.raises(ArgumentError, match="objective: got 'spans'"):
        gram_loss(model, "spans")
    with pytest.raises(ArgumentError, match="weights: got 'fines'.*did you mean fine"):
        gram_loss(model, weights={"fines": 1.0})
    with pytest.raises(ArgumentError, match="weights: got -1"):
        gram_loss(model, weights={"fine": -1.0})
    with pytest.raises(ArgumentError, match="key: got None"):
        gram_losses(model, batch)
    with pytest.raises(ArgumentTypeError, match="data: got dict"):
        gram_loss(model)(model.params, None, None, {}, KEY)
    rows = jnp.ones((1, 4, 32))
    with pytest.raises(ArgumentError, match="places: got None"):
        encode_with_queries(
            base.params, base.config, rows, jnp.ones((1, 4), bool), queries=rows
        )
    with pytest.raises(ArgumentError, match="left: got '999 tokens'"):
        encode_with_queries(
            base.params, base.config, jnp.ones((1, 999, 32)), jnp.ones((1, 999), bool)
        )
