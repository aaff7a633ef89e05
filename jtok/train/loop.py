"""`fit`: the training loop. It knows no method: the loss function does."""

import contextlib
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jtok.errors import ArgumentError, ArgumentTypeError, JtokError, check
from jtok.ops.sharding import (
    auto_mesh,
    current_mesh,
    partition_spec,
    sharding_for,
)
from jtok.train._source import Source
from jtok.train._step import Carry, compiled_step, opt_shardings
from jtok.train.checkpoints import Checkpoints
from jtok.train.metrics import MetricsLog

__all__ = ["FitResult", "NonFiniteLossError", "fit"]


class NonFiniteLossError(JtokError, ArithmeticError):
    """The loss or the norm of its gradient became infinite or not a number."""


@flax.struct.dataclass(kw_only=True)
class FitResult:
    """What training gives.

    Attributes:
      trainable: the trained tree.
      state: the loss's state after the last step.
      opt_state: the optimizer's state.
      step: updates done, those of earlier runs included.
      metrics: name -> float64 `[steps]`, with `step` (updates done, from 1), `loss`
        (before that update), `grad_norm`, `seconds` and the loss's own metrics.

    Example:
      >>> FitResult(trainable={}, state=None, opt_state=(), step=0, metrics={}).step
      0
    """

    trainable: Any
    state: Any
    opt_state: Any
    step: int = flax.struct.field(pytree_node=False)
    metrics: dict[str, np.ndarray] = flax.struct.field(pytree_node=False)


def fit(
    loss_fn: Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], Any]]],
    trainable: Any,
    *,
    frozen: Any = None,
    state: Any = None,
    optimizer: optax.GradientTransformation,
    data: Any,
    steps: int,
    key: jax.Array,
    accumulate: int = 1,
    folder: str | os.PathLike[str] | None = None,
    save_every: int = 1000,
    keep: int = 3,
    log_every: int = 10,
    progress: bool = True,
    metrics_file: str | os.PathLike[str] | None = None,
) -> FitResult:
    """Trains `trainable` to make a loss small; resumes from `folder` after a kill.

    Update t (0-based) sees batch t and the key `fold_in(key, t)`, so a run that was
    killed and called again ends with the same bits as one that was not (same machine,
    mesh and versions). Nothing waits for the device between log points. On a mesh
    (`jax.set_mesh`) batches are split over the axis of the rule `"batch"`, arrays keep
    the shardings that they come with, and all others are copied to every device; with
    several processes each gives its own rows of the batch. Call it outside `jit`.

    The compiled step is reused by later calls with the same `loss_fn`, `optimizer` and
    `accumulate` objects.

    Args:
      loss_fn: `(trainable, frozen, state, batch, key) -> (loss, (metrics, state))`;
        metrics is a dict of scalars. `tokens` among them is a count: it is summed over
        micro-batches, others are averaged, and the progress bar shows its rate.
      trainable: pytree of floating arrays. It is copied: yours stays valid.
      frozen: pytree of arrays that do not train, such as a teacher.
      state: pytree of arrays that the loss updates itself: averages, codebooks.
      optimizer: an Optax transformation, as from `jtok.train.adamw`.
      data: a Grain dataset or iterator, any iterable of batches, or a function from a
        step (0-based) to its batch. A batch is a pytree; its arrays share the leading
        batch axis, and shapes stay the same. An iterable without `get_state` must
        start from its first batch when a run is resumed; those used are skipped.
      steps: updates in all, earlier runs included.
      key: typed key of the run; consumed.
      accumulate: micro-batches a step; part i is rows `i::accumulate`. Gradients are
        their plain mean, in float32.
      folder: for checkpoints and metrics; None keeps nothing.
      save_every: updates between checkpoints; the end is always one.
      keep: newest checkpoints to keep.
      log_every: updates between reads of the metrics.
      progress: show a bar on stderr (process 0).
      metrics_file: JSONL, one line a step, replaced where a run starts anew; None
        means `folder/metrics.jsonl`.

    Returns:
      `FitResult`; its arrays are new.

    Raises:
      ArgumentError: a number out of range, data that end early or do not divide into
        micro-batches and devices, a `key` that `folder` was not started with, or a
        loss that breaks its contract.
      ArgumentTypeError: `trainable` holds something else than floating arrays, or an
        argument has the wrong kind.
      NonFiniteLossError: loss or gradient stopped being finite; raised at the next log
        point, which is before the next checkpoint.
      CheckpointError: `folder` holds a damaged checkpoint or one of another model.
      WriteError: `folder` or `metrics_file` cannot be written.

    Example:
      >>> import optax
      >>> def loss_fn(trainable, frozen, state, batch, key):
      ...     return jnp.mean((trainable["w"] * batch - 1) ** 2), ({}, state)
      >>> result = fit(loss_fn, {"w": jnp.zeros(())}, optimizer=optax.sgd(0.1),
      ...     data=lambda step: jnp.ones(4), steps=50, key=jax.random.key(0),
      ...     progress=False)
      >>> round(float(result.trainable["w"]), 3)
      1.0
    """
    counts = {
        "steps": steps,
        "accumulate": accumulate,
        "save_every": save_every,
        "keep": keep,
        "log_every": log_every,
    }
    _check_arguments(counts, loss_fn, trainable, optimizer, key)
    given = current_mesh()
    mesh = auto_mesh(given)
    if isinstance(mesh, AbstractMesh):
        raise ArgumentError("fit: called while tracing, expected outside jit.")
    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        run = _Run(
            loss_fn, optimizer, key, Source(data), accumulate, log_every, steps, mesh
        )
        with contextlib.closing(run.source), contextlib.ExitStack() as stack:
            carry = run.place_carry(trainable, state)
            checkpoints = None
            if folder is not None:
                place = pathlib.Path(folder).expanduser()
                metrics_file = metrics_file or place / "metrics.jsonl"
                checkpoints = Checkpoints(place / "checkpoints", keep=keep)
                stack.enter_context(checkpoints)
                carry = run.resume(carry, checkpoints)
            run.open_log(metrics_file, progress, stack)
            carry = run.loop(carry, _onto(frozen, mesh), checkpoints, save_every)
    return FitResult(
        trainable=_onto(carry.trainable, given),
        state=_onto(carry.state, given),
        opt_state=_onto(carry.opt_state, given),
        step=steps,
        metrics=run.log.columns(),
    )


def _check_arguments(
    counts: dict[str, Any], loss_fn: Any, trainable: Any, optimizer: Any, key: Any
) -> None:
    for name, value in counts.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        check(whole and value >= 1, name, value, "a whole number >= 1")
    if not callable(loss_fn):
        raise ArgumentTypeError(f"loss_fn: got {loss_fn!r}, expected a function.")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ArgumentTypeError(
            f"optimizer: got {type(optimizer).__name__}, expected an Optax "
            "transformation."
        )
    typed = isinstance(key, jax.Array)
    typed = typed and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape != ():
        raise ArgumentTypeError("key: expected one typed key, as jax.random.key(0).")
    leaves = jax.tree_util.tree_leaves_with_path(trainable)
    check(bool(leaves), "trainable", trainable, "at least one array")
    for path, leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = jax.tree_util.keystr(path)
            raise ArgumentTypeError(
                f"trainable: {name} is of {jnp.result_type(leaf)}, expected floating "
                "arrays; give what does not train as frozen or state."
            )


class _Run:
    """One call of `fit`: what stays the same between its steps."""

    log: MetricsLog

    def __init__(
        self,
        loss_fn: Callable[..., Any],
        optimizer: optax.GradientTransformation,
        key: jax.Array,
        source: Source,
        accumulate: int,
        log_every: int,
        steps: int,
        mesh: Mesh | None,
    ) -> None:
        self.loss_fn, self.optimizer, self.key = loss_fn, optimizer, key
        self.source, self.accumulate = source, accumulate
        self.log_every, self.steps, self.mesh = log_every, steps, mesh
        self.start = 0
        self._pending: list[dict[str, jax.Array]] = []
        self._batch_kind: Any = None
        self._bar: Any = None
        self._began = self._flushed = time.perf_counter()

    # ---- start

    def place_carry(self, trainable: Any, state: Any) -> Carry:
        """Copies, so that the caller's arrays are not the donated ones."""
        trainable = jax.tree.map(self._copied, trainable)
        state = jax.tree.map(self._copied, state)
        init = jax.jit(
            # Without the barrier a state that holds the parameters would share their
            # buffers, and no buffer can be donated twice.
            lambda tree: self.optimizer.init(jax.lax.optimization_barrier(tree)),
            out_shardings=opt_shardings(self.optimizer, trainable, self.mesh),
        )
        step = self._copied(np.zeros((), np.int32))
        return Carry(trainable, init(trainable), state, step)

    def _copied(self, leaf: Any) -> jax.Array:
        if not isinstance(leaf, jax.Array):
            leaf = np.asarray(leaf, jnp.result_type(leaf))
        if self.mesh is None:
            return jnp.copy(leaf)
        return jnp.copy(jax.device_put(leaf, _sharding_on(leaf, self.mesh)))

    def resume(self, carry: Carry, checkpoints: Checkpoints) -> Carry:
        """The newest checkpoint's carry, with data and step to match; or `carry`."""
        step = checkpoints.latest()
        if step is None:
            return carry
        more = f"at least the {step} updates that {str(checkpoints.folder)!r} holds"
        check(step <= self.steps, "steps", self.steps, more)
        tree, position = checkpoints.restore(step, _saved(carry))
        if position["key"] != _key_words(self.key):
            raise ArgumentError(
                f"key: {str(checkpoints.folder)!r} was started with another key; give "
                "that one, or another folder."
            )
        self.source.restore(position["data"])
        self.start = step
        step_array = self._copied(np.asarray(step, np.int32))
        return Carry(**tree, step=step_array)

    def open_log(
        self,
        path: str | os.PathLike[str] | None,
        progress: bool,
        stack: contextlib.ExitStack,
    ) -> None:
        """Opens the metrics file and the bar; only process 0 has either."""
        first = jax.process_index() == 0
        self.log = MetricsLog(path if first else None, step=self.start)
        past = self.log.columns().get("seconds", np.zeros(0))
        now = time.perf_counter()
        self._flushed, self._began = now, now - (past[-1] if past.size else 0.0)
        if progress and first:
            import tqdm

            self._bar = stack.enter_context(
                tqdm.tqdm(
                    total=self.steps,
                    initial=self.start,
                    unit="step",
                    # A file or a CI log gets a line now and then, not ten a second.
                    mininterval=0.5 if sys.stderr.isatty() else 30.0,
                    dynamic_ncols=True,
                )
            )

    # ---- the loop

    def loop(
        self,
        carry: Carry,
        frozen: Any,
        checkpoints: Checkpoints | None,
        save_every: int,
    ) -> Carry:
        shardings = None
        if self.mesh is not None:
            whole = NamedSharding(self.mesh, PartitionSpec())
            shardings = (jax.tree.map(lambda leaf: leaf.sharding, carry), whole)
        step = compiled_step(self.loss_fn, self.optimizer, self.accumulate, shardings)
        for done in range(self.start + 1, self.steps + 1):
            batch = self._placed(self.source.next())
            carry, row = step(carry, frozen, batch, self.key)
            self._pending.append(row)
            last = done == self.steps
            save = checkpoints is not None and (done % save_every == 0 or last)
            if done % self.log_every == 0 or last or save:
                self._flush(done, checkpoints)
            if save and checkpoints is not None:
                self.log.sync()
                checkpoints.save(done, _saved(carry), self._position())
        return carry

    def _position(self) -> dict[str, Any]:
        return {"key": _key_words(self.key), "data": self.source.position()}

    def _flush(self, done: int, checkpoints: Checkpoints | None) -> None:
        """Reads the metrics since the last time, which waits for the device."""
        fetched = jax.device_get(self._pending)
        now = time.perf_counter()
        rows: list[dict[str, Any]] = []
        for offset, values in enumerate(fetched):
            row: dict[str, Any] = {"step": done - len(fetched) + 1 + offset}
            for name in sorted(values, key=lambda name: (name != "loss", name)):
                row[name] = np.asarray(values[name]).item()
            if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                self.log.append(rows)
                raise _non_finite(row, checkpoints)
            row["seconds"] = round(now - self._began, 3)
            rows.append(row)
        self.log.append(rows)
        self._show(rows, now)
        self._pending, self._flushed = [], now

    def _show(self, rows: list[dict[str, Any]], now: float) -> None:
        if self._bar is None:
            return
        text = f"loss {rows[-1]['loss']:.4f}"
        if "tokens" in rows[-1]:
            rate = sum(row["tokens"] for row in rows) / max(now - self._flushed, 1e-9)
            text += f", {rate:,.0f} tokens/s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(len(rows))

    # ---- batches

    def _placed(self, batch: Any) -> Any:
        """The batch on the mesh, after a look at its shapes."""
        leaves, treedef = jax.tree.flatten(batch)
        kind = (treedef, [(np.shape(x), getattr(x, "dtype", type(x))) for x in leaves])
        if self._batch_kind is None:
            self._check_batch(batch)
            self._batch_kind = kind
        elif kind != self._batch_kind:
            raise ArgumentError(
                "data: every batch must have the shapes and types of the first.\n"
                f"  got   {kind}\n  first {self._batch_kind}"
            )
        if self.mesh is None:
            return batch
        return jax.tree.unflatten(treedef, [self._spread(leaf) for leaf in leaves])

    def _spread(self, leaf: Any) -> jax.Array:
        names = ("batch",) + (None,) * (np.ndim(leaf) - 1)
        sharding = sharding_for(names[: np.ndim(leaf)], self.mesh)
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    def _check_batch(self, batch: Any) -> None:
        parts = self.accumulate
        if self.mesh is not None:
            rule = partition_spec(("batch",), self.mesh)[0] or ()
            axes = (rule,) if isinstance(rule, str) else rule
            devices = math.prod(self.mesh.shape[axis] for axis in axes)
            parts *= max(1, devices // jax.process_count())
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if np.ndim(leaf) and np.shape(leaf)[0] % parts:
                raise ArgumentError(
                    f"data: batch{jax.tree_util.keystr(path)} has {np.shape(leaf)[0]} "
                    f"rows, expected a multiple of {parts}: accumulate="
                    f"{self.accumulate} micro-batches on {parts // self.accumulate} "
                    "devices of this process."
                )


def _saved(carry: Carry) -> dict[str, Any]:
    tree = carry._asdict()
    del tree["step"]  # the checkpoint's name
    return tree


def _key_words(key: jax.Array) -> list[int]:
    return np.asarray(jax.random.key_data(key)).reshape(-1).tolist()


def _non_finite(
    row: dict[str, Any], checkpoints: Checkpoints | None
) -> NonFiniteLossError:
    latest = None if checkpoints is None else checkpoints.latest()
    where = "there is no checkpoint" if latest is None else f"the last is of {latest}"
    return NonFiniteLossError(
        f"loss_fn: at update {row['step']} the loss is {row['loss']} and the norm of "
        f"its gradient {row['grad_norm']}; {where}. Lower the learning rate, clip the "
        "gradient, or look at the batch of that update."
    )


# ---- meshes


def _sharding_on(leaf: Any, mesh: Mesh) -> NamedSharding:
    """The leaf's own layout where it has one on these devices, else on all of them."""
    own = getattr(leaf, "sharding", None)
    if isinstance(own, NamedSharding) and own.mesh.axis_names == mesh.axis_names:
        return NamedSharding(mesh, own.spec)
    return NamedSharding(mesh, PartitionSpec())


def _onto(tree: Any, mesh: Any) -> Any:
    """The same arrays as members of this mesh; axis kinds are all that changes."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: jax.device_put(x, _sharding_on(x, mesh)), tree)
