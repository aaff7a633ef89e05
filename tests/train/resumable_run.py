"""A small training for a test to kill and restart: `python resumable_run.py FOLDER`."""

import pathlib
import sys
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np

from jtok.train import adamw, fit, schedule

STEPS, SAVE_EVERY = 90, 10


class _Slow:
    """Random access batches that take a while, so that kills find the loop running."""

    def __len__(self):
        return STEPS

    def __getitem__(self, step):
        time.sleep(0.02)
        return np.random.default_rng(step).normal(size=(4, 512)).astype(np.float32)


def loss_fn(trainable, frozen, state, batch, key):
    del frozen
    noisy = batch + 0.1 * jax.random.normal(key, batch.shape)
    hidden = jnp.tanh(noisy @ trainable["encode"])
    error = hidden @ trainable["decode"] - batch
    state = 0.9 * state + 0.1 * jnp.mean(hidden)
    return jnp.mean(error**2), ({"average": state}, state)


def main(folder: pathlib.Path) -> None:
    """Trains, and writes what came out to `final.npz`."""
    keys = jax.random.split(jax.random.key(1), 2)
    # Some 25 MB with the moments: a save takes long enough to be caught.
    params = {
        "encode": jax.random.normal(keys[0], (512, 2048)) * 0.05,
        "decode": jax.random.normal(keys[1], (2048, 512)) * 0.02,
    }
    result = fit(
        loss_fn,
        params,
        state=jnp.zeros(()),
        optimizer=adamw(schedule("cosine", peak=1e-3, steps=STEPS, warmup=5)),
        data=grain.MapDataset.source(_Slow()),
        steps=STEPS,
        key=jax.random.key(2),
        folder=folder,
        save_every=SAVE_EVERY,
        keep=2,
        log_every=4,
        progress=False,
    )
    tree = (result.trainable, result.state, result.opt_state)
    leaves = jax.tree.leaves(tree)
    np.savez(folder / "final.npz", *[np.asarray(leaf) for leaf in leaves])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
