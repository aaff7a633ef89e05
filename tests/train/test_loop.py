"""`fit`: what a step computes, resuming, meshes, bad input."""

import json

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jtok.errors import ArgumentError, ArgumentTypeError, CheckpointError
from jtok.ops.sharding import mesh_from
from jtok.train import NonFiniteLossError, adamw, fit

OPTIMIZER = adamw(1e-2)
KEY = jax.random.key(7)


def make_params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "up": jax.random.normal(keys[0], (4, 16)) * 0.5,
        "bias": jnp.zeros(16),
        "down": jax.random.normal(keys[1], (16, 2)) * 0.5,
    }


def batch_of(step):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(8, 4)).astype(np.float32)
    return {"x": x, "y": np.stack([x.sum(1), x.prod(1)], 1), "scale": np.float32(0.5)}


def loss_fn(trainable, frozen, state, batch, key):
    """Noise, a frozen shift and a running mean: everything that fit passes around."""
    noise = 0.01 * jax.random.normal(key, batch["x"].shape)
    hidden = jax.nn.gelu(
        (batch["x"] + noise) @ trainable["up"] + trainable["bias"][None]
    )
    error = hidden @ trainable["down"] + frozen["shift"][None] - batch["y"]
    loss = batch["scale"] * jnp.mean(error**2)
    state = {"mean": 0.9 * state["mean"] + 0.1 * error.mean(0)}
    return loss, (
        {"tokens": jnp.int32(len(error)), "worst": jnp.abs(error).max()},
        state,
    )


def run(steps, **options):
    given = {
        "frozen": {"shift": jnp.full(2, 0.1)},
        "state": {"mean": jnp.zeros(2)},
        "optimizer": OPTIMIZER,
        "data": batch_of,
        "key": KEY,
        "progress": False,
        "log_every": 3,
    }
    trainable = options.pop("trainable", None) or make_params()
    loss = options.pop("loss_fn", loss_fn)
    return fit(loss, trainable, steps=steps, **{**given, **options})


def by_hand(steps):
    """The same training as a plain Python loop."""
    params, state = make_params(), {"mean": jnp.zeros(2)}
    frozen, opt_state, losses = {"shift": jnp.full(2, 0.1)}, None, []
    opt_state = OPTIMIZER.init(params)
    for t in range(steps):
        key = jax.random.fold_in(KEY, t)
        (loss, (_, state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, frozen, state, batch_of(t), key
        )
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return params, state, losses


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def rows_of(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_equals_a_plain_loop():
    params, state, losses = by_hand(5)
    result = run(5)
    np.testing.assert_allclose(result.metrics["loss"], losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        (result.trainable, result.state),
        (params, state),
    )
    assert result.step == 5
    assert list(result.metrics["step"]) == [1, 2, 3, 4, 5]
    assert set(result.metrics) == {
        "step", "loss", "grad_norm", "seconds", "tokens", "worst"
    }  # fmt: skip


def test_given_arrays_stay_valid():
    params, state = make_params(), {"mean": jnp.zeros(2)}
    result = run(1, trainable=params, state=state)
    assert_same(params, make_params())
    assert float(state["mean"][0]) == 0.0
    assert not np.array_equal(result.trainable["up"], params["up"])


def test_step_is_compiled_once_for_equal_calls():
    traces = []

    def counted(*args):
        traces.append(1)
        return loss_fn(*args)

    run(4, loss_fn=counted)
    run(6, loss_fn=counted)
    assert len(traces) == 1


def test_accumulation_is_the_mean_over_strided_parts():
    """Without noise four micro-batches give the gradient of the whole batch."""

    def quiet(trainable, frozen, state, batch, key):
        del key
        error = batch["x"] @ trainable["up"] + frozen["shift"][0]
        seen = state["seen"] + jnp.where(
            jnp.arange(4) == state["count"], batch["x"][0, 0], 0.0
        )
        state = {"seen": seen, "count": state["count"] + 1}
        metrics = {"tokens": jnp.int32(len(error)), "mean": error.mean()}
        return jnp.mean(error**2), (metrics, state)

    start = {"seen": jnp.zeros(4), "count": jnp.int32(0)}
    params = {"up": make_params()["up"]}
    whole = run(1, loss_fn=quiet, trainable=params, state=start)
    parts = run(1, loss_fn=quiet, trainable=params, state=start, accumulate=4)
    for name in ("loss", "grad_norm", "mean", "tokens"):
        np.testing.assert_allclose(parts.metrics[name], whole.metrics[name], rtol=1e-5)
    np.testing.assert_allclose(
        parts.trainable["up"], whole.trainable["up"], rtol=1e-5, atol=1e-7
    )
    # The state passes through all four, in order: part i starts at row i.
    np.testing.assert_array_equal(parts.state["seen"], batch_of(0)["x"][:4, 0])
    assert int(parts.state["count"]) == 4


def test_micro_batches_draw_different_noise():
    def drawn(trainable, frozen, state, batch, key):
        del frozen, batch
        noise = jax.random.normal(key)
        state = {"draws": jnp.roll(state["draws"], 1).at[0].set(noise)}
        return trainable["w"] ** 2, ({}, state)

    result = run(
        2,
        loss_fn=drawn,
        trainable={"w": jnp.ones(())},
        state={"draws": jnp.zeros(4)},
        accumulate=2,
    )
    assert len(set(np.asarray(result.state["draws"]).tolist())) == 4


def test_bfloat16_and_state_that_holds_the_parameters():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params())

    def loss(trainable, frozen, state, batch, key):
        value, (metrics, _) = loss_fn(
            trainable, frozen, {"mean": jnp.zeros(2)}, batch, key
        )
        average = jax.tree.map(lambda a, p: 0.5 * a + 0.5 * p, state, trainable)
        return value, (metrics, average)

    # Schedule-free keeps a copy of the parameters: nothing may be donated twice.
    optimizer = optax.contrib.schedule_free_sgd(0.01)
    result = run(
        3, loss_fn=loss, trainable=params, state=params, optimizer=optimizer,
        accumulate=2,
    )  # fmt: skip
    assert result.trainable["up"].dtype == jnp.bfloat16
    assert result.state["up"].dtype == jnp.bfloat16


# ---- metrics, resuming


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, stop):
    whole = run(9, folder=tmp_path / "whole", save_every=2)
    run(stop, folder=tmp_path / "parts", save_every=2)
    parts = run(9, folder=tmp_path / "parts", save_every=2)
    assert_same(
        (whole.trainable, whole.state, whole.opt_state),
        (parts.trainable, parts.state, parts.opt_state),
    )
    rows = rows_of(tmp_path / "parts" / "metrics.jsonl")
    assert rows == rows_of(tmp_path / "whole" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 10))
    np.testing.assert_array_equal(parts.metrics["loss"], whole.metrics["loss"])
    assert sorted(int(p.name) for p in (tmp_path / "parts/checkpoints").iterdir()) == [
        6, 8, 9
    ]  # fmt: skip


def test_a_run_that_is_done_returns_what_it_made(tmp_path):
    first = run(4, folder=tmp_path)
    again = run(4, folder=tmp_path, data=lambda step: 1 / 0)
    assert_same(first.trainable, again.trainable)
    np.testing.assert_array_equal(first.metrics["loss"], again.metrics["loss"])


def test_lines_beyond_the_checkpoint_and_a_torn_line_go(tmp_path):
    run(4, folder=tmp_path)
    path = tmp_path / "metrics.jsonl"
    kept = path.read_text()
    path.write_text(kept + '{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    run(6, folder=tmp_path)
    assert [row["step"] for row in rows_of(path)] == [1, 2, 3, 4, 5, 6]
    assert path.read_text().startswith(kept)


class _Killed(Exception):
    """Stands for a kill: leaves the run between two steps."""


def dying(data, after):
    def batch(step):
        if step == after:
            raise _Killed
        return data(step)

    return batch


def test_death_between_checkpoints_repeats_the_steps(tmp_path):
    whole = run(8, folder=tmp_path / "whole", save_every=3)
    with pytest.raises(_Killed):
        run(8, folder=tmp_path / "a", save_every=3, data=dying(batch_of, 5))
    parts = run(8, folder=tmp_path / "a", save_every=3)
    assert_same(whole.trainable, parts.trainable)
    assert rows_of(tmp_path / "a/metrics.jsonl") == rows_of(
        tmp_path / "whole/metrics.jsonl"
    )


READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


def grain_data():
    rows = np.arange(40, dtype=np.float32).reshape(40, 1)
    return grain.MapDataset.source(rows).seed(5).shuffle().repeat().batch(8)


@pytest.mark.parametrize(
    "make",
    [
        grain_data,
        lambda: grain_data().to_iter_dataset(READ),
        lambda: iter(grain_data().to_iter_dataset(READ)),
        lambda: [grain_data()[t] for t in range(7)],
        lambda: (grain_data()[t] for t in range(7)),
        lambda: lambda step: grain_data()[step],
    ],
    ids=["map", "iter", "iterator", "list", "generator", "function"],
)
def test_every_kind_of_data_goes_on_where_it_stood(tmp_path, make):
    def loss(trainable, frozen, state, batch, key):
        return trainable["w"] ** 2, ({"sum": (batch**2).sum()}, state)

    for steps in (3, 7):
        result = run(
            steps,
            loss_fn=loss,
            trainable={"w": jnp.ones(())},
            data=make(),
            folder=tmp_path,
        )
    expected = [float((grain_data()[t] ** 2).sum()) for t in range(7)]
    np.testing.assert_allclose(result.metrics["sum"], expected, rtol=1e-6)


def test_progress_bar_shows_loss_and_rate(capsys):
    run(3, progress=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "loss " in shown and "tokens/s" in shown


# ---- meshes


def sharded_params(mesh):
    specs = {
        "up": PartitionSpec(None, "model"),
        "bias": PartitionSpec("model"),
        "down": PartitionSpec("model"),
    }
    return {
        name: jax.device_put(value, NamedSharding(mesh, specs[name]))
        for name, value in make_params().items()
    }


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_run_equals_the_plain_one(kind, accumulate):
    plain = run(4, accumulate=accumulate)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        result = run(4, trainable=sharded_params(mesh), accumulate=accumulate)
    np.testing.assert_allclose(result.metrics["loss"], plain.metrics["loss"], rtol=1e-5)
    up = result.trainable["up"]
    assert up.sharding == NamedSharding(mesh, PartitionSpec(None, "model"))
    moments = [
        leaf for leaf in jax.tree.leaves(result.opt_state) if leaf.shape == (4, 16)
    ]
    assert len(moments) == 2
    assert all(m.sharding.is_equivalent_to(up.sharding, 2) for m in moments)


def test_batches_are_split_over_the_devices():
    shapes = []

    def loss(trainable, frozen, state, batch, key):
        jax.debug.inspect_array_sharding(
            batch["x"], callback=lambda s: shapes.append(s.shard_shape((8, 4)))
        )
        return trainable["w"] ** 2 * batch["x"].mean(), ({}, state)

    with jax.set_mesh(mesh_from("data=8")):
        run(1, loss_fn=loss, trainable={"w": jnp.ones(())})
    assert shapes == [(1, 4)]


def test_restores_onto_another_mesh(tmp_path):
    with jax.set_mesh(mesh_from("data=4,model=2")) as mesh:
        mesh = jax.sharding.get_mesh()
        run(2, trainable=sharded_params(mesh), folder=tmp_path)
    with jax.set_mesh(mesh_from("data=2,model=4")):
        mesh = jax.sharding.get_mesh()
        moved = run(4, trainable=sharded_params(mesh), folder=tmp_path)
        assert moved.trainable["up"].sharding.mesh == mesh
    np.testing.assert_allclose(moved.metrics["loss"], run(4).metrics["loss"], rtol=1e-5)


# ---- bad input


@pytest.mark.parametrize(
    "name", ["steps", "accumulate", "save_every", "keep", "log_every"]
)
@pytest.mark.parametrize("value", [0, -3, 1.5, True])
def test_counts_are_named(name, value):
    options = {"steps": 2, name: value}
    # Not through beartype, which would refuse the float before fit does.
    function = getattr(fit, "__wrapped__", fit)
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        function(
            loss_fn,
            make_params(),
            optimizer=OPTIMIZER,
            data=batch_of,
            key=KEY,
            **options,
        )


def test_batch_that_does_not_divide_is_named():
    with pytest.raises(ArgumentError, match=r"batch\['x'\] has 8 rows.*multiple of 3"):
        run(1, accumulate=3)
    with (
        jax.set_mesh(mesh_from("data=8")),
        pytest.raises(ArgumentError, match="multiple of 16"),
    ):
        run(1, accumulate=2)


def test_data_that_end_or_change_shape():
    with pytest.raises(ArgumentError, match="data: it ended after 2 batches"):
        run(3, data=[batch_of(0), batch_of(1)])
    short = jax.tree.map(lambda x: x[:4] if np.ndim(x) else x, batch_of(1))
    with pytest.raises(ArgumentError, match="shapes and types of the first"):
        run(3, data=[batch_of(0), short, batch_of(2)])
    with pytest.raises(ArgumentTypeError, match="data: got int"):
        run(1, data=3)


def test_wrong_kinds_are_named():
    with pytest.raises(ArgumentTypeError, match=r"trainable: \['ids'\] is of int32"):
        run(1, trainable={"ids": jnp.zeros(3, jnp.int32)})
    with pytest.raises(ArgumentTypeError, match="key: expected one typed key"):
        run(1, key=jax.random.PRNGKey(0))
    with pytest.raises(ArgumentTypeError, match="optimizer: got"):
        fit.__wrapped__(
            loss_fn, make_params(), optimizer=3, data=batch_of, steps=1, key=KEY
        )


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda w, s: w, "must return"),
        (lambda w, s: (w * jnp.ones(2), ({}, s)), "a real scalar as loss"),
        (lambda w, s: (w, ({"m": jnp.ones(2)}, s)), "metric 'm' has shape"),
        (lambda w, s: (w, ({"loss": w}, s)), "'loss' has a name that fit uses"),
        (lambda w, s: (w, ({}, s["mean"])), "must have the structure"),
        (lambda w, s: (w, ({}, {"mean": jnp.zeros(3)})), "must have the structure"),
    ],
)
def test_loss_that_breaks_its_contract(result, message):
    def loss(trainable, frozen, state, batch, key):
        return result(trainable["w"], state)

    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        run(1, loss_fn=loss, trainable={"w": jnp.ones(())})


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_loss_that_explodes_stops_before_the_checkpoint(tmp_path, bad):
    def loss(trainable, frozen, state, batch, key):
        w, now = trainable["w"], batch == 3
        if bad == "loss":
            return w * jnp.where(now, jnp.inf, 1.0), ({}, state)
        # The root is 0, its slope infinite.
        return jnp.sqrt(jnp.where(now, 0 * w, w)), ({}, state)

    with pytest.raises(NonFiniteLossError, match=r"update 4 .*the last is of 2"):
        run(
            20,
            loss_fn=loss,
            trainable={"w": jnp.ones(())},
            data=lambda step: np.float32(step),
            folder=tmp_path,
            save_every=2,
            log_every=100,
        )
    assert [row["step"] for row in rows_of(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_folder_of_another_run_is_refused(tmp_path):
    run(2, folder=tmp_path)
    with pytest.raises(ArgumentError, match="key: .*another key"):
        run(4, folder=tmp_path, key=jax.random.key(8))
    with pytest.raises(ArgumentError, match="steps: got 1"):
        run(1, folder=tmp_path)
    wider = {**make_params(), "bias": jnp.zeros(17), "extra": jnp.zeros(1)}
    with pytest.raises(CheckpointError, match=r"(?s)trainable.bias.*trainable.extra"):
        run(4, folder=tmp_path, trainable=wider)
