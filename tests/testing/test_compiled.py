"""What compiled programs say of themselves, and TPUs that are not here."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jtok.errors import UnsupportedImplementationError
from jtok.ops.sharding import mesh_from
from jtok.testing import Collective, argument_copies, collectives, tpu_devices


def test_collectives_of_a_program():
    mesh = mesh_from("data=8")
    rows, whole = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
    gather = jax.jit(lambda x: 2 * x, out_shardings=whole)
    x = jax.device_put(jnp.ones((16, 4)), rows)
    assert collectives(gather.lower(x).compile()) == [
        Collective("all-gather", (16, 4), 16 * 4 * 4)
    ]
    total = jax.jit(jnp.sum).lower(x).compile()
    assert collectives(total) == [Collective("all-reduce", (), 4)]
    assert collectives(jax.jit(lambda x: 2 * x).lower(x).compile()) == []


def test_collectives_of_text():
    lines = """
  %a = (f32[8]{0}, s32[2,3]{1,0}) all-reduce(%x, %y), to_apply=%sum
  %b = ((bf16[4]{0}), bf16[32]{0:T(8,128)(2,1)S(1)}) all-gather-start(%x)
  %c = bf16[32]{0} all-gather-done(%b)
  %d = pred[16]{0} all-to-all(%x), metadata={op_name="all-gather(x)"}
  %e = u4[16]{0} collective-permute(%x)
"""
    assert collectives(lines) == [
        Collective("all-reduce", (8,), 32 + 24),
        Collective("all-gather", (32,), 64),
        Collective("all-to-all", (16,), 16),
        Collective("collective-permute", (16,), 16),
    ]


def test_copies_of_arguments_in_loops():
    lines = """
%body (p: (f32[4,8])) -> (f32[4,8]) {
  %a = f32[8,4]{0,1:T(8,128)} copy(%p)
  %b = f32[8,4]{0,1:T(8,128)S(1)} copy(%p)
  %c = bf16[8,4]{0,1} copy(%p)
  %d = f32[4,8]{1,0} copy-start(%p)
  %e = f32[8,4]{1,0} transpose(%p), dimensions={1,0}
}

ENTRY %main (x: f32[4,8], y: f32[2]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %y = f32[2]{0} parameter(1)
  %once = f32[4,8]{0,1} copy(%x)
}
"""
    assert argument_copies(lines, min_bytes=9) == [("f32", (8, 4))] * 2
    assert argument_copies(lines) == []


def test_without_libtpu_it_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedImplementationError, match="libtpu is not installed"):
        tpu_devices("v5e:2x2")
