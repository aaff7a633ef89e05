"""ToMe, PiToMe and the spectral distance against the official functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.compress import (
    grouped,
    pitome,
    removal_schedule,
    spectral_distance,
    tome,
)
from jtok.ops import energy
from jtok.testing import load_golden

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
HOW = {"merge_mean": "mean", "merge_sum": "sum", "merge_amax": "max"}


def everything(make, metric, x, size=None):
    """The plan and all that it does, in one program."""
    x = jnp.asarray(x)
    size = jnp.ones(x.shape[:2]) if size is None else jnp.asarray(size)

    @jax.jit
    def run(metric, x, size):
        plan = make(metric)
        done = {name: plan.merge(x, how=how)[0] for name, how in HOW.items()}
        done["wavg"], done["wavg_size"] = plan.merge(x, size)
        done["source"], done["prune"] = plan.source(), plan.prune(x)
        done["unmerge"] = plan.unmerge(done["merge_mean"])
        return plan, done

    plan, done = run(jnp.asarray(metric), x, size)
    done["wavg_size"] = done["wavg_size"][..., None]
    return plan, done


def check_all(golden, case, done):
    for name, got in done.items():
        if f"{case}.{name}" in golden:
            np.testing.assert_allclose(got, golden[f"{case}.{name}"], **TOLERANCE)


@pytest.mark.parametrize("case", ["plain", "odd", "cls", "cls_max", "dist"])
def test_tome(case):
    golden = load_golden("pitome/tome_a.npz")
    remove, class_token, distilled = golden[f"{case}.args"].tolist()
    make = functools.partial(tome, remove=remove, protect=class_token + distilled)
    size = golden[f"{case}.size"][..., 0]
    _, done = everything(make, golden[f"{case}.metric"], golden[f"{case}.x"], size)
    check_all(golden, case, done)


def test_tome_through_layers():
    golden = load_golden("pitome/tome_a.npz")
    removed = golden["chain.r"].tolist()

    @jax.jit
    def run(x, metrics):
        size, path, steps = None, None, []
        for metric, remove in zip(metrics, removed, strict=True):
            plan = tome(metric, remove=remove, protect=1)
            x, size = plan.merge(x, size)
            path = plan if path is None else path.then(plan)
            steps.append((x, size, path, path.source()))
        return steps

    metrics = [jnp.asarray(golden[f"chain.metric{step}"]) for step in range(3)]
    steps = run(jnp.asarray(golden["chain.x"]), metrics)
    for step, (x, size, path, source) in enumerate(steps):
        np.testing.assert_allclose(x, golden[f"chain.x{step}"], **TOLERANCE)
        np.testing.assert_allclose(size, golden[f"chain.size{step}"][..., 0])
        np.testing.assert_array_equal(source, golden[f"chain.source{step}"])
        np.testing.assert_array_equal(path.size, golden[f"chain.size{step}"][..., 0])


def test_groups_and_schedules():
    golden = load_golden("pitome/tome_a.npz")
    make = functools.partial(grouped, every=int(golden["kth.k"]))
    _, done = everything(make, golden["kth.metric"], golden["kth.x"])
    mean, whole = done["merge_mean"], golden["kth.unmerge"]
    np.testing.assert_allclose(mean, golden["kth.mean"], **TOLERANCE)
    back = done["unmerge"][:, : whole.shape[1]]
    np.testing.assert_allclose(back, whole, **TOLERANCE)
    cases = {
        "const16_L12": (12, 16),
        "dec16_L12": (12, (16, -1.0)),
        "inc13_L7": (7, (13, 1.0)),
        "half8_L5": (5, (8, 0.5)),
    }
    for name, arguments in cases.items():
        want = golden[f"parse_r.{name}"].tolist()
        assert list(removal_schedule(*arguments)) == want


RULES = {"v": "all", "bsm": "bsm", "t": "text"}
CASES = [
    "v_plain", "v_cls", "v_cls_m0", "v_half", "v_neg", "bsm_plain", "bsm_cls_odd",
    "bsm_half", "t_cls", "t_plain", "t_margin_low",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_pitome(case):
    golden = load_golden("pitome/pitome_a.npz")
    keep = round(float(golden[f"{case}.ratio"]), 4)
    margin = round(float(golden[f"{case}.margin"]), 4)
    protect = int(golden[f"{case}.class_token"])
    metric = jnp.asarray(golden[f"{case}.metric"])
    rule = RULES[case.split("_")[0]]
    kernel = "gaussian" if rule == "text" else "elu"
    find = functools.partial(energy, margin=margin, kernel=kernel)
    for block in (256, 7):
        found = jax.jit(functools.partial(find, block=block))(metric[:, protect:])
        np.testing.assert_allclose(found, golden[f"{case}.energy"], **TOLERANCE)
    order = np.argsort(-np.asarray(found), axis=1, kind="stable")
    np.testing.assert_array_equal(order, golden[f"{case}.order"])
    make = functools.partial(
        pitome, keep=keep, margin=margin, protect=protect, rule=rule
    )
    size = golden[f"{case}.size"][..., 0] if f"{case}.size" in golden else None
    plan, done = everything(make, metric, golden[f"{case}.x"], size)
    assert metric.shape[1] - plan.num_rows == int(golden[f"{case}.r"])
    check_all(golden, case, done)
    if rule == "text":
        mask = jnp.asarray(golden[f"{case}.attention_mask"] > 0)
        merged = golden[f"{case}.merged_mask"] > 0
        np.testing.assert_array_equal(plan.any_of(mask), merged)


def test_the_repositorys_own_tome_counts_the_class_token():
    golden = load_golden("pitome/pitome_a.npz")
    metric = jnp.asarray(golden["repo_bsm.metric"])
    keep, seq = round(float(golden["repo_bsm.ratio"]), 4), metric.shape[1]
    remove = int(np.floor(seq - seq * keep))
    make = functools.partial(tome, remove=remove, protect=1)
    _, done = everything(make, metric, golden["repo_bsm.x"])
    check_all(golden, "repo_bsm", done)


@pytest.mark.parametrize("case", "abc")
def test_spectral_distance(case):
    golden = load_golden("pitome/spectral_a.npz")
    found = spectral_distance(golden[f"{case}.v"], golden[f"{case}.partition"])
    names = {
        "W": "weights", "Wc": "coarse", "Wl": "lifted", "eig": "before",
        "eig_lifted": "after", "sd": "distance",
    }  # fmt: skip
    for name, field in names.items():
        want = golden[f"{case}.{name}"]
        np.testing.assert_allclose(getattr(found, field), want, atol=2e-6)
