"""Losses over the vocabulary: brute force, gradients, shards and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jtok.errors import ArgumentError
from jtok.ops import cross_entropy, kl_divergence, vocab_statistics
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close
from tests.ops.topologies import tpu_mesh

VOCAB, DIM, WIDE = 100, 16, 24
SIZES = [(3, 16), (5, 99), (12, 100), (100, 1), (None, None)]


@functools.lru_cache
def arrays(dtype="float32"):
    """Student and teacher: hidden, weight, bias; targets; factors of the losses."""
    rng = np.random.default_rng(3)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    student = (normal(3, 4, DIM), normal(VOCAB, DIM), normal(VOCAB))
    teacher = (normal(3, 4, WIDE), normal(VOCAB, WIDE), normal(VOCAB))
    targets = jnp.asarray(rng.integers(0, VOCAB, (3, 4)), jnp.int32)
    return student, teacher, targets, jnp.asarray(rng.uniform(0.5, 2, (3, 4)))


def logits64(hidden, weight, bias=None, softcap=None, temperature=1.0):
    hidden, weight = (np.asarray(x, np.float64) for x in (hidden, weight))
    logits = np.einsum("bnd,vd->bnv", hidden, weight)
    if bias is not None:
        logits = logits + np.asarray(bias, np.float64)
    if softcap is not None:
        logits = softcap * np.tanh(logits / softcap)
    return logits / temperature


def log_softmax64(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# ---- statistics


@pytest.mark.parametrize("chunk, block", SIZES)
def test_statistics_against_numpy(chunk, block):
    (hidden, weight, bias), _, targets, _ = arrays()
    for softcap in (None, 2.0):
        found = jax.jit(
            functools.partial(
                vocab_statistics, softcap=softcap, chunk=chunk, block=block
            )
        )(hidden, weight, targets, bias=bias)
        logits = logits64(hidden, weight, bias, softcap)
        log_probs = log_softmax64(logits)
        picked = np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
        expected = {
            "log_sum_exp": (logits - log_probs)[..., 0],
            "target_logit": picked,
            "max_logit": logits.max(-1),
            "entropy": -(np.exp(log_probs) * log_probs).sum(-1),
            "max_log_prob": log_probs.max(-1),
            "cross_entropy": (logits - log_probs)[..., 0] - picked,
        }
        for name, value in expected.items():
            assert_close(getattr(found, name), value.astype(np.float32), name=name)
        np.testing.assert_array_equal(found.argmax, logits.argmax(-1))


def plain_statistics(hidden, weight, bias, targets, softcap):
    logits = jnp.einsum("bnd,vd->bnv", hidden, weight) + bias[None, None]
    logits = softcap * jnp.tanh(logits / softcap)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return {
        "log_sum_exp": jax.nn.logsumexp(logits, axis=-1),
        "target_logit": jnp.take_along_axis(logits, targets[..., None], -1)[..., 0],
        "max_logit": jnp.max(logits, axis=-1),
        "entropy": -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1),
    }


FIELDS = ("log_sum_exp", "target_logit", "max_logit", "entropy")


@pytest.mark.parametrize("chunk, block", SIZES[:2])
@pytest.mark.parametrize("name", [*FIELDS, "all"])
def test_gradients_of_statistics(name, chunk, block):
    student, _, targets, factors = arrays()
    names = FIELDS if name == "all" else (name,)

    def total(function, *args):
        found = function(*args)
        return sum(jnp.sum(factors * (i + 1) * found[n]) for i, n in enumerate(names))

    def chunked(hidden, weight, bias):
        out = vocab_statistics(
            hidden, weight, targets, bias=bias, softcap=3.0, chunk=chunk, block=block
        )
        return {n: getattr(out, n) for n in names}

    plain = lambda *args: plain_statistics(*args, targets, 3.0)
    found, expected = (
        jax.jit(jax.grad(functools.partial(total, f), (0, 1, 2)))(*student)
        for f in (chunked, plain)
    )
    for got, want, what in zip(found, expected, ("hidden", "weight", "bias")):
        assert_close(got, want, name=f"{name} by {what}")


def test_a_token_of_weight_minus_infinity_never_counts():
    (hidden, weight, _), _, targets, _ = arrays()
    banned = jnp.arange(VOCAB) % 3 == 0
    bias = jnp.where(banned, -jnp.inf, 0.0)
    kept = weight[~np.asarray(banned)]
    found = vocab_statistics(hidden, weight, targets, bias=bias, chunk=5, block=16)
    alone = vocab_statistics(hidden, kept, chunk=5, block=16)
    assert_close(found.entropy, alone.entropy)
    assert_close(found.log_sum_exp, alone.log_sum_exp)

    def loss(hidden, weight):
        out = vocab_statistics(hidden, weight, bias=bias, chunk=5, block=16)
        return jnp.sum(out.entropy + out.log_sum_exp)

    grads = jax.grad(loss, (0, 1))(hidden, weight)
    assert all(np.isfinite(x).all() for x in grads)
    assert (np.asarray(grads[1])[np.asarray(banned)] == 0).all()


def test_only_gradients_that_are_asked_for_are_computed():
    (hidden, weight, bias), _, targets, _ = arrays()

    def loss(hidden, weight, bias):
        return jnp.sum(cross_entropy(hidden, weight, targets, bias=bias))

    def matmuls(argnums):
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums))(hidden, weight, bias)
        return str(jaxpr).count("dot_general")

    # Logits forward and backward, then one product for each gradient of a matrix.
    assert [matmuls(n) for n in (0, 1, 2, (0, 1))] == [3, 3, 2, 4]


def test_gradients_inside_scan_and_remat():
    (hidden, weight, _), _, targets, _ = arrays()

    def loss(weight):
        @jax.checkpoint
        def body(total, item):
            return total + jnp.sum(cross_entropy(item[0], weight, item[1])), None

        return jax.lax.scan(body, jnp.float32(0), (hidden, targets))[0]

    whole = lambda weight: jnp.sum(cross_entropy(hidden, weight, targets))
    assert_close(jax.jit(jax.grad(loss))(weight), jax.grad(whole)(weight))


def test_cross_entropy_maps_over_heads():
    (hidden, weight, _), _, targets, _ = arrays()
    weights = jnp.stack([weight, -weight, 2 * weight])

    def loss(weights):
        return jnp.sum(jax.vmap(cross_entropy)(hidden, weights, targets))

    def apart(weights):
        return sum(
            jnp.sum(cross_entropy(*args)) for args in zip(hidden, weights, targets)
        )

    assert_close(jax.grad(loss)(weights), jax.grad(apart)(weights))


@pytest.mark.parametrize("name, value", [("chunk", 0), ("block", 0)])
def test_sizes_below_one_are_refused(name, value):
    (hidden, weight, _), _, targets, _ = arrays()
    with pytest.raises(ArgumentError, match=name):
        cross_entropy(hidden, weight, targets, **{name: value})


# ---- KL


@pytest.mark.parametrize("chunk, block", SIZES)
@pytest.mark.parametrize("temperature, softcap", [(1.0, None), (2.5, 4.0)])
def test_divergence_against_numpy(chunk, block, temperature, softcap):
    student, teacher, _, _ = arrays()
    mask = np.arange(12).reshape(3, 4) % 3 != 1
    options = {"temperature": temperature, "softcap": softcap, "teacher_softcap": 5.0}
    sized = functools.partial(kl_divergence, chunk=chunk, block=block, **options)
    found = jax.jit(sized)(
        student[0], student[1], teacher[0], teacher[1], mask=jnp.asarray(mask),
        bias=student[2], teacher_bias=teacher[2],
    )  # fmt: skip
    ours = log_softmax64(logits64(*student, softcap, temperature))
    theirs = log_softmax64(logits64(*teacher, 5.0, temperature))
    expected = (np.exp(theirs) * (theirs - ours)).sum(-1) * mask
    assert found.dtype == jnp.float32
    assert_close(found, expected.astype(np.float32))


def test_divergence_from_itself_is_zero():
    (hidden, weight, bias), _, _, _ = arrays()
    found = kl_divergence(
        hidden, weight, hidden, weight, bias=bias, teacher_bias=bias, block=16
    )
    assert_close(found, jnp.zeros((3, 4)), atol=1e-5)


def plain_divergence(student, teacher, temperature, softcap):
    def logits(hidden, weight, bias, cap):
        out = jnp.einsum("bnd,vd->bnv", hidden, weight) + bias[None, None]
        return (out if cap is None else cap * jnp.tanh(out / cap)) / temperature

    ours = jax.nn.log_softmax(logits(*student, softcap), axis=-1)
    theirs = jax.nn.log_softmax(logits(*teacher, None), axis=-1)
    return jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)


@pytest.mark.parametrize("chunk, block", SIZES[:3])
@pytest.mark.parametrize("temperature, softcap", [(1.0, None), (2.5, 4.0)])
def test_gradients_of_the_divergence(chunk, block, temperature, softcap):
    student, teacher, _, factors = arrays()

    def chunked(hidden, weight, bias):
        losses = kl_divergence(
            hidden, weight, teacher[0], teacher[1], bias=bias, teacher_bias=teacher[2],
            temperature=temperature, softcap=softcap, chunk=chunk, block=block,
        )  # fmt: skip
        return jnp.sum(factors * losses)

    def plain(*student):
        losses = plain_divergence(student, teacher, temperature, softcap)
        return jnp.sum(factors * losses)

    found, expected = (
        jax.jit(jax.grad(f, (0, 1, 2)))(*student) for f in (chunked, plain)
    )
    for got, want, name in zip(found, expected, ("hidden", "weight", "bias")):
        assert_close(got, want, name=name)


def columns(rows, start, width):
    return jax.lax.dynamic_slice_in_dim(rows, start, width, axis=1)


def test_a_teacher_may_be_a_function_of_blocks():
    (hidden, weight, _), teacher, _, _ = arrays()
    logits = jnp.asarray(logits64(*teacher), jnp.float32)

    def loss(weight, *teacher, **options):
        losses = kl_divergence(hidden, weight, *teacher, chunk=5, block=16, **options)
        return jnp.sum(losses)

    by_function = jax.value_and_grad(loss)(weight, logits, columns)
    by_weights = jax.value_and_grad(loss)(
        weight, teacher[0], teacher[1], teacher_bias=teacher[2]
    )
    jax.tree.map(assert_close, by_function, by_weights)


def test_a_teacher_gets_no_gradient():
    (hidden, weight, _), teacher, _, _ = arrays()
    loss = lambda *teacher: jnp.sum(kl_divergence(hidden, weight, *teacher))
    grads = jax.grad(loss, (0, 1))(teacher[0], teacher[1])
    assert not any(np.asarray(x).any() for x in grads)


@pytest.mark.parametrize(
    "name, options",
    [
        ("temperature", {"temperature": 0.0}),
        ("teacher_weight", {"rows": 99}),
        ("teacher_bias", {"function": True, "teacher_bias": jnp.zeros(VOCAB)}),
        ("teacher_softcap", {"function": True, "teacher_softcap": 3.0}),
    ],
)
def test_divergence_refuses(name, options):
    (hidden, weight, _), teacher, _, _ = arrays()
    options = dict(options)
    rows = teacher[1][: options.pop("rows", VOCAB)]
    rows = columns if options.pop("function", False) else rows
    with pytest.raises(ArgumentError, match=name):
        kl_divergence(hidden, weight, teacher[0], rows, **options)


# ---- shards


MESHES = ("data=1,model=4", "data=3,model=2", "data=2,model=1", "data=1,model=3")


def mesh_of(spec):
    sizes = [int(part.split("=")[1]) for part in spec.split(",")]
    return mesh_from(spec, devices=jax.devices()[: sizes[0] * sizes[1]])


@pytest.mark.parametrize("spec", MESHES)
def test_shards_give_what_one_device_gives(spec):
    student, teacher, targets, factors = arrays()

    def loss(hidden, weight, bias):
        out = vocab_statistics(
            hidden, weight, targets, bias=bias, softcap=3.0, chunk=3, block=16
        )
        apart = kl_divergence(
            hidden, weight, teacher[0], teacher[1], bias=bias, softcap=3.0, chunk=3,
            block=16, temperature=2.0, teacher_bias=teacher[2],
        )  # fmt: skip
        dense = jnp.asarray(logits64(*teacher), jnp.float32)
        third = kl_divergence(hidden, weight, dense, columns, chunk=3, block=16)
        total = out.cross_entropy + out.entropy + out.max_logit + apart + third
        return jnp.sum(factors * total), (out, apart)

    function = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    expected = function(*student)
    mesh = mesh_of(spec)
    with jax.set_mesh(mesh):
        vocab = "model" if VOCAB % mesh.shape["model"] == 0 else None
        specs = [PartitionSpec("data"), PartitionSpec(vocab), PartitionSpec(vocab)]
        if 3 % mesh.shape["data"]:
            specs[0] = PartitionSpec()
        placed = jax.device_put(student, tuple(NamedSharding(mesh, s) for s in specs))
        found = function(*placed)
    jax.tree.map(
        lambda got, want: assert_close(np.asarray(got), np.asarray(want)),
        found,
        expected,
    )


# ---- memory


def temporaries(function, *args):
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def shape(dims, dtype, mesh=None, *axes):
    spec = None if mesh is None else NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(dims, dtype, sharding=spec)


def mean_loss(hidden, weight, targets):
    return jnp.mean(cross_entropy(hidden, weight, targets))


def mean_divergence(hidden, weight, teacher_hidden, teacher_weight):
    losses = kl_divergence(
        hidden, weight, teacher_hidden, teacher_weight, temperature=2.0, softcap=30.0
    )
    return jnp.mean(losses)


HALF_GIGABYTE, GIGABYTE = 2**29, 2**30
LARGE = 128 * 1024  # entries


@pytest.mark.parametrize("loss", [mean_loss, mean_divergence])
def test_memory_with_the_unembedding_frozen(loss):
    hidden = shape((4, 4096, 1024), jnp.float32)
    weight = shape((LARGE, 1024), jnp.float32)
    args = (hidden, weight, shape((4, 4096), jnp.int32))
    if loss is mean_divergence:
        args = (hidden, weight, hidden, weight)
    assert temporaries(jax.value_and_grad(loss), *args) < HALF_GIGABYTE


@pytest.mark.slow
@pytest.mark.parametrize("loss", [mean_loss, mean_divergence])
@pytest.mark.parametrize("model", [4, 2])
def test_memory_of_all_gradients_on_a_tpu(loss, model):
    mesh = tpu_mesh("v5e:2x2", model)
    hidden = shape((4, 4096, 4096), jnp.bfloat16, mesh, "data")
    weight = shape((LARGE, 4096), jnp.bfloat16, mesh, "model")
    args = (hidden, weight, shape((4, 4096), jnp.int32, mesh, "data"))
    if loss is mean_divergence:
        args = (hidden, weight, hidden, weight)
    with jax.set_mesh(mesh):
        used = temporaries(jax.value_and_grad(loss, (0, 1)), *args)
    gradient_shard = LARGE // model * 4096 * 4
    assert used < GIGABYTE + gradient_shard
