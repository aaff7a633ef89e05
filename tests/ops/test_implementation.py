"""One rule for all operations: which implementation runs, and who says so."""

import pytest

from jtok.errors import ArgumentError, UnsupportedImplementationError
from jtok.ops.implementation import choose, target_platform
from jtok.ops.sharding import mesh_from
from tests.ops.topologies import tpu_mesh


def unsupported():
    raise UnsupportedImplementationError("not for these shapes")


BOTH = {"xla": lambda: "xla", "pallas_tpu": lambda: "pallas_tpu"}


@pytest.mark.parametrize(
    "platform, expected", [("cpu", "xla"), ("gpu", "xla"), ("tpu", "pallas_tpu")]
)
def test_none_takes_the_first_that_can_run(platform, expected):
    assert choose(None, BOTH, platform=platform) == expected


def test_none_skips_what_is_unsupported():
    candidates = {**BOTH, "pallas_tpu": unsupported}
    assert choose(None, candidates, platform="tpu") == "xla"


def test_none_skips_nothing_else():
    def broken():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        choose(None, {**BOTH, "pallas_tpu": broken}, platform="tpu")


def test_a_name_is_never_replaced():
    candidates = {**BOTH, "pallas_tpu": unsupported}
    with pytest.raises(UnsupportedImplementationError, match="not for these shapes"):
        choose("pallas_tpu", candidates, platform="tpu")
    assert choose("xla", BOTH, platform="tpu") == "xla"


def test_only_a_named_kernel_is_interpreted():
    assert choose("pallas_tpu", BOTH, platform="cpu", interpret=True) == "pallas_tpu"
    assert choose(None, BOTH, platform="cpu", interpret=True) == "xla"


def test_unknown_names_are_refused():
    with pytest.raises(ArgumentError, match="implementation: got 'mosaic'"):
        choose("mosaic", BOTH, platform="cpu")
    with pytest.raises(ArgumentError, match="platform: got 'tpuv5'"):
        target_platform("tpuv5")


def test_the_platform_is_the_given_one_then_the_mesh_s_then_the_default():
    mesh = tpu_mesh("v5e:2x2", 2)
    assert target_platform() == "cpu"
    assert target_platform(mesh=mesh_from("data=-1")) == "cpu"
    assert target_platform(mesh=mesh) == "tpu"
    assert target_platform("cuda", mesh) == "gpu"
