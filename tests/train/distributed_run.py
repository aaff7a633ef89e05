"""One process of several: `distributed_run.py JOB FOLDER PORT I N STEPS`."""

import json
import pathlib
import sys

import jax


def train(folder: pathlib.Path, steps: int) -> dict:
    """Trains a matrix on `data`, to `steps`."""
    import jax.numpy as jnp
    import numpy as np

    from jtok.ops.sharding import mesh_from
    from jtok.train import adamw, fit, packed_batches

    def loss_fn(trainable, frozen, state, batch, key):
        hot = jax.nn.one_hot(batch["tokens"], 32)
        error = hot[:, :-1] @ trainable["w"] - hot[:, 1:]
        return jnp.mean(error**2), ({"tokens": batch["mask"].sum()}, state)

    ids = np.random.default_rng(0).integers(0, 32, 400).astype(np.int32)
    data = packed_batches(ids, length=8, batch_size=8, seed=1, eos_id=0)
    with jax.set_mesh(mesh_from("data=-1")):
        result = fit(
            loss_fn,
            {"w": np.full((32, 32), 0.1, np.float32)},
            optimizer=adamw(1e-2),
            data=data,
            steps=steps,
            key=jax.random.key(0),
            folder=folder,
            save_every=2,
            progress=False,
        )
    total = float(np.asarray(result.trainable["w"], np.float64).sum())
    return {"sum": total, "losses": list(result.metrics["loss"])}


def decode(folder: pathlib.Path, steps: int) -> dict:
    """Loads, decodes, trains and saves a model that no process holds whole."""
    import numpy as np

    from jtok import decode, models
    from jtok.errors import WriteError
    from jtok.ops import Tree
    from jtok.ops.sharding import mesh_from, to_host
    from jtok.train import adamw, fit, lm_loss

    paths = [(0,), (1,), (2,), (0, 0), (0, 1), (0, 0, 0)]
    with jax.set_mesh(mesh_from("data=2,model=2")):
        model = models.load(folder / "model")
        embed = model.params["embed"]["tokens"]
        drafter = decode.token_recycling(4, Tree.from_paths(paths))
        first = decode.generate(
            model, [[1, 2, 3], [4], [5, 6]], max_new_tokens=12,
            temperature=[1.0, 0.0, 0.6], drafter=drafter, sync_every=4,
        )  # fmt: skip
        again = decode.generate(
            model, [1, 2, 3], max_new_tokens=12, drafter=drafter,
            drafter_state=first.drafter_state,
        )  # fmt: skip
        rows = np.random.default_rng(0).integers(0, 96, (2, 4, 9)).astype(np.int32)
        mine = slice(None) if jax.process_count() == 1 else _own_rows(4)
        result = fit(
            lm_loss(model), model.params, optimizer=adamw(1e-3), steps=steps,
            data=lambda step: {"tokens": rows[step % 2][mine]}, progress=False,
            key=jax.random.key(0), folder=folder / "training", save_every=2,
        )  # fmt: skip
        trained = model.replace(params=result.trainable)
        models.save(trained, folder / "trained")
        again_loaded = models.load(folder / "trained")
        made = models.init(model.config, jax.random.key(1))
        (folder / "file").touch()
        refused = ""
        try:
            models.save(trained, folder / "file")
        except WriteError as error:
            refused = str(error)
    kept = to_host(again_loaded.params["layers"][1]["query"]["kernel"])
    wanted = to_host(result.trainable["layers"][1]["query"]["kernel"])
    return {
        "shard": list(embed.sharding.shard_shape(embed.shape)),
        "whole": embed.is_fully_addressable,
        "tokens": [row.tolist() for row in first.tokens],
        "again": again.tokens.tolist(),
        "calls": [first.stats.calls, again.stats.calls],
        "losses": list(result.metrics["loss"]),
        "kept": bool((kept == wanted).all()),
        "made": float(np.abs(to_host(made.params["embed"]["tokens"])).sum()),
        "refused": refused,
    }


def _own_rows(count: int) -> slice:
    """Rows of the batch that lie on the devices of this process."""
    share = count // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def main() -> None:
    job, place, port, index, count, steps = sys.argv[1:]
    folder = pathlib.Path(place)
    if int(count) > 1:
        jax.distributed.initialize(
            f"localhost:{port}", int(count), int(index), initialization_timeout=60
        )
    out = {"train": train, "decode": decode}[job](folder, int(steps))
    (folder / f"out-{index}.json").write_text(json.dumps(out))


if __name__ == "__main__":
    main()
