"""Encoders whose layers keep fewer tokens, whatever compressor says so."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.compress import pitome
from jtok.errors import ArgumentError, ArgumentTypeError
from jtok.models import LayerView, Model, load, save, stack_layers
from jtok.ops.plan import join_plan
from jtok.testing import tiny_model

IDS = jax.random.randint(jax.random.key(0), (2, 12), 5, 90)
MASK = jnp.arange(12)[None] < jnp.array([[12], [9]])


@dataclasses.dataclass(frozen=True)
class Removes:
    """Two tokens fewer a layer, by PiToMe on the mean of the keys."""

    where: Any = "attention"
    how: Any = "weighted"
    proportional: bool = False
    restart: bool = False
    remove: int = 2

    def __call__(self, view: LayerView):
        return pitome(
            view.key.mean(axis=2), remove=self.remove, protect=view.prefix,
            valid=view.valid, position=view.position, size=view.size, order="source",
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pairs(Removes):
    """Tokens 2i and 2i + 1 of the first half become one in the first layer."""

    def __call__(self, view: LayerView):
        if view.layer:
            return None
        seq = view.x.shape[1]
        index = jnp.arange(seq)[None].repeat(view.x.shape[0], 0)
        joins = jnp.where(index < seq // 2, index - index % 2, index)
        return join_plan(joins, index, seq - seq // 4, valid=view.valid)


@pytest.fixture(scope="module", params=["bert", "modernbert", "t5"])
def model(request):
    return tiny_model(family=request.param)


def test_layers_keep_fewer_tokens_and_the_plan_says_which(model):
    run = jax.jit(lambda m, ids: m(ids, mask=MASK, compress=Removes(), logits="none"))
    out = run(model, IDS)
    layers = model.config.num_layers
    assert out.hidden.shape[1] == 12 - 2 * layers
    np.testing.assert_array_equal(out.plan.size.sum(1), MASK.sum(1))
    assert (out.plan.assign[1, 9:] == -1).all()
    assert np.isfinite(out.hidden).all()


def test_nothing_removed_is_the_plain_model(model):
    out = model(IDS, mask=MASK, compress=Removes(remove=0))
    plain = model(IDS, mask=MASK)
    real = MASK[..., None]
    np.testing.assert_allclose(out.hidden * real, plain.hidden * real, atol=2e-5)
    np.testing.assert_array_equal(out.plan.assign, jnp.where(MASK, jnp.arange(12), -1))


def test_padding_changes_nothing():
    model = tiny_model(family="bert")
    run = jax.jit(lambda ids, mask: model(ids, mask=mask, compress=Removes()))
    short = run(IDS[:, :9], None)
    long = run(IDS, jnp.arange(12)[None].repeat(2, 0) < 9)
    for row in range(2):
        kept = np.asarray(long.plan.valid[row])
        np.testing.assert_allclose(long.hidden[row][kept], short.hidden[row], atol=2e-5)


@pytest.mark.parametrize("where", ["attention", "layer"])
def test_equal_tokens_that_merge_change_nothing_with_their_sizes(where):
    """Pairs of equal tokens: proportional attention sees two where one is left."""
    model = tiny_model(family="t5")
    config = dataclasses.replace(model.config, relative=None, positions="none")
    model = Model(model.params, config)
    ids = jnp.concatenate([jnp.repeat(IDS[:, :3], 2, axis=1), IDS[:, 6:]], axis=1)
    plain = model(ids).hidden[:, jnp.array([0, 2, 4, 6, 7, 8, 9, 10, 11])]
    merged = model(ids, compress=Pairs(where=where, proportional=True)).hidden
    np.testing.assert_allclose(merged, plain, atol=2e-5)
    without = model(ids, compress=Pairs(where=where)).hidden
    assert np.abs(without - plain).max() > 1e-3


def test_restart_forgets_sizes_between_layers():
    model = tiny_model(family="bert")
    a = model(IDS, compress=Removes())
    b = model(IDS, compress=Removes(restart=True))
    assert not np.allclose(a.hidden, b.hidden, atol=1e-5)


def test_adapter_gates_and_sites_go_along():
    model = tiny_model(family="bert")
    gates = jnp.ones(IDS.shape)
    taps = [("resid_post", 0), ("resid_mid", 1)]
    out = model(IDS, gates=gates, compress=Removes(), taps=taps)
    assert out.taps["resid_post", 0].shape[1] == 10
    assert out.taps["resid_mid", 1].shape[1] == 10


def test_the_models_own_compressor_and_a_calls(tmp_path):
    model = tiny_model(family="bert")
    save(model, tmp_path / "m")
    own = load(tmp_path / "m", compress=Removes())
    assert own(IDS).hidden.shape[1] == 8
    assert own(IDS, compress=None).hidden.shape[1] == 12


def test_gradients_pass_merges():
    model = tiny_model(family="bert")
    loss = lambda p: Model(p, model.config)(
        IDS, compress=Removes(), logits="none"
    ).hidden.astype(jnp.float32).std()  # fmt: skip
    grads = jax.tree.leaves(jax.jit(jax.grad(loss))(model.params))
    assert all(np.isfinite(x).all() for x in grads)
    assert sum(float(jnp.abs(x).sum()) for x in grads) > 0


def test_bad_input_is_named():
    model = tiny_model(family="bert")
    with pytest.raises(ArgumentTypeError, match="compress: got str"):
        model(IDS, compress="tome")
    with pytest.raises(ArgumentError, match="compress.where"):
        model(IDS, compress=Removes(where="before"))
    with pytest.raises(ArgumentError, match="compress.how"):
        model(IDS, compress=Removes(how="median"))
    with pytest.raises(ArgumentError, match="stacked layers"):
        stacked = dataclasses.replace(model, params=stack_layers(model.params))
        stacked(IDS, compress=Removes())
    with pytest.raises(ArgumentError, match="mask"):
        model(IDS, mask=jnp.ones((2, 12, 12), bool), compress=Removes())
    with pytest.raises(ArgumentError, match="taps"):
        model(IDS, taps=["resid_post"], compress=Removes())
    with pytest.raises(TypeError, match="unexpected keyword argument 'cached'"):
        model(IDS, cached=1)
