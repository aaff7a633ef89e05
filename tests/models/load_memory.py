"""Loads a checkpoint and tells the memory it held, for `test_load_memory`.

Arguments: a folder, a dtype, and how many simulated devices. Prints the anonymous
memory before (with JAX started) and the bytes that the devices hold after; whoever
started this watches the peak.
"""

import pathlib
import sys

import jax


def anonymous_bytes(pid: str = "self") -> int:
    """Memory of a process that no file backs; 0 where it is gone."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return 1024 * int(lines[0].split()[1]) if lines else 0


def main(folder: str, dtype: str, devices: str) -> None:
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.devices()
    print(anonymous_bytes(), flush=True)
    from jtok import models
    from jtok.ops.sharding import mesh_from

    if devices == "1":
        model = models.load(folder, dtype=dtype)
    else:
        with jax.set_mesh(mesh_from("data=2,model=4")):
            model = models.load(folder, dtype=dtype)
    leaves = jax.tree.leaves(model.params)
    shards = [s for leaf in leaves for s in leaf.addressable_shards]
    print(sum(shard.data.nbytes for shard in shards), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
