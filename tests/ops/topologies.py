"""TPU topologies to compile for, on a machine without a TPU."""

import functools
import importlib.util
import os

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

__all__ = ["NAMES", "one_device", "topology", "tpu_mesh"]

NAMES = ("v5e:2x2", "v5e:16x16", "v5p:2x2x1", "v6e:2x2")


@functools.cache
def topology(name: str):
    """The devices of a topology; skips the test where libtpu is not installed.

    One description serves the whole process. Nothing is asked of a metadata server,
    and other processes may hold libtpu at the same time.
    """
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def tpu_mesh(name: str, model: int) -> Mesh:
    """A mesh over all devices of a topology: "data" by `model`."""
    grid = np.array(topology(name)).reshape(-1, model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def one_device(name: str) -> jax.sharding.Sharding:
    """Sharding on a topology's first device."""
    return jax.sharding.SingleDeviceSharding(topology(name)[0])
