"""Which kernel an operation runs: chosen in Python, for the platform that compiles.

Not with `jax.lax.platform_dependent`, which lowers every branch for every platform.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from jtok.errors import UnsupportedImplementationError, check
from jtok.ops.sharding import AnyMesh, current_mesh

__all__ = ["IMPLEMENTATIONS", "choose", "target_platform"]

T = TypeVar("T")

# In the order that None tries them, with the platform that each needs.
IMPLEMENTATIONS: Mapping[str, str | None] = {
    "pallas_tpu": "tpu",
    "pallas_gpu": "gpu",
    "xla": None,
}

_PLATFORMS = {"cpu": "cpu", "tpu": "tpu", "gpu": "gpu", "cuda": "gpu", "rocm": "gpu"}


def target_platform(platform: str | None = None, mesh: AnyMesh | None = None) -> str:
    """The platform that code is traced for: "cpu", "gpu" or "tpu".

    Args:
      platform: what the caller was given; wins where it is not None.
      mesh: None means the mesh of `jax.set_mesh`; a mesh says what its devices are,
        also where none of them is attached (ahead-of-time compilation).

    Returns:
      That platform, else that of the mesh, else JAX's default backend.

    Raises:
      ArgumentError: an unknown platform.

    Example:
      >>> target_platform("cuda")
      'gpu'
    """
    if platform is not None:
        check(platform in _PLATFORMS, "platform", platform, f"one of {[*_PLATFORMS]}")
        return _PLATFORMS[platform]
    mesh = current_mesh(mesh)
    device = None if mesh is None else mesh.abstract_mesh.abstract_device
    named = getattr(device, "platform", None)
    return _PLATFORMS.get(named or jax.default_backend(), "cpu")


def choose(
    implementation: str | None,
    candidates: Mapping[str, Callable[[], T]],
    *,
    platform: str,
    interpret: Any = False,
) -> T:
    """Runs the named implementation, or the first one that can run.

    Args:
      implementation: a key of `IMPLEMENTATIONS`; None tries them in its order and goes
        on only where one raises `UnsupportedImplementationError`.
      candidates: what to run, by name. "xla" is always there; a kernel that is
        missing counts as unsupported.
      platform: what is compiled for (see `target_platform`).
      interpret: true where kernels are interpreted, so that they run on any platform.

    Returns:
      What the candidate returned.

    Raises:
      ArgumentError: an unknown name.
      UnsupportedImplementationError: the named implementation cannot run, and why.

    Example:
      >>> choose(None, {"xla": lambda: 1, "pallas_tpu": lambda: 2}, platform="tpu")
      2
    """
    if implementation is not None:
        known = implementation in IMPLEMENTATIONS
        expected = f"None or one of {[*IMPLEMENTATIONS]}"
        check(known, "implementation", implementation, expected)
        return _run(implementation, candidates, platform, bool(interpret))
    for name in IMPLEMENTATIONS:
        if name == "xla":
            continue
        try:
            # Interpretation is slow: only who names a kernel gets it interpreted.
            return _run(name, candidates, platform, False)
        except UnsupportedImplementationError:
            continue
    return _run("xla", candidates, platform, False)


def _run(
    name: str, candidates: Mapping[str, Callable[[], T]], platform: str, anywhere: bool
) -> T:
    needed = IMPLEMENTATIONS[name]
    if name not in candidates:
        reason = "this operation has no such kernel"
        if name == "pallas_gpu":
            reason = "XLA is the GPU path (Pallas's Triton route is deprecated)"
        raise UnsupportedImplementationError(
            f"implementation: got {name!r}, which cannot run: {reason}."
        )
    if needed is not None and needed != platform and not anywhere:
        raise UnsupportedImplementationError(
            f"implementation: got {name!r}, which needs the platform {needed!r} and "
            f"not {platform!r}; pass interpret=True to interpret it, or platform="
            f"{needed!r} to compile ahead of time."
        )
    return candidates[name]()
