"""Schedules and AdamW against their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import ArgumentError
from jtok.train import adamw, matrices_only, schedule


def rates(kind, steps, **options):
    rate = schedule(kind, peak=2.0, steps=steps, **options)
    return np.array([float(rate(t)) for t in range(steps + 3)])


@pytest.mark.parametrize("warmup", [0, 1, 2, 5])
@pytest.mark.parametrize("kind", ["constant", "cosine", "linear", "wsd"])
def test_warmup_rises_to_the_peak(kind, warmup):
    got = rates(kind, 10, warmup=warmup)
    expected = [2.0 * (t + 1) / warmup for t in range(warmup)] + [2.0]
    np.testing.assert_allclose(got[: warmup + 1], expected, rtol=1e-6)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_and_linear_fall_to_the_floor(floor):
    t = np.minimum(np.arange(13) - 2, 8) / 8
    low = 2.0 * floor
    cosine = low + (2.0 - low) * 0.5 * (1 + np.cos(np.pi * t))
    linear = low + (2.0 - low) * (1 - t)
    for kind, curve in (("cosine", cosine), ("linear", linear)):
        got = rates(kind, 10, warmup=2, floor=floor)
        np.testing.assert_allclose(got[2:], curve[2:], rtol=1e-5, atol=1e-7)


def test_wsd_holds_then_falls():
    got = rates("wsd", 10, warmup=1, decay=0.4, floor=0.5)
    expected = [2.0] * 7 + [1.75, 1.5, 1.25, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cosin"}, "kind: got 'cosin'.*did you mean cosine"),
        ({"peak": 0.0}, "peak: got 0.0"),
        ({"steps": 0}, "steps: got 0"),
        ({"warmup": 10}, "warmup: got 10"),
        ({"floor": 1.5}, "floor: got 1.5"),
        ({"decay": 0.0}, "decay: got 0.0"),
    ],
)
def test_bad_schedules(options, message):
    given = {"kind": "cosine", "peak": 1.0, "steps": 10, **options}
    function = getattr(schedule, "__wrapped__", schedule)
    with pytest.raises(ArgumentError, match=message):
        function(given.pop("kind"), **given)


# ---- AdamW


def test_stacked_norms_and_biases_do_not_decay():
    params = {
        "embed": jnp.ones((5, 4)),
        "norm": {"scale": jnp.ones(4)},
        "layers": {
            "norm": {"scale": jnp.ones((3, 4))},
            "query": {"kernel": jnp.ones((3, 4, 2, 2)), "bias": jnp.ones((3, 2, 2))},
            "gate": jnp.ones((3, 4)),
        },
    }
    assert matrices_only(params) == {
        "embed": True,
        "norm": {"scale": False},
        "layers": {
            "norm": {"scale": False},
            "query": {"kernel": True, "bias": False},
            "gate": False,
        },
    }


def test_split_layers_have_no_leading_axis():
    layer = {"norm": {"scale": jnp.ones(4)}, "gate": jnp.ones((4, 8))}
    expected = {"norm": {"scale": False}, "gate": True}
    assert matrices_only({"layers": (layer, layer)}) == {"layers": (expected,) * 2}


def adamw_by_hand(params, grads, *, steps, rate, decay, clip):
    b1, b2, eps = 0.9, 0.95, 1e-8
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    scale = min(1.0, clip / norm)
    result = {}
    for name, p in params.items():
        m = v = 0.0
        g = grads[name] * scale
        for t in range(1, steps + 1):
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
            p = p - rate * (step + (decay * p if p.ndim == 2 else 0.0))
        result[name] = p
    return result


@pytest.mark.parametrize("clip", [1.0, 100.0])
def test_adamw_equals_the_formula(clip):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=3)}
    grads = {"w": rng.normal(size=(3, 2)) * 3, "b": rng.normal(size=3) * 1e-7}
    optimizer = adamw(0.1, weight_decay=0.3, clip_norm=clip)
    got = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    opt_state = optimizer.init(got)
    for _ in range(3):
        same = {name: jnp.asarray(g, jnp.float32) for name, g in grads.items()}
        updates, opt_state = optimizer.update(same, opt_state, got)
        got = {name: got[name] + updates[name] for name in got}
    expected = adamw_by_hand(params, grads, steps=3, rate=0.1, decay=0.3, clip=clip)
    for name in params:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("weight_decay", -0.1),
        ("b1", 1.0),
        ("b2", -0.1),
        ("eps", 0.0),
        ("clip_norm", 0.0),
    ],
)
def test_bad_numbers_are_named(name, value):
    options = {"learning_rate": 0.1, name: value}
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        adamw(options.pop("learning_rate"), **options)
