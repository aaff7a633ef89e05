"""Saves under faults: forks once per system call of a save, and stops it there.

Run as a script, in a process that never starts a JAX backend, so that forking is cheap.
Saves a model over another, a new model, and a table over another, below the folder that
is given; kills, fills the disk, or limits the size of files. Prints JSON.
"""

import builtins
import errno
import io
import itertools
import json
import os
import pathlib
import resource
import shutil
import signal
import sys

import numpy as np

from jtok import models, nn
from jtok.decode import recycling
from jtok.errors import JtokError, WriteError
from jtok.models import storage

CONFIG = nn.DecoderConfig(
    vocab_size=8,
    width=4,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=2,
    mlp_width=6,
    max_positions=16,
)


def make_model(seed):
    draw = np.random.default_rng(seed).standard_normal
    kernel = lambda *shape: {"kernel": draw(shape).astype(np.float32)}
    scale = lambda: {"scale": draw(4).astype(np.float32)}

    def layer():
        mlp = {"gate": kernel(4, 6), "up": kernel(4, 6), "down": kernel(6, 4)}
        heads = {"query": kernel(4, 4), "key": kernel(4, 2), "value": kernel(4, 2)}
        norms = {"attn_norm": scale(), "mlp_norm": scale()}
        return {**heads, **norms, "out": kernel(4, 4), "mlp": mlp}

    params = {
        "embed": {"tokens": draw((8, 4)).astype(np.float32)},
        "layers": (layer(), layer()),
        "final_norm": scale(),
        "unembed": kernel(8, 4),
    }
    source = json.dumps({"eos_token_id": seed})
    generation = models.GenerationConfig((seed,), source=source)
    return models.Model(params, CONFIG, generation_config=generation)


def save(kind, path, seed):
    if kind == "table":
        recycling.save_table(path, np.full((50, 4), seed, np.int32))
    else:
        models.save(make_model(seed), path, max_shard_bytes=500)


def found_at(path):
    """The bytes of a file, or of every file of a folder; None where there is none."""
    if path.is_file():
        return path.read_bytes().hex()
    if not path.exists():
        return None
    return {file.name: file.read_bytes().hex() for file in sorted(path.iterdir())}


class Faults:
    """Counts the calls that change a disk, and faults at one of them."""

    # A full disk refuses these; it still removes and closes.
    NEED_ROOM = ("open", "mkdir", "write", "fsync", "rename", "replace")

    def __init__(self, fault, limit):
        self.fault, self.limit, self.count = fault, limit, 0

    def step(self, name, half=lambda: None):
        self.count += 1
        if self.fault == "kill" and self.count == self.limit:
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "full" and name in self.NEED_ROOM:
            # Once full it stays so, but names may still be exchanged.
            later = self.count > self.limit and name not in ("rename", "replace")
            if self.count == self.limit or later:
                half()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def install(self):
        faults, real_open = self, io.open
        names = ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir")
        for name in names:
            setattr(os, name, self.counted(name, getattr(os, name)))
        opener = os.open

        def os_open(path, flags, *rest, **options):
            faults.step("open" if flags & os.O_CREAT else "look")
            return opener(path, flags, *rest, **options)

        class Raw(io.FileIO):
            def write(self, data):
                view = memoryview(data).cast("B")
                half = lambda: io.FileIO.write(self, view[: len(view) // 2])
                faults.step("write", half)
                return super().write(data)

        def open_counted(file, mode="r", *rest, **options):
            if "r" in mode:
                return real_open(file, mode, *rest, **options)
            faults.step("open" if not isinstance(file, int) else "look")
            raw = io.BufferedWriter(Raw(file, mode.replace("b", "").replace("t", "")))
            if "b" in mode:
                return raw
            return io.TextIOWrapper(raw, encoding="utf-8")

        os.open = os_open
        io.open = builtins.open = open_counted

    def counted(self, name, real):
        def call(*arguments, **options):
            self.step(name)
            return real(*arguments, **options)

        return call


def attempt(kind, fault, limit, path):
    """In the child: 0 saved and never faulted, 1 saved, 2 refused by name, 3 wrong."""
    faults = Faults(fault, limit)
    if fault == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    else:
        faults.install()
    try:
        save(kind, path, 2)
    except WriteError as error:
        said = str(error)
        if f"'{path}" in said and ".tmp-" not in said:
            return 2
        os.write(2, f"{kind} {fault} {limit}: {said}\n".encode())
        return 3
    except BaseException as error:
        os.write(2, f"{kind} {fault} {limit}: {type(error)} {error}\n".encode())
        return 3
    return int(faults.count >= limit)


def loaded(kind, path):
    """What a load finds, after what it does first; text for an error."""
    if kind == "table":
        recycling.load_table(path)
        return found_at(path)
    try:
        with storage.TensorFiles.open(storage.resolve(path)) as tensors:
            storage.read_config(path)
            for name in tensors:
                tensors.read(name)
    except JtokError as error:
        if path.exists():
            return f"{type(error).__name__}: {error}"
    return found_at(path)


def run(kind, fault, root):
    """`[outcome, found, left, left after the next save]` for every fork."""
    root.mkdir()
    expected = {json.dumps(None): 0}
    for seed in (1, 2, 3):
        save(kind, root / f"seed{seed}", seed)
        expected[json.dumps(found_at(root / f"seed{seed}"))] = seed
    results = []
    limits = range(0, 5000, 500) if fault == "limit" else itertools.count(1)
    for limit in limits:
        base = root / "base"
        base.mkdir()
        path = base / "out"
        if kind == "table":
            shutil.copy(root / "seed1", path)
        elif kind == "model":
            shutil.copytree(root / "seed1", path)
        child = os.fork()
        if child == 0:
            os._exit(attempt(kind, fault, limit, path))
        outcome = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        left = sorted(os.listdir(base))
        read = loaded(kind, path)
        found = expected.get(json.dumps(read), read)
        save(kind, path, 3)
        after = [sorted(os.listdir(base)), expected.get(json.dumps(found_at(path)))]
        results.append([outcome, found, left, after])
        shutil.rmtree(base)
        if outcome == 0 and fault != "limit":
            return results
    return results


if __name__ == "__main__":
    where = pathlib.Path(sys.argv[1])
    os.fsync = lambda handle: None  # counted all the same; a kill loses no page
    every = {
        f"{kind} {fault}": run(kind, fault, where / f"{kind}-{fault}")
        for kind in ("model", "new_model", "table")
        for fault in ("kill", "full", "limit")
    }
    print(json.dumps(every))
