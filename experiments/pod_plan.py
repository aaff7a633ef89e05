"""Whether a model fits a TPU, and how it should be laid out, without having a TPU.

Compiles the steps of decoding (plain, and Token Recycling with 81 nodes) and of
training ahead of time, for llama shapes and described TPU topologies, and reads from
the compiled programs what a chip holds, what chips send to each other and what a step
costs. No array is allocated. This is no paper; it shows that the sharding rules hold
at sizes that no test can run.

```
python -m experiments.run pod_plan
```

About 12 minutes on 2 free CPU cores, all of them spent by the TPU compiler; it needs
the libtpu wheel, and no TPU. Without the wheel only the preset `smoke` runs, for the
devices of this machine.
"""

import collections
import concurrent.futures
import concurrent.futures.process
import dataclasses
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

import jtok
from jtok import train
from jtok.decode import lower_decode, no_drafter, token_recycling
from jtok.errors import ArgumentError, UnsupportedImplementationError
from jtok.testing import argument_copies, collectives, tpu_devices

__all__ = ["Config", "run"]

CLAIMS = (
    "small_decode_fits",
    "large_decode_fits",
    "large_train_fits",
    "weights_stay",
    "nothing_copied",
)
SOURCES = (
    "jtok/decode/ahead.py",
    "jtok/decode/drafters.py",
    "jtok/decode/loop.py",
    "jtok/decode/recycling.py",
    "jtok/decode/templates.py",
    "jtok/decode/types.py",
    "jtok/decode/verify.py",
    "jtok/models/checkpoint.py",
    "jtok/models/cache.py",
    "jtok/models/model.py",
    "jtok/models/target.py",
    "jtok/nn/block.py",
    "jtok/nn/layers.py",
    "jtok/nn/positions.py",
    "jtok/ops/attention/*.py",
    "jtok/ops/sharding.py",
    "jtok/ops/unembed/*.py",
    "jtok/testing/compiled.py",
    "jtok/train/_step.py",
    "jtok/train/language_model.py",
    "jtok/train/optim.py",
)
MINUTES = {"smoke": 0.3, "small": 12, "full": 60}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which steps are compiled for which chips.

    `models` are keys of `SHAPES`, small ones first; `topologies` are names such as
    "v5e:16x16", or "cpu" for the devices of this machine. A decode step has `rows` rows
    for each part of the data axis and `capacity` cache slots a row; a training step
    `train_rows` rows for each part and `train_length` tokens a row. `meshes` is how
    many layouts are tried for each model and topology, the likeliest first.
    """

    models: tuple[str, ...] = ("llama_1b", "llama_8b")
    topologies: tuple[str, ...] = ("v5e:2x2", "v5e:16x16")
    steps: tuple[str, ...] = ("plain", "recycling", "train")
    rows: int = 8
    capacity: int = 2048
    train_rows: int = 1
    train_length: int = 2048
    meshes: int = 2


PRESETS = {
    "smoke": Config(
        models=("tiny",),
        topologies=("v5e:2x2",),
        rows=2,
        capacity=256,
        train_length=128,
        meshes=1,
    ),
    "small": Config(),
    "full": Config(
        topologies=("v5e:2x2", "v5e:16x16", "v5p:2x2x2", "v6e:4x4"),
        rows=16,
        capacity=8192,
        train_rows=4,
        meshes=3,
    ),
}

_LLAMA3 = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "dtype": "bfloat16",
    "vocab_size": 128256,
}
_SCALING = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# The shapes of the published configurations, by the names of their fields.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _LLAMA3
    | {
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 1024,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "vocab_size": 4096,
    },
    "llama_1b": _LLAMA3  # meta-llama/Llama-3.2-1B
    | {
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "rope_scaling": _SCALING | {"factor": 32.0},
        "tie_word_embeddings": True,
    },
    "llama_8b": _LLAMA3  # meta-llama/Llama-3.1-8B
    | {
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "rope_scaling": _SCALING | {"factor": 8.0},
        "tie_word_embeddings": False,
    },
}

_GIB, _MIB = 2**30, 2**20


@dataclasses.dataclass(frozen=True)
class _Chip:
    """Published figures of one chip: HBM in GiB, bf16 TFLOP/s, HBM and ICI in GB/s."""

    hbm: float
    tflops: float
    hbm_rate: float
    ici_rate: float


_CHIPS = {
    "v5e": _Chip(16, 197, 819, 200),
    "v5p": _Chip(95, 459, 2765, 600),
    "v6e": _Chip(32, 918, 1640, 448),
    # This machine, to show that the code runs; no time is estimated from it.
    "cpu": _Chip(16, 1, 10, 10),
}


def run(config: Config, report: Any) -> None:
    """Compiles every step for every topology and says what fits.

    Args:
      config: what to compile.
      report: where the figures go.

    Raises:
      UnsupportedImplementationError: libtpu is missing, and this is not the smoke
        preset.
    """
    topologies = _available(config, report)
    cases = list(_cases(config, topologies))
    plans = []
    for case in report.progress(cases, "compiling"):
        plan = _plan_apart(config, *case)
        report.metric(**plan)
        plans.append(plan)
    report.table("Steps", [_row(plan) for plan in plans])
    report.text(
        "Sizes are of one chip; `total` is arguments, outputs and temporaries, what is "
        "donated once. FLOPs, bytes and exchanges are those of the compiled program "
        "with each loop body counted once: for decoding that is one step (over one "
        "block of the cache), for training one layer and one piece of the loss, so "
        "only decode steps have an estimated time (the slowest of compute, HBM and "
        "exchanges at the chip's published rates). Temporaries of a decode step may "
        "hold the cache a second time: a head size of 64 lies otherwise in arguments "
        "than in the attention kernel, and is laid out anew once a run, before the "
        "first step."
    )
    report.table("Exchanges", _exchange_rows(plans))
    report.table("Best mesh", _best(plans))
    _claims(config, topologies, plans, report)


def _available(config: Config, report: Any) -> dict[str, list[Any]]:
    """Devices by topology; the smoke preset makes do with the CPU's."""
    found: dict[str, list[Any]] = {}
    for name in config.topologies:
        try:
            found[name] = jax.devices() if name == "cpu" else tpu_devices(name)
        except UnsupportedImplementationError as error:
            if config.models != ("tiny",):
                raise
            report.text(f"{error} Compiled for the CPU instead.")
            found["cpu"] = jax.devices()
    return found


def _cases(
    config: Config, topologies: dict[str, list[Any]]
) -> Iterator[tuple[str, str, tuple[int, int], str]]:
    for name in config.models:
        for topology, devices in topologies.items():
            for step in config.steps:
                for parts in _model_parts(name, len(devices), step)[: config.meshes]:
                    yield name, topology, (len(devices) // parts, parts), step


def _model_parts(name: str, chips: int, step: str) -> list[int]:
    """Sizes of the model axis, the likeliest first.

    Decoding shares the weights among as many chips as the key-value heads allow, which
    reads the least per step; training as few as hold them with their moments.
    """
    fields = SHAPES[name]
    heads = fields["num_key_value_heads"]
    fits = [n for n in range(1, chips + 1) if heads % n == 0 and chips % n == 0]
    if step != "train":
        return fits[::-1]
    # Parameters, gradients and two moments in bf16 in about half of 16 GiB.
    needed = 4 * 2 * _num_params(name) / (8 * _GIB)
    enough = [n for n in fits if n >= needed]
    return enough + [n for n in fits[::-1] if n < needed]


def _num_params(name: str) -> int:
    leaves = jax.tree.leaves(jtok.models.abstract(SHAPES[name]).params)
    return sum(math.prod(leaf.shape) for leaf in leaves)


def _plan_apart(
    config: Config, name: str, topology: str, shape: tuple[int, int], step: str
) -> dict[str, Any]:
    """`_plan` in a process of its own: a compiler that crashes takes no plan along."""
    if topology == "cpu":  # its devices may be simulated in this process only
        return _plan(config, name, topology, shape, step)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_plan, config, name, topology, shape, step).result()
        except concurrent.futures.process.BrokenProcessPool:
            plan = _described(config, name, topology, shape, step)
            return plan | {"fits": False, "says": "the compiler crashed"}


def _described(
    config: Config, name: str, topology: str, shape: tuple[int, int], step: str
) -> dict[str, Any]:
    """What is known of a step before it is compiled."""
    rows = config.train_rows if step == "train" else config.rows
    return {
        "model": name,
        "topology": topology,
        "mesh": "data={},model={}".format(*shape),
        "step": step,
        "rows": rows * shape[0],
        "weights_mib": 2 * _num_params(name) / _MIB,
        "hbm_mib": _CHIPS[topology.split(":")[0]].hbm * 1024,
    }


def _plan(
    config: Config, name: str, topology: str, shape: tuple[int, int], step: str
) -> dict[str, Any]:
    """Compiles one step and reads what the program says of itself."""
    chip = _CHIPS[topology.split(":")[0]]
    began = time.perf_counter()
    devices = jax.devices() if topology == "cpu" else tpu_devices(topology)
    kinds = (AxisType.Auto,) * 2
    mesh = Mesh(np.array(devices).reshape(shape), ("data", "model"), kinds)
    plan = _described(config, name, topology, shape, step)
    with jax.set_mesh(mesh):
        lowered = _lower(config, name, step, plan["rows"])
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            # The compiler itself refuses: no need to say by how much.
            plan |= {"fits": False, "says": str(error).splitlines()[0][:160]}
            return plan | {"compile_s": time.perf_counter() - began}
    plan |= {"compile_s": time.perf_counter() - began}
    plan |= _memory(compiled, chip) | _cost(compiled)
    sent = [c for c in collectives(compiled) if c.num_bytes]
    plan["exchanges"] = _by_kind(sent)
    plan["copies_in_loops"] = len(argument_copies(compiled))
    plan["largest_gather_mib"] = max(
        (c.num_bytes / _MIB for c in sent if c.kind == "all-gather"), default=0.0
    )
    if step != "train" and topology != "cpu":
        seconds = (
            plan["gflop"] / chip.tflops / 1e3,
            plan["accessed_mib"] * _MIB / chip.hbm_rate / 1e9,
            sum(c.num_bytes for c in sent) / chip.ici_rate / 1e9,
        )
        plan["estimated_ms"] = 1e3 * max(seconds)
    return plan


def _lower(config: Config, name: str, step: str, rows: int) -> Any:
    model = jtok.models.abstract(SHAPES[name])
    if step == "train":
        stacked = _stacked(model.params)
        batch = {
            "tokens": jax.ShapeDtypeStruct((rows, config.train_length + 1), jnp.int32)
        }
        return train.lower_update(
            train.lm_loss(model), stacked, batch, optimizer=train.adamw(1e-4)
        )
    drafters = {"plain": no_drafter, "recycling": token_recycling}
    if step not in drafters:
        raise ArgumentError(
            f"steps: got {step!r}, expected 'train' or one of {sorted(drafters)}."
        )
    return lower_decode(
        model, batch=rows, capacity=config.capacity, drafter=drafters[step]()
    )


def _stacked(params: Any) -> Any:
    """Layers as training has them: one tree with a leading axis, whole everywhere."""
    from jax.sharding import NamedSharding, PartitionSpec

    layers = params["layers"]

    def stack(leaf: Any) -> Any:
        own = leaf.sharding
        spec = NamedSharding(own.mesh, PartitionSpec(None, *own.spec))
        shape = (len(layers), *leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=spec)

    return {**params, "layers": jax.tree.map(stack, layers[0])}


def _memory(compiled: Any, chip: _Chip) -> dict[str, Any]:
    stats = compiled.memory_analysis()
    total = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    return {
        "arguments_mib": stats.argument_size_in_bytes / _MIB,
        "outputs_mib": (stats.output_size_in_bytes - stats.alias_size_in_bytes) / _MIB,
        "temporaries_mib": stats.temp_size_in_bytes / _MIB,
        "total_mib": total / _MIB,
        "fits": total <= chip.hbm * _GIB,
    }


def _cost(compiled: Any) -> dict[str, float]:
    cost = compiled.cost_analysis() or {}
    return {
        "gflop": cost.get("flops", 0.0) / 1e9,
        "accessed_mib": cost.get("bytes accessed", 0.0) / _MIB,
    }


def _by_kind(sent: Sequence[Any]) -> dict[str, dict[str, float]]:
    kinds: dict[str, dict[str, float]] = collections.defaultdict(
        lambda: {"count": 0, "mib": 0.0}
    )
    for one in sent:
        kinds[one.kind]["count"] += 1
        kinds[one.kind]["mib"] += one.num_bytes / _MIB
    return dict(kinds)


def _row(plan: dict[str, Any]) -> dict[str, Any]:
    left_out = ("exchanges", "says")
    row = {
        key: round(value, 3) if isinstance(value, float) else value
        for key, value in plan.items()
        if key not in left_out
    }
    return {**row, "remark": plan.get("says", "")}


def _exchange_rows(plans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("model", "topology", "mesh", "step")
    return [
        {name: plan[name] for name in names}
        | {"kind": kind, "count": of["count"], "MiB": round(of["mib"], 3)}
        for plan in plans
        for kind, of in sorted(plan.get("exchanges", {}).items())
    ]


def _best(plans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layout that fits and takes least time, or where none is known, memory."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = collections.defaultdict(list)
    for plan in plans:
        groups[plan["model"], plan["topology"], plan["step"]].append(plan)
    rows = []
    for (model, topology, step), tried in groups.items():
        fitting = [plan for plan in tried if plan["fits"]]
        key = lambda plan: (plan.get("estimated_ms", 0.0), plan["total_mib"])
        best = min(fitting, key=key) if fitting else None
        rows.append(
            {
                "model": model,
                "topology": topology,
                "step": step,
                "mesh": best["mesh"] if best else "none of those tried fits",
                "tried": len(tried),
                "total MiB": round(best["total_mib"]) if best else "",
            }
        )
    return rows


def _claims(
    config: Config,
    topologies: dict[str, list[Any]],
    plans: Sequence[dict[str, Any]],
    report: Any,
) -> None:
    small, large = config.models[0], config.models[-1]
    near, far = next(iter(topologies)), list(topologies)[-1]
    none = "none: what the sharding rules are for"

    def share(model: str, topology: str, steps: Sequence[str]) -> tuple[float, int]:
        """Of the HBM, the fullest step on its best mesh; refused ones count 2."""
        shares: dict[str, list[float]] = collections.defaultdict(list)
        for plan in plans:
            same = (plan["model"], plan["topology"]) == (model, topology)
            if same and plan["step"] in steps:
                total = plan.get("total_mib", 2 * plan["hbm_mib"])
                shares[plan["step"]].append(total / plan["hbm_mib"])
        return max(map(min, shares.values())), sum(map(len, shares.values()))

    decoding = [step for step in config.steps if step != "train"]
    for name, model, topology, steps in (
        ("small_decode_fits", small, near, decoding),
        ("large_decode_fits", large, near, decoding),
        ("large_train_fits", large, far, ["train"]),
    ):
        measured, count = share(model, topology, steps)
        what = "a training step" if steps == ["train"] else "every decode step"
        report.claim(
            name,
            f"{what} of {model} fits the HBM of a chip of {topology}, on some mesh",
            paper=none,
            measured=round(measured, 4),
            unit="of the HBM",
            op="<=",
            bound=1,
            n=count,
            reason="the layouts that were tried need more than a chip has",
        )
    decodes = [plan for plan in plans if plan["step"] != "train" and "gflop" in plan]
    report.claim(
        "weights_stay",
        "no decode step gathers weights, logits or cache: its largest all-gather is "
        "below a hundredth of the weights",
        paper=none,
        measured=max(
            round(plan["largest_gather_mib"] / plan["weights_mib"], 6)
            for plan in decodes
        ),
        unit="of the weights",
        op="<",
        bound=0.01,
        n=len(decodes),
        reason="a tiny model's candidates are large beside its weights",
    )
    report.claim(
        "nothing_copied",
        "no decode step copies weights or cache in the chip's memory",
        paper=none,
        measured=sum(plan["copies_in_loops"] for plan in decodes),
        unit="copies",
        op="==",
        bound=0,
        n=len(decodes),
        reason="the compiler lays an argument out anew at every step",
    )
