"""One process of several that train: `distributed_run.py FOLDER PORT I N STEPS`."""

import json
import pathlib
import sys

import jax


def main(folder: pathlib.Path, port: str, index: int, count: int, steps: int) -> None:
    """Trains to `steps`; process 0 writes what it has to `out.json`."""
    if count > 1:
        jax.distributed.initialize(f"localhost:{port}", count, index)
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
    if index == 0:
        total = float(np.asarray(result.trainable["w"], np.float64).sum())
        out = {"sum": total, "losses": list(result.metrics["loss"])}
        (folder / "out.json").write_text(json.dumps(out))


if __name__ == "__main__":
    place, port, index, count, steps = sys.argv[1:]
    main(pathlib.Path(place), port, int(index), int(count), int(steps))
