"""Loading takes little more memory than what it loads."""

import json
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest

from jtok import models
from jtok.models import FAMILIES, storage
from jtok.testing import tiny_config
from tests import source
from tests.models.load_memory import anonymous_bytes

SIZES = {
    "vocab_size": 16384,
    "hidden_size": 1024,
    "num_hidden_layers": 17,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 3584,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random llama of 1 GB in four files, in float32 and half of it in bfloat16."""
    fields = {**FAMILIES["llama"].write(tiny_config()), **SIZES}
    config = models.config_from(fields)
    made = {}
    for dtype, kind in (("float32", np.float32), ("bfloat16", ml_dtypes.bfloat16)):
        place = tmp_path_factory.mktemp(dtype)
        (place / "config.json").write_text(json.dumps({**fields, "dtype": dtype}))
        limit = 1.2e9 * np.dtype(kind).itemsize / 4 / 4
        storage.write_tensors(place, tensors(config, kind), max_shard_bytes=limit)
        assert len(list(place.glob("*.safetensors"))) == 4
        made[dtype] = place
    return made


def tensors(config, kind):
    """Names and random tensors, one after the other."""
    rng = np.random.default_rng(0)
    width, mlp = config.width, config.mlp_width
    kv = config.num_kv_heads * config.head_dim
    shapes = {"model.embed_tokens.weight": (config.vocab_size, width)}
    for i in range(config.num_layers):
        layer = f"model.layers.{i}"
        for name, rows, columns in (
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", kv, width),
            ("self_attn.v_proj", kv, width),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", mlp, width),
            ("mlp.up_proj", mlp, width),
            ("mlp.down_proj", width, mlp),
        ):
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{name}.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    shapes["lm_head.weight"] = (config.vocab_size, width)
    for name, shape in shapes.items():
        yield name, rng.random(shape, np.float32).astype(kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stored, wanted, devices",
    [
        ("float32", "float32", 1),
        ("float32", "float32", 8),
        ("bfloat16", "bfloat16", 1),
        ("bfloat16", "float32", 8),
        ("float32", "bfloat16", 8),
    ],
)
def test_loading_holds_little_more_than_the_model(folders, stored, wanted, devices):
    arguments = [folders[stored], wanted, devices]
    command = [sys.executable, "-m", "tests.models.load_memory", *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=source.ROOT, stdout=pipe, text=True) as child:
        before, peak = int(child.stdout.readline()), 0
        while child.poll() is None:
            peak = max(peak, anonymous_bytes(str(child.pid)))
            time.sleep(0.002)
        loaded = int(child.stdout.read())
    assert child.returncode == 0
    whole = 1.0e9 if wanted == "float32" else 0.5e9
    copies = 1 if devices == 1 else 2  # "data" has two members, which hold the same
    assert loaded > copies * whole
    ratio = (peak - before) / loaded
    assert 0.9 < ratio < 1.3, f"{ratio:.2f} of {loaded} bytes"
