"""TPU topologies to compile for, on a machine without a TPU."""

import functools
import warnings

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from jtok.errors import UnsupportedImplementationError
from jtok.testing import tpu_devices

__all__ = ["NAMES", "one_device", "topology", "tpu_mesh"]

NAMES = ("v5e:2x2", "v5e:16x16", "v5p:2x2x1", "v6e:2x2")


def topology(name: str):
    """The devices of a topology; skips the test where libtpu is not installed.

    One description serves the whole process. Call it in the test itself.
    """
    # What was compiled without a TPU cannot be read from JAX's cache without one: it is
    # compiled again, and nothing else is lost. The filter ends with the test.
    unread = "Error reading persistent compilation cache entry.*PjRtCompiler"
    warnings.filterwarnings("ignore", message=unread)
    try:
        return _devices(name)
    except UnsupportedImplementationError:
        pytest.skip("libtpu is not installed")


_devices = functools.cache(tpu_devices)


def tpu_mesh(name: str, model: int) -> Mesh:
    """A mesh over all devices of a topology: "data" by `model`."""
    grid = np.array(topology(name)).reshape(-1, model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def one_device(name: str) -> jax.sharding.Sharding:
    """Sharding on a topology's first device."""
    return jax.sharding.SingleDeviceSharding(topology(name)[0])
