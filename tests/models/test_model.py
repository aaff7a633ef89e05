"""The forward pass: against foreign outputs, and its many ways against each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import models
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.models import Cache, GenerationConfig, Taps, init_cache
from jtok.nn import SITES
from jtok.ops import Tree, cross_entropy
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, load_golden, tiny_config, tiny_model
from tests.models.decoders import DECODERS, GOLDENS, every


@functools.lru_cache
def golden_model(folder, dtype=None):
    return models.load(GOLDENS / folder, dtype=dtype)


def expected_of(folder):
    return load_golden(f"hf_checkpoints/{folder}/expected.npz")


def ids_of(folder):
    return jnp.asarray(expected_of(folder)["in_input_ids"])


def stacked(model):
    return model.replace(params=models.stack_layers(model.params))


run = jax.jit(
    lambda model, ids, **arrays: model(ids, taps=["resid_post"], **arrays),
)


@jax.jit
def feed(model, ids, cache, count):
    """A step that keeps the first `count` of its ids."""
    out = model(ids, cache=cache)
    path = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    return out, models.commit(out.cache, path, count)


# ---- foreign outputs


@pytest.mark.parametrize("folder", DECODERS)
@pytest.mark.parametrize("layers", ["split", "stacked"])
def test_outputs_of_transformers(folder, layers):
    expected, model = expected_of(folder), golden_model(folder)
    model = stacked(model) if layers == "stacked" else model
    mask = expected["in_attention_mask"] == 1
    assert not mask.all()
    out = run(model, ids_of(folder), mask=jnp.asarray(mask))
    for name, found in (
        ("out_logits", out.logits),
        ("out_last_hidden", out.hidden),
        ("out_mid_hidden", out.taps["resid_post"][0]),
    ):
        # The README's tolerance: another framework, another order of summation.
        assert_close(np.asarray(found)[mask], expected[name][mask], atol=2e-4)


@pytest.mark.parametrize("folder", DECODERS)
def test_greedy_continuation_of_transformers(folder):
    expected, model = expected_of(folder), golden_model(folder)
    whole = expected["out_greedy"]
    ids = [*expected["in_input_ids"][0].tolist()]
    cache = init_cache(model.config, 1, 32)
    one = jnp.array([1])
    _, cache = feed(model, jnp.array([ids[:-1]]), cache, jnp.array([len(ids) - 1]))
    while len(ids) < whole.shape[1]:
        out, cache = feed(model, jnp.array([ids[-1:]]), cache, one)
        ids.append(int(jnp.argmax(out.logits[0, -1])))
    assert ids == whole[0].tolist()


def test_cache_compaction_of_medusa(golden):
    arrays = golden("speculative_verification/kv_compact.npz")
    paths = [[int(r) for r in row if r >= 0] for row in arrays["paths"]]
    tree = Tree.from_paths(paths, sort=True)
    np.testing.assert_array_equal(tree.leaf_paths[::-1], arrays["retrieve"])
    before, after = arrays["cache_before"], arrays["cache_after"]
    for case, length in enumerate(arrays["len_before"]):
        keep = int(arrays["accept_len"][case]) + 1
        row = int(arrays["best"][case])
        pairs = [(before[case, i], before[case, i + 1]) for i in (0, 2, 4)]
        pairs = [(jnp.asarray(key), jnp.asarray(value)) for key, value in pairs]
        cut = lambda x, start=int(length): x[:, :, start : start + tree.num_nodes]
        cache = Cache(
            layers=tuple(pairs),
            length=jnp.asarray([length]),
            pending=tuple((cut(key), cut(value)) for key, value in pairs),
        )
        path = jnp.asarray(arrays["retrieve"][row])[None]
        cache = models.commit(cache, path, jnp.array([keep]))
        end = int(arrays["len_after"][case])
        assert cache.length.tolist() == [end]
        found = [x for pair in cache.layers for x in pair]
        for layer, buffer in enumerate(found):
            np.testing.assert_array_equal(
                buffer[:, :, :end], after[case, layer][:, :, :end]
            )
        ids = [*range(length), *arrays["candidates"][case, row, :keep]]
        assert arrays["out_ids"][case, :end].tolist() == ids


# ---- the cache


@pytest.mark.parametrize("folder", every("llama", "gpt2", "gemma2", "mixtral"))
def test_a_cache_filled_in_pieces_gives_the_same(folder):
    model, ids = golden_model(folder), ids_of(folder)
    whole = run(model, ids)
    cache, start, logits = init_cache(model.config, 2, 24), 0, []
    for size in (5, 1, 12):
        count = jnp.full(2, size)
        out, cache = feed(model, ids[:, start : start + size], cache, count)
        logits.append(out.logits)
        start += size
    assert_close(jnp.concatenate(logits, axis=1), whole.logits)


@pytest.mark.parametrize("folder", every("llama", "gpt2", "mistral_sliding"))
def test_after_a_commit_the_cache_is_that_of_a_fresh_prefill(folder):
    model, ids = golden_model(folder), ids_of(folder)
    tree = Tree.from_paths([[0], [1], [0, 0], [1, 0], [1, 0, 0]])
    allow = jnp.broadcast_to(jnp.asarray(tree.ancestors)[None], (2, 6, 6))
    cache = init_cache(model.config, 2, 24)
    _, cache = feed(model, ids[:, :5], cache, jnp.array([5, 3]))
    texts = [ids[0, :5].tolist(), ids[1, :3].tolist()]

    @jax.jit
    def grow(model, nodes, cache, path, count):
        positions = cache.length[:, None] + jnp.asarray(tree.depth)[None]
        out = model(nodes, positions=positions, mask=allow, cache=cache)
        return models.commit(out.cache, path, count)

    for step, (path, count) in enumerate(
        [
            ([[0, 2, 4, 5], [0, 1, 3, -1]], [4, 3]),
            ([[0, 1, -1, -1], [0, -1, -1, -1]], [2, 0]),
            ([[0, -1, -1, -1], [0, 2, 4, 5]], [1, 2]),
        ]
    ):
        nodes = (jnp.arange(12).reshape(2, 6) * 5 + 17 * step) % 96
        cache = grow(model, nodes, cache, jnp.array(path), jnp.array(count))
        for row, kept in enumerate(count):
            texts[row] += [int(nodes[row, n]) for n in path[row][:kept]]
        lengths = [len(text) for text in texts]
        assert cache.length.tolist() == lengths
        padded = jnp.array([text + [0] * (12 - len(text)) for text in texts])
        empty = init_cache(model.config, 2, 24)
        _, fresh = feed(model, padded, empty, jnp.array(lengths))
        for row, length in enumerate(lengths):
            cut = lambda x, row=row, length=length: x[row, :, :length]
            for found, wanted in zip(
                jax.tree.leaves(cache.layers), jax.tree.leaves(fresh.layers)
            ):
                assert_close(cut(found), cut(wanted), rtol=1e-5, atol=1e-5)


# ---- inputs


@pytest.mark.parametrize("folder", every("llama", "gpt2", "gemma"))
def test_vectors_stand_for_ids(folder):
    model, ids = golden_model(folder), ids_of(folder)
    vectors = model.params["embed"]["tokens"][ids]
    by_ids, by_vectors = run(model, ids), run(model, vectors)
    np.testing.assert_array_equal(by_ids.logits, by_vectors.logits)


@pytest.mark.parametrize("folder", every("llama", "gpt2", "gemma2"))
def test_padding_changes_nothing(folder):
    model, ids = golden_model(folder), ids_of(folder)
    alone = run(model, ids).logits[:, :14]
    noise = 95 - ids[:, :4]
    right = jnp.concatenate([ids[:, :14], noise], axis=1)
    mask = jnp.broadcast_to(jnp.arange(18) < 14, (2, 18))
    assert_close(run(model, right, mask=mask).logits[:, :14], alone)
    left = jnp.concatenate([noise, ids[:, :14]], axis=1)
    positions = jnp.tile(jnp.maximum(jnp.arange(18) - 4, 0)[None], (2, 1))
    out = run(model, left, mask=mask[:, ::-1], positions=positions)
    assert_close(out.logits[:, 4:], alone)


def test_rows_do_not_mix():
    model, ids = golden_model("llama"), ids_of("llama")
    both, other = run(model, ids).logits, run(model, ids.at[1].set(0)).logits
    np.testing.assert_array_equal(both[0], other[0])


def test_a_full_mask_and_a_bias_hide_the_same():
    model, ids = golden_model("llama"), ids_of("llama")
    allow = jnp.broadcast_to(jnp.tril(jnp.ones((18, 18), bool))[None], (2, 18, 18))
    plain = run(model, ids).logits
    assert_close(run(model, ids, mask=allow).logits, plain)
    hidden = run(model, ids, mask=allow.at[:, 4:, 3].set(False)).logits
    bias = jnp.zeros((1, 1, 18, 18)).at[:, :, 4:, 3].set(-1e9)
    assert_close(run(model, ids, bias=bias).logits, hidden)
    assert np.abs(hidden - plain)[:, 4:].max() > 1e-2


@pytest.mark.parametrize("which", ["none", "last", "all", "rows"])
def test_which_logits(which):
    model, ids = golden_model("llama"), ids_of("llama")
    rows = jnp.array([[3, 0, 17], [5, 5, 1]])
    every = model(ids).logits
    found = model(ids, logits=rows if which == "rows" else which).logits
    if which == "none":
        assert found is None
        return
    expected = {
        "last": every[:, -1:],
        "all": every,
        "rows": jnp.stack([every[i, rows[i]] for i in range(2)]),
    }
    assert found.dtype == jnp.float32
    assert_close(found, expected[which])


# ---- taps


def ramp(x, amount):
    """Factors along the last axis: a norm would undo a scale, a softmax a shift."""
    steps = jnp.linspace(0, 1, x.shape[-1]).reshape((1,) * (x.ndim - 1) + (-1,))
    return 1 + amount * steps


@jax.jit
def tapped(model, ids, amount):
    """Everything read, and every site scaled by a ramp of `amount[site, layer]`."""

    def edit(layer, site, x):
        return x * ramp(x, amount[SITES.index(site), layer])

    return model(ids, taps=Taps(SITES, edit))


def test_taps_of_scanned_and_of_unrolled_layers_agree():
    model, ids = golden_model("llama"), ids_of("llama")
    zero = jnp.zeros((len(SITES), 2))
    split = tapped(model, ids, zero)
    assert_close(split.logits, run(model, ids).logits)
    for site, layer in [(s, i) for s in SITES for i in range(2)]:
        amount = zero.at[SITES.index(site), layer].set(0.5)
        unrolled = tapped(model, ids, amount)
        scanned = tapped(stacked(model), ids, amount)
        assert set(unrolled.taps) == set(scanned.taps) == set(SITES)
        assert_close(unrolled.logits, scanned.logits, rtol=1e-5, atol=1e-4)
        for name in SITES:
            # Two layers on: float32 differences grow with the edited activations.
            assert_close(
                unrolled.taps[name], scanned.taps[name], rtol=1e-4, atol=1e-4, name=name
            )
        before = split.taps[site][layer]
        assert_close(unrolled.taps[site][layer], before * ramp(before, 0.5), atol=1e-5)
        assert np.abs(unrolled.logits - split.logits).max() > 1e-3, (site, layer)
        # What comes before the edit does not change; with the same program, bitwise.
        for name in SITES:
            until = layer + (SITES.index(name) < SITES.index(site))
            np.testing.assert_array_equal(
                unrolled.taps[name][:until], split.taps[name][:until]
            )


def test_taps_by_site_and_by_layer():
    model, ids = golden_model("llama"), ids_of("llama")
    for version in (model, stacked(model)):
        out = version(ids, taps=["query", ("query", 1), ("mlp_out", 0)])
        assert set(out.taps) == {"query", ("query", 1), ("mlp_out", 0)}
        assert out.taps["query"].shape == (2, 2, 18, 4, 8)
        np.testing.assert_array_equal(out.taps["query", 1], out.taps["query"][1])
        assert out.taps["mlp_out", 0].shape == (2, 18, 32)


def test_without_taps_nothing_is_returned():
    model, ids = golden_model("llama"), ids_of("llama")
    assert model(ids, logits="none").taps == {}


# ---- storage, meshes, gradients


@pytest.mark.parametrize("folder", every("llama", "gpt2"))
def test_bfloat16_stays_close(folder):
    ids = ids_of(folder)
    narrow = golden_model(folder, "bfloat16")
    leaves = jax.tree.leaves(narrow.params)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}
    found, expected = run(narrow, ids), run(golden_model(folder), ids)
    assert found.logits.dtype == jnp.float32 and found.hidden.dtype == jnp.bfloat16
    # Two layers with 8 bits of mantissa: the mean error is 1% of the logits' spread.
    error = np.abs(found.logits - expected.logits)
    assert error.mean() < 0.03 * np.std(expected.logits)
    cache = init_cache(narrow.config, 2, 24)
    assert cache.layers[0][0].dtype == jnp.bfloat16
    for start in (0, 5):
        count = jnp.array([5, 5])
        out, cache = feed(narrow, ids[:, start : start + 5], cache, count)
    error = np.abs(out.logits - expected.logits[:, 5:10])
    assert error.mean() < 0.03 * np.std(expected.logits)


@pytest.mark.parametrize("folder", every("llama", "gpt2", "mixtral"))
def test_a_sharded_model_gives_the_same(folder):
    expected, ids = golden_model(folder), ids_of(folder)
    with jax.set_mesh(mesh_from("data=2,model=4")):
        model = models.load(GOLDENS / folder)
        layer = model.params["layers"][1]
        for name in ("query", "out", *layer["mlp"]):
            leaf = layer["mlp"].get(name, layer.get(name))["kernel"]
            if name == "router":  # every device routes for itself
                continue
            assert len(leaf.sharding.device_set) == 8
            local = leaf.sharding.shard_shape(leaf.shape)
            assert np.prod(local) * 4 == leaf.size, name
        tokens = model.params["embed"]["tokens"]
        assert tokens.sharding.shard_shape(tokens.shape) == (24, 32)
        out = run(model, ids)
        scanned = run(stacked(model), ids)
        cache = init_cache(model.config, 2, 24)
        first, cache = feed(model, ids[:, :9], cache, jnp.array([9, 9]))
        second, _ = feed(model, ids[:, 9:], cache, jnp.array([9, 9]))
    whole = run(expected, ids).logits
    assert_close(out.logits, whole)
    assert_close(scanned.logits, whole)
    assert_close(np.concatenate([first.logits, second.logits], axis=1), whole)


@pytest.mark.parametrize("folder", every("llama", "gpt2", "mixtral"))
def test_gradients_of_scanned_and_split_layers_agree(folder):
    model, ids = golden_model(folder), ids_of(folder)

    @jax.jit
    @jax.grad
    def gradient(params):
        changed = model.replace(params=params)
        hidden = changed(ids, logits="none").hidden[:, :-1]
        weight, bias = changed.unembedding()
        return jnp.mean(cross_entropy(hidden, weight, ids[:, 1:], bias=bias))

    split = gradient(model.params)
    scanned = models.split_layers(gradient(models.stack_layers(model.params)))
    assert jax.tree.structure(split) == jax.tree.structure(scanned)
    for (path, found), wanted in zip(
        jax.tree.leaves_with_path(scanned), jax.tree.leaves(split)
    ):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(found).all(), name
        assert np.abs(found).max() > 0 or name.endswith("['key']['bias']"), name
        assert_close(found, wanted, rtol=1e-4, atol=1e-6, name=name)


def test_split_and_stack_undo_each_other():
    params = golden_model("llama").params
    again = models.split_layers(models.stack_layers(params))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert models.split_layers(params) is params
    both = models.stack_layers(params)
    assert models.stack_layers(both) is both
    assert both["layers"]["query"]["kernel"].shape == (2, 32, 32)


def test_number_of_parameters_counts_a_tied_unembedding_once():
    untied, tied = golden_model("llama"), golden_model("llama3_rope_tied")
    assert untied.num_params - tied.num_params == 96 * 32
    assert tied.unembedding()[0] is tied.params["embed"]["tokens"]
    assert untied.unembedding()[0].shape == (96, 32)


# ---- what is refused


@pytest.mark.parametrize(
    "inputs, options, error, message",
    [
        (jnp.zeros(3, int), {}, ArgumentError, r"inputs: got 'shape \(3,\)'"),
        (jnp.zeros((1, 3, 31)), {}, ArgumentError, r"\[batch, seq, 32\] vectors"),
        (jnp.zeros((1, 3)), {}, ArgumentError, "inputs"),
        (jnp.zeros((1, 3), bool), {}, ArgumentTypeError, "inputs: got dtype bool"),
        (
            jnp.zeros((1, 3), int),
            {"taps": ["resid_mit"]},
            ArgumentError,
            "site 'resid_mit'; did you mean resid_mid",
        ),
        (
            jnp.zeros((1, 3), int),
            {"taps": [("query", 2)]},
            ArgumentError,
            r"taps: got \('query', 2\), expected a layer in 0..1",
        ),
        (
            jnp.zeros((1, 3), int),
            {"mask": jnp.ones((1, 4), bool)},
            ArgumentError,
            r"mask: got 'shape \(1, 4\)', expected \[1, 3\] or \[1, 3, 3\]",
        ),
    ],
)
def test_bad_inputs(inputs, options, error, message):
    with pytest.raises(error, match=message):
        golden_model("llama")(inputs, **options)


def test_bad_caches():
    model, ids = golden_model("llama"), jnp.zeros((1, 3), int)
    cache = init_cache(model.config, 1, 8)
    with pytest.raises(ArgumentError, match="cache: got one without pending nodes"):
        models.commit(cache, jnp.zeros((1, 1), int), jnp.ones(1, int))
    with pytest.raises(ArgumentError, match=r"use jtok\.models\.split_layers"):
        stacked(model)(ids, cache=cache)
    with pytest.raises(ArgumentError, match="bias: got 'a bias', expected None"):
        model(ids, cache=cache, bias=jnp.zeros((1, 1, 1, 3)))
    for batch, capacity, name in ((0, 8, "batch"), (1, 0, "capacity")):
        with pytest.raises(ArgumentError, match=rf"{name}: got 0, expected at least 1"):
            init_cache(tiny_config(), batch, capacity)


# ---- generation configuration


@pytest.mark.parametrize(
    "fields, eos, bos",
    [
        ({}, (), None),
        ({"eos_token_id": None}, (), None),
        ({"eos_token_id": 2, "bos_token_id": 1}, (2,), 1),
        ({"eos_token_id": [5, 2], "bos_token_id": [1, 3]}, (5, 2), 1),
    ],
)
def test_generation_config(fields, eos, bos):
    config = GenerationConfig.from_dict({**fields, "pad_token_id": 0})
    assert (config.eos_token_ids, config.bos_token_id) == (eos, bos)
    assert config.pad_token_id == 0 and config.to_json() is None


# ---- adapters, extra rows, models that look both ways


def with_adapters(model, key=5, extra=2):
    """Adapters on every linear map, and rows of the embedding beyond the vocabulary."""
    keys = iter(jax.random.split(jax.random.key(key), 100))

    def adapt(tree):
        if not isinstance(tree, dict):
            return tree
        tree = {name: adapt(branch) for name, branch in tree.items()}
        if "kernel" in tree:
            rows, columns = tree["kernel"].shape
            tree["lora_a"] = 0.3 * jax.random.normal(next(keys), (rows, 3))
            tree["lora_b"] = 0.3 * jax.random.normal(next(keys), (3, columns))
        return tree

    layers = tuple(adapt(layer) for layer in model.params["layers"])
    width = model.config.width
    extra = {"extra": jax.random.normal(next(keys), (extra, width))} if extra else {}
    embed = {**model.params["embed"], **extra}
    return model.replace(params={**model.params, "layers": layers, "embed": embed})


IDS = jnp.array([[4, 9, 2, 7, 1]])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gates_say_who_gets_the_adapters(family):
    plain = tiny_model(family=family)
    model = with_adapters(plain, extra=0)
    whole = model(IDS).logits
    np.testing.assert_array_equal(model(IDS, gates=jnp.ones((1, 5))).logits, whole)
    np.testing.assert_array_equal(
        model(IDS, gates=jnp.zeros((1, 5))).logits, plain(IDS).logits
    )
    # Later tokens with open gates change nothing before them.
    late = model(IDS, gates=jnp.array([[0, 0, 0, 1, 1.0]])).logits
    np.testing.assert_array_equal(late[:, :3], plain(IDS).logits[:, :3])
    assert jnp.abs(late - plain(IDS).logits)[:, 3:].min() > 0
    # Scanned layers do the same.
    gates = jnp.array([[1, 0, 0.5, 0, 1.0]])
    assert_close(
        stacked(model)(IDS, gates=gates).logits, model(IDS, gates=gates).logits
    )


def test_extra_rows_are_ids_beyond_the_vocabulary():
    plain = tiny_model()
    model, vocab = with_adapters(plain), plain.config.vocab_size
    ids = IDS.at[0, 3].set(vocab + 1)
    rows = jnp.concatenate(
        [plain.params["embed"]["tokens"], model.params["embed"]["extra"]]
    )
    gates = (ids >= vocab).astype(jnp.float32)
    by_hand = with_adapters(plain, extra=0)(rows[ids], gates=gates)
    assert_close(model(ids).logits, by_hand.logits)
    assert model(ids).logits.shape[-1] == vocab
    # Without one of them the model is what it was, whatever its adapters.
    np.testing.assert_array_equal(model(IDS).logits, plain(IDS).logits)


def test_gates_of_another_shape_are_refused():
    with pytest.raises(ArgumentError, match=r"gates: got 'shape \(1, 4\)'"):
        tiny_model()(IDS, gates=jnp.ones((1, 4)))


def test_a_model_that_looks_both_ways():
    config = dataclasses.replace(tiny_config(), causal=False)
    model = models.init(config, jax.random.key(0))
    everyone = jnp.ones((1, 5, 5), bool)
    causal = tiny_model()
    got = model.replace(params=causal.params)(IDS).logits
    assert_close(got, causal(IDS, mask=everyone).logits)
    # Padding is seen by nobody.
    real = jnp.array([[True, True, True, True, False]])
    got = model(IDS, mask=real).logits[:, :4]
    assert_close(got, model(IDS[:, :4]).logits, atol=1e-5)
