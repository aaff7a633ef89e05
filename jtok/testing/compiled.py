"""What a compiled program does between devices, and devices to compile for."""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax

from jtok.errors import UnsupportedImplementationError

__all__ = ["Collective", "argument_copies", "collectives", "tpu_devices"]

_KINDS = (
    "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|"
    "collective-broadcast"
)
_LINE = re.compile(rf"= (.*?) ({_KINDS})(?:-start)?\(", re.MULTILINE)
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")

_TYPE = r"(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]"
_PARAMETER = re.compile(rf"= {_TYPE}\S* parameter\(")
_COPY = re.compile(rf"= {_TYPE}(\S*) (?:copy|transpose)\(")


class Collective(NamedTuple):
    """One exchange between devices, as it stands in a compiled program.

    Attributes:
      kind: "all-gather", "all-reduce" and so on.
      shape: of its largest array on one device.
      num_bytes: of all its arrays on one device.
    """

    kind: str
    shape: tuple[int, ...]
    num_bytes: int


def collectives(compiled: Any) -> list[Collective]:
    """Lists the exchanges of a compiled program; those of a loop count once.

    Args:
      compiled: `jax.stages.Compiled`, or its text.

    Returns:
      The collectives, in the order of the text.

    Example:
      >>> collectives("%a = f32[8,4]{1,0} all-gather(%b), dimensions={0}")
      [Collective(kind='all-gather', shape=(8, 4), num_bytes=128)]
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    found = []
    for result, kind in _LINE.findall(text):
        arrays = [_array(*match) for match in _ARRAY.findall(result)]
        if not arrays:
            continue
        size, shape = max(arrays)
        # An exchange that starts here and ends below lists what it sends, too.
        whole = size if result.startswith("((") else sum(n for n, _ in arrays)
        found.append(Collective(kind, shape, whole))
    return found


def argument_copies(
    compiled: Any, *, min_bytes: int = 2**16
) -> list[tuple[str, tuple[int, ...]]]:
    """Lists the copies of whole arguments that the loops of a program make.

    A copy has the type and the extents of an argument, in any order. One outside of
    all loops is made once, and not listed, and neither is one into on-chip memory.

    Args:
      compiled: `jax.stages.Compiled`, or its text.
      min_bytes: smaller arguments do not count.

    Returns:
      Type and shape of every copy.

    Example:
      >>> argument_copies(jax.jit(lambda x: 2 * x).lower(1.0).compile())
      []
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    start = text.index("\nENTRY ")
    end = text.find("\n}", start)
    entry, loops = text[start:end], text[:start] + text[end:]
    arguments = set()
    for name, bits, sizes in _PARAMETER.findall(entry):
        num_bytes, shape = _array(name, bits, sizes)
        if num_bytes >= min_bytes:
            arguments.add((name, tuple(sorted(shape))))
    found = []
    for name, bits, sizes, layout in _COPY.findall(loops):
        shape = _array(name, bits, sizes)[1]
        if (name, tuple(sorted(shape))) in arguments and "S(1)" not in layout:
            found.append((name, shape))
    return found


def _array(name: str, bits: str, sizes: str) -> tuple[int, tuple[int, ...]]:
    shape = tuple(int(size) for size in sizes.split(",") if size)
    width = 8 if name == "pred" else int(bits)
    return math.prod(shape) * max(width, 8) // 8, shape


def tpu_devices(topology: str) -> list[jax.Device]:
    """Devices of a TPU that need not be here, to compile for.

    Args:
      topology: chip and shape, such as "v5e:2x2" or "v5p:2x2x1".

    Returns:
      The devices, for a `jax.sharding.Mesh`.

    Raises:
      UnsupportedImplementationError: libtpu is not installed.

    Example:
      >>> tpu_devices("v5e:2x2")  # doctest: +SKIP
      [...]
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UnsupportedImplementationError(
            f"topology: got {topology!r}, but libtpu is not installed; "
            "it compiles for TPUs on machines without one."
        )
    from jax.experimental import topologies

    # No chip is touched, so that other programs may hold the library too.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    return list(described.devices)
