"""Damaged checkpoints load or are refused by name: no other error, no hang."""

import functools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from jtok import models
from jtok.decode import load_table, save_table
from jtok.errors import JtokError
from jtok.models import GenerationConfig, checkpoint, storage
from jtok.testing import tiny_config, tiny_vocabulary
from jtok.text import Vocabulary
from tests.models import fuzz

GOLDENS = pathlib.Path(__file__).resolve().parents[1] / "goldens" / "hf_checkpoints"
SECONDS = 1.0  # of the processor, for one case


@functools.cache
def golden_folders():
    return sorted(place.parent for place in GOLDENS.glob("*/config.json"))


@functools.cache
def configs():
    """Configurations to start from: the goldens', and one of every family."""
    found = [json.loads((f / "config.json").read_text()) for f in golden_folders()]
    for name, family in models.FAMILIES.items():
        found.append(family.write(tiny_config(family=name)))
    return found


def small_tensors(folder):
    draw = np.random.default_rng(0).standard_normal
    return storage.write_tensors(
        folder,
        {
            "a": draw((3, 4)).astype(np.float32),
            "b": draw((5,)).astype(np.float16),
            "empty": np.zeros((0, 4), np.float32),
            "scale": np.asarray(2.5, np.float32),
        },
        max_shard_bytes=20 if folder.name == "sharded" else 1e9,
    )


# ---- one case of each kind: changes a file, reads it, says whether it was taken


def read_tensors(folder):
    with storage.TensorFiles.open(folder) as tensors:
        for name in tensors:
            read = tensors.read(name)
            assert read.shape == tensors.shape(name)
            assert read.dtype == tensors.dtype(name)


def tensors_case(rng, folder):
    place = folder / "single"
    if not place.exists():
        place.mkdir()
        small_tensors(place)
        (place / "model.safetensors").rename(folder / "whole")
    data = fuzz.change_safetensors(rng, (folder / "whole").read_bytes())
    (place / "model.safetensors").write_bytes(data)
    return (lambda: read_tensors(place)), "model.safetensors"


def index_case(rng, folder):
    place = folder / "sharded"
    index = place / "model.safetensors.index.json"
    if not place.exists():
        place.mkdir()
        small_tensors(place)
        shutil.copy(index, folder / "index")
    index.write_bytes(fuzz.change_json(rng, json.loads((folder / "index").read_text())))
    return (lambda: read_tensors(place)), "safetensors"


def config_case(rng, folder):
    (folder / "config.json").write_bytes(fuzz.change_json(rng, rng.choice(configs())))

    def read():
        fields = storage.read_config(folder)
        config = models.config_from(fields)
        hash(config)
        with storage.TensorFiles.open(golden_folders()[0]) as tensors:
            checkpoint._check_sizes(config, tensors, fields.where)

    return read, "config.json"


def generation_case(rng, folder):
    fields = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0, "top_k": 5}
    (folder / "generation_config.json").write_bytes(fuzz.change_json(rng, fields))

    def read():
        GenerationConfig.from_dict(storage.read_generation_config(folder))

    return read, "generation_config.json"


def tokenizer_case(rng, folder):
    if not (folder / "whole").exists():
        (folder / "tokenizer").mkdir()
        tiny_vocabulary().save(folder / "tokenizer")
        shutil.copytree(folder / "tokenizer", folder / "whole")
    shutil.copytree(folder / "whole", folder / "tokenizer", dirs_exist_ok=True)
    name = rng.choice(("tokenizer.json", "tokenizer_config.json"))
    spec = json.loads((folder / "whole" / name).read_text())
    # Most of a tokenizer is its vocabulary; the rest is what goes wrong.
    if name == "tokenizer.json" and rng.random() < 0.8:
        key = rng.choice([key for key in spec if key != "model"])
        spec[key] = fuzz.change_value(rng, spec[key])
        data = json.dumps(spec).encode()
    else:
        data = fuzz.change_json(rng, spec)
    (folder / "tokenizer" / name).write_bytes(data)
    return (lambda: Vocabulary.load(folder / "tokenizer")), "tokenizer"


def table_case(rng, folder):
    if not (folder / "whole").exists():
        save_table(folder / "whole", np.ones((6, 3), np.int32))
    data = fuzz.change_safetensors(rng, (folder / "whole").read_bytes())
    (folder / "table").write_bytes(data)
    return (lambda: load_table(folder / "table")), "table"


def folder_case(rng, folder):
    """Everything that `load` does, with one file of a golden folder changed."""
    source = rng.choice(golden_folders())
    place = folder / "folder"
    shutil.rmtree(place, ignore_errors=True)
    ignored = shutil.ignore_patterns("expected.npz")
    shutil.copytree(source, place, ignore=ignored)
    fields = json.loads((place / "config.json").read_text())
    weights = place / "model.safetensors"
    kind = rng.randrange(3)
    if kind == 0:
        weights.write_bytes(fuzz.change_safetensors(rng, weights.read_bytes()))
    elif kind == 1:
        (place / "config.json").write_bytes(fuzz.change_json(rng, fields))
    else:
        text = fuzz.change_json(rng, {"eos_token_id": [2], "bos_token_id": 1})
        (place / "generation_config.json").write_bytes(text)
    return (lambda: models.load(place)), "folder"


CASES = {
    "tensors": tensors_case,
    "index": index_case,
    "config": config_case,
    "generation": generation_case,
    "tokenizer": tokenizer_case,
    "table": table_case,
    "folder": folder_case,
}


def run_cases(kind, seeds, folder):
    """Runs the cases of the seeds.

    Returns:
      How many were read, how many refused, and what else happened, one line a case.
    """
    outcomes, faults = {"read": 0, "refused": 0}, []
    for seed in seeds:
        action, named = CASES[kind](random.Random(f"{kind} {seed}"), folder)
        start = time.process_time()
        try:
            action()
            outcomes["read"] += 1
        except JtokError as error:
            outcomes["refused"] += 1
            if named not in str(error):
                faults.append(f"{kind} {seed}: names no file: {error}"[:300])
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            faults.append(f"{kind} {seed}: {type(error).__name__}: {error}"[:300])
        spent = time.process_time() - start
        if spent > SECONDS * (5 if kind == "folder" else 1):
            faults.append(f"{kind} {seed}: took {spent:.1f} s")
    return outcomes, faults


@pytest.mark.parametrize(
    "kind, count",
    [
        ("tensors", 120),
        ("index", 60),
        ("config", 120),
        ("generation", 40),
        ("tokenizer", 40),
        ("table", 40),
        ("folder", 12),
    ],
)
def test_damage_is_read_or_refused_by_name(kind, count, tmp_path):
    outcomes, faults = run_cases(kind, range(count), tmp_path)
    assert not faults, "\n".join(faults)
    assert outcomes["refused"] >= count // 4


@pytest.mark.slow
def test_ten_thousand_damaged_checkpoints(tmp_path):
    counts = {
        "tensors": 3200,
        "table": 400,
        "index": 1200,
        "config": 3600,
        "generation": 500,
        "tokenizer": 700,
        "folder": 400,
    }
    assert sum(counts.values()) == 10_000
    for kind, count in counts.items():
        (tmp_path / kind).mkdir()
        # Other seeds than those of the fast set.
        seeds = range(1000, 1000 + count)
        outcomes, faults = run_cases(kind, seeds, tmp_path / kind)
        assert not faults, "\n".join(faults[:20])
        assert outcomes["refused"] >= count // 4
        if kind != "index":
            assert outcomes["read"] > 0


# Each asks for far more than the files hold. In a process of its own, whose memory is
# limited to little more than it has once a whole checkpoint was loaded.
GREEDY = """
import json, pathlib, resource, sys, time
from jtok import models
from jtok.decode import load_table, save_table
from jtok.errors import JtokError

source, place = map(pathlib.Path, sys.argv[1:])
models.load(source)
fields = json.loads((source / "config.json").read_text())
(place / "model.safetensors").symlink_to(source / "model.safetensors")
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
held = pages * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 2**28, resource.RLIM_INFINITY))
found = []
for name, value in json.loads(sys.stdin.read()):
    (place / "config.json").write_text(json.dumps({**fields, name: value}))
    start = time.process_time()
    try:
        models.load(place)
        found.append("read")
    except JtokError as error:
        found.append(str(error))
    except BaseException as error:
        found.append(f"FAULT {type(error).__name__}: {error}")
    spent = time.process_time() - start
    if spent > 1:
        found[-1] = f"FAULT {spent} s: {found[-1]}"
print(json.dumps(found))
"""


@pytest.mark.medium
def test_sizes_beyond_the_files_are_refused_before_memory_is_taken(tmp_path):
    asked = [
        (name, value)
        for name in (
            *("num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size"),
            *("num_attention_heads", "head_dim"),
        )
        for value in (10**5, 10**9, 10**12, 10**30)
    ]
    done = subprocess.run(
        [sys.executable, "-c", GREEDY, str(GOLDENS / "llama"), str(tmp_path)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for (name, value), said in zip(asked, found, strict=True):
        assert str(tmp_path / "config.json") in said, (name, value, said)
        assert "FAULT" not in said, (name, value, said)
