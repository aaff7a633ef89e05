"""Drafters side by side: one target, the same prompts, the same rows to learn from.

A frozen small language model (trained once, see `experiments/pretrain.py`) is decoded
by the drafters of this library: those that learn nothing (prompt lookup, Token
Recycling) and those that are trained here on the same rows of Python's library for the
same number of updates: Medusa's heads, Chimera's stack, the auxiliary heads of
concept-aware fine-tuning, the decoder of future-token prediction, mask tokens with
gated adapters, and a sorted draft of the target's first layers. Only `draft_model` is
missing, which brings a model of its own. Shown are tokens per call, query slots per
call, what drafting costs, wall clock against compiled plain decoding, time and size of
the training, and how much of the text repeats itself.

The trained ones are not of one size (the table says of which), have few updates at one
learning rate, and draft one chain, where most of their papers draft trees: this says
what each does here, not which paper is best.

```
python -m experiments.run drafters
python -m experiments.run drafters --preset full --model Qwen/Qwen2.5-0.5B-Instruct
```

What is emitted is what plain decoding emits, at both temperatures. About 18 minutes on
2 free CPU cores (an estimate), plus 4 to train the target once.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jtok
from experiments.cache import cached
from experiments.corpus import standard_library
from experiments.intervals import student_interval
from experiments.targets import load_target, prompts_by_domain, repeated_ngrams
from jtok import predict, testing, train
from jtok.decode import (
    Drafter,
    auxiliary_heads,
    chimera,
    future_drafter,
    generate,
    medusa,
    mtp,
    prompt_lookup,
    sorted_chain,
    token_recycling,
)
from jtok.models import split_layers, stack_layers
from jtok.ops import Tree

CLAIMS = (
    "lossless",
    "trained_over_lookup_t1",
    "drafts_help_each",
    "mtp_gate",
    "wall_clock_best",
)
SOURCES = (
    "experiments/corpus.py",
    "experiments/targets.py",
    "jtok/decode/auxiliary.py",
    "jtok/decode/fusing.py",
    "jtok/decode/drafters.py",
    "jtok/decode/future.py",
    "jtok/decode/heads.py",
    "jtok/decode/loop.py",
    "jtok/decode/mask_tokens.py",
    "jtok/decode/recycling.py",
    "jtok/decode/sorted.py",
    "jtok/decode/verify.py",
    "jtok/predict/auxiliary.py",
    "jtok/predict/auxiliary_loss.py",
    "jtok/predict/draft_training.py",
    "jtok/predict/fusing.py",
    "jtok/predict/fusing_draft.py",
    "jtok/predict/fusing_states.py",
    "jtok/predict/future.py",
    "jtok/predict/future_loss.py",
    "jtok/predict/future_slots.py",
    "jtok/predict/mask_tokens.py",
    "jtok/predict/masks.py",
    "jtok/predict/offset_losses.py",
    "jtok/predict/sorted.py",
    "jtok/predict/state_heads.py",
)
MINUTES = {"smoke": 0.5, "small": 18, "full": 300}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained and measured.

    Attributes:
      model: hub id or folder of the target; "" for the small model of `pretrain`.
      small: whether that small model is the real one or the smoke-sized one.
      arms: which of `ARMS`.
      seeds: of the trainings.
      steps: updates of every training.
      rows: rows of an update.
      length: tokens of a row.
      learning_rate: highest.
      ahead: tokens that are drafted in a row.
      rank: of the adapters of mask tokens.
      prompts: prompts of each domain.
      prompt_tokens: tokens of a prompt.
      new_tokens: tokens to emit for each.
      timed: prompts that are timed, one at a time.
      rounds: timed runs of each, in turns with plain decoding.
      dtype: of the target.
    """

    model: str = ""
    small: bool = True
    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 400
    rows: int = 4
    length: int = 96
    learning_rate: float = 2e-3
    ahead: int = 4
    rank: int = 16
    prompts: int = 8
    prompt_tokens: int = 48
    new_tokens: int = 64
    timed: int = 2
    rounds: int = 5
    dtype: str = "float32"


PRESETS = {
    "smoke": Config(
        small=False, seeds=(0,), steps=2, rows=2, length=24, ahead=2, rank=2,
        prompts=1, prompt_tokens=12, new_tokens=8, timed=1, rounds=1,
        arms=("prompt lookup", "medusa", "mask tokens"),
    ),
    "small": Config(),
    "full": Config(
        model="Qwen/Qwen2.5-0.5B-Instruct", steps=5000, rows=32, length=1024,
        learning_rate=2e-4, rank=128, prompts=40, prompt_tokens=512, new_tokens=256,
        dtype="bfloat16",
    ),
}  # fmt: skip


class Arm(NamedTuple):
    """A way to draft.

    Attributes:
      start: `(model, key, config) -> trainable`, None where nothing is trained.
      loss: `(model, trainable, config) -> loss_fn` of `fit`, the target's parameters
        frozen.
      finish: `(model, trainable, config) -> (decoded model, drafter)`.
    """

    start: Callable[..., Any] | None
    loss: Callable[..., Any] | None
    finish: Callable[..., tuple[Any, Drafter]]


# ---- the arms


def _free(make: Callable[[], Drafter]) -> Arm:
    return Arm(None, None, lambda model, trained, config: (model, make()))


def _medusa(model: Any, config: Config) -> Any:
    return predict.init_state_heads(model, steps=config.ahead, heads="light")


def _chimera(model: Any, config: Config, key: Any = None) -> Any:
    key = jax.random.key(0) if key is None else key
    sizes = predict.fusing_config(model, steps=config.ahead, heads="light")
    return predict.init_fusing(model, key, sizes)


def _stack_loss(make: Any, hidden: float) -> Callable[..., Any]:
    def loss(model: Any, trained: Any, config: Config) -> Any:
        goal = predict.Objective(labels="teacher", hidden=hidden)
        return predict.draft_loss(model, make(model, config), objective=goal)

    return loss


def _heads(model: Any, config: Config) -> Any:
    kind = predict.HeadsConfig(num_auxiliary=config.ahead)
    return predict.init_heads(model, kind)


def _heads_loss(model: Any, trained: Any, config: Config) -> Any:
    loss_fn = predict.auxiliary_loss(
        model, _heads(model, config), steps=config.steps, weight=1.0, base=False,
        schedule="constant",
        combine=lambda trainable, frozen: {"base": frozen, "heads": trainable},
    )  # fmt: skip

    def whole(trainable: Any, frozen: Any, state: Any, batch: Any, key: Any) -> Any:
        seen = {"seen": jnp.int32(0)}  # weights are constant: updates do not matter
        loss, (metrics, _) = loss_fn(trainable, frozen, seen, batch, key)
        return loss, (metrics, state)

    return whole


def _future(model: Any, key: Any, config: Config) -> Any:
    made = predict.future_from(
        model, key=key, decoder_layers=1, pseudo_tokens=4, horizon=config.ahead + 1
    )
    return {name: x for name, x in made.params.items() if name != "encoder"}


def _future_model(model: Any, trained: Any, config: Config) -> Any:
    made = predict.future_from(
        model, key=jax.random.key(0), decoder_layers=1, pseudo_tokens=4,
        horizon=config.ahead + 1,
    )  # fmt: skip
    return made.replace(params={"encoder": made.params["encoder"], **trained})


def _future_loss(model: Any, trained: Any, config: Config) -> Any:
    loss_fn = predict.future_loss(_future_model(model, trained, config))

    def whole(trainable: Any, frozen: Any, *others: Any) -> Any:
        return loss_fn({"encoder": frozen, **trainable}, None, *others)

    return whole


def _masks(model: Any, key: Any, config: Config) -> Any:
    return predict.mask_init(model, config.ahead, config.rank, key)


def _masks_loss(model: Any, trained: Any, config: Config) -> Any:
    blocks = max(1, config.length // 6)
    return predict.mask_loss(model, config.ahead, num_blocks=blocks)


def _masked(decoding: str) -> Callable[..., tuple[Any, Drafter]]:
    def finish(model: Any, trained: Any, config: Config) -> tuple[Any, Drafter]:
        lm = predict.with_masks(model, trained)
        return lm, mtp(lm, trained["sampler"], decoding=decoding)  # type: ignore[arg-type]

    return finish


def _exits(model: Any) -> tuple[int, ...]:
    half = max(1, model.config.num_layers // 2)
    return tuple(sorted({max(1, half // 2), half}))


def _first_layers(model: Any, config: Config) -> Any:
    """The target's first layers, as a model of their own."""
    count = _exits(model)[-1]
    params = split_layers(model.params)
    layers = params["layers"][:count]
    kinds: dict[str, Any] = {"num_layers": count}
    if model.config.windows:
        kinds["windows"] = model.config.windows[:count]
    sizes = dataclasses.replace(model.config, **kinds)
    return model.replace(params={**params, "layers": layers}, config=sizes)


def _sorted(model: Any, key: Any, config: Config) -> Any:
    del key  # it starts from the target
    return jax.tree.map(jnp.array, stack_layers(_first_layers(model, config).params))


def _sorted_loss(model: Any, trained: Any, config: Config) -> Any:
    draft = _first_layers(model, config).replace(params=trained)
    return predict.sorted_loss(draft, _exits(model))


def _sorted_drafter(model: Any, trained: Any, config: Config) -> tuple[Any, Drafter]:
    draft = _first_layers(model, config).replace(params=split_layers(trained))
    exits = _exits(model)
    thresholds = (0.5,) * (len(exits) - 1) + (0.0,)
    return model, sorted_chain(draft, exits, thresholds)


ARMS: dict[str, Arm] = {
    "prompt lookup": _free(prompt_lookup),
    "token recycling": _free(token_recycling),
    "medusa": Arm(
        lambda model, key, config: _medusa(model, config).params,
        _stack_loss(_medusa, 0.0),
        lambda model, made, config: (
            model,
            medusa(
                _medusa(model, config).replace(params=made), Tree.chain(config.ahead)
            ),
        ),
    ),
    "chimera": Arm(
        lambda model, key, config: _chimera(model, config, key).params,
        _stack_loss(_chimera, 1.0),
        lambda model, made, config: (
            model,
            chimera(
                _chimera(model, config).replace(params=made), Tree.chain(config.ahead)
            ),
        ),
    ),
    "auxiliary heads": Arm(
        lambda model, key, config: _heads(model, config).params,
        _heads_loss,
        lambda model, made, config: (
            model, auxiliary_heads(_heads(model, config).replace(params=made), model)
        ),
    ),
    "future tokens": Arm(
        _future, _future_loss,
        lambda model, made, config: (
            model, future_drafter(_future_model(model, made, config)),
        ),
    ),
    "mask tokens": Arm(_masks, _masks_loss, _masked("quadratic")),
    "mask tokens, linear": Arm(_masks, _masks_loss, _masked("linear")),
    "sorted exits": Arm(_sorted, _sorted_loss, _sorted_drafter),
}  # fmt: skip
_SAME_TRAINING = {"mask tokens, linear": "mask tokens"}


def run(config: Config, report: Any) -> None:
    """Trains every arm for every seed, or finds it in the cache, and measures it.

    Args:
      config: what to train and to measure.
      report: where the figures go.
    """
    model = load_target(config.model, report, small=config.small, dtype=config.dtype)
    domains = prompts_by_domain(
        model, report, count=config.prompts, tokens=config.prompt_tokens
    )
    batches = _batches(config, model, report)
    plain = {t: _decode(model, None, domains, config, t) for t in (0.0, 1.0)}
    arms = config.arms or tuple(ARMS)
    jobs = [
        (arm, seed)
        for arm in arms
        for seed in (config.seeds if ARMS[arm].start else config.seeds[:1])
    ]
    found: dict[str, list[dict[str, Any]]] = {}
    for arm, seed in report.progress(jobs, "train and measure"):
        trained, cost = _trained(config, model, arm, seed, batches, report)
        lm, drafter = ARMS[arm].finish(model, trained, config)
        row = {"seed": seed, **cost}
        for temperature, expected in plain.items():
            out = _decode(lm, drafter, domains, config, temperature)
            row |= _figures(out, expected, f"T={temperature:g}", _near(config))
        if seed == config.seeds[0]:
            row |= _race(model, lm, drafter, domains, config)
        report.metric(arm=arm, **{k: v for k, v in row.items() if k != "ratios"})
        found.setdefault(arm, []).append(row)
    _report(found, plain, domains, config, report)


# ---- training


def _batches(config: Config, model: Any, report: Any) -> Callable[[int, int], Any]:
    """Rows of code and English, in an order by seed; every arm sees the same."""
    corpus = standard_library(None if config.small else 8)
    report.data("standard library", sha256=corpus.sha256)
    end, needed = model.vocabulary.special.get("eos", 0), config.steps * config.rows
    ids: list[int] = []
    for pair in zip(corpus.train_code, corpus.train_english * 99, strict=False):
        for text in pair:
            ids += [*model.vocabulary.encode(text)[:2048], end]
        if len(ids) >= needed * config.length:
            break
    count = len(ids) // config.length
    table = np.array(ids[: count * config.length], np.int32).reshape(count, -1)

    def batch(seed: int, step: int) -> dict[str, np.ndarray]:
        epoch, at = divmod(step * config.rows, count - count % config.rows)
        order = np.random.default_rng((seed, epoch)).permutation(count)
        return {"tokens": table[order[at : at + config.rows]]}

    return batch


def _trained(
    config: Config, model: Any, arm: str, seed: int, batches: Any, report: Any
) -> tuple[Any, dict[str, Any]]:
    """The trained part of an arm, its size, and how long its training took."""
    kind = ARMS[arm]
    if kind.start is None or kind.loss is None:
        return None, {"parameters": 0, "training, s": 0.0}
    name = _SAME_TRAINING.get(arm, arm)
    names = ("model", "small", "steps", "rows", "length", "learning_rate", "ahead",
             "rank", "dtype")  # fmt: skip
    key = {field: getattr(config, field) for field in names}
    package = Path(jtok.__file__).parent / "predict"
    code = [path.read_text() for path in sorted(package.glob("*.py"))]
    key |= {"arm": name, "seed": seed, "code": code}
    start = kind.start(model, jax.random.key(seed), config)
    data = functools.partial(batches, seed)
    build = functools.partial(_fit, config, model, kind, start, data)
    folder = cached("drafters", key, build)
    report.artifact(f"{name}, seed {seed}", folder.name)
    leaves, treedef = jax.tree.flatten(start)
    with np.load(folder / "trained.npz") as held:
        seconds = float(held["seconds"])
        values = [
            jnp.asarray(held[str(i)]).astype(leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
    size = sum(int(leaf.size) for leaf in values)
    trained = jax.tree.unflatten(treedef, values)
    return trained, {"parameters": size, "training, s": seconds}


def _fit(
    config: Config, model: Any, arm: Arm, start: Any, batches: Any, folder: Path
) -> None:
    rate = train.schedule(
        "cosine", peak=config.learning_rate, steps=config.steps,
        warmup=max(1, config.steps // 20),
    )  # fmt: skip
    began = time.perf_counter()
    result = train.fit(
        arm.loss(model, start, config),  # type: ignore[misc]
        start,
        frozen=model.params,
        optimizer=train.adamw(rate, weight_decay=0.0),
        data=batches,
        steps=config.steps,
        key=jax.random.key(1),
        progress=False,
    )
    leaves = [np.asarray(x, np.float32) for x in jax.tree.leaves(result.trainable)]
    arrays = {str(index): leaf for index, leaf in enumerate(leaves)}
    seconds = np.float64(time.perf_counter() - began)
    np.savez(folder / "trained.npz", seconds=seconds, **arrays)  # type: ignore[arg-type]


# ---- measures


class Decoded(NamedTuple):
    """What came out of all prompts, a domain at a time."""

    outs: list[Any]
    emitted: int
    calls: int
    slots: int

    @property
    def rows(self) -> list[np.ndarray]:
        """The tokens of every prompt."""
        return [row for out in self.outs for row in out.tokens]


def _decode(
    lm: Any, drafter: Drafter | None, domains: Any, config: Config,
    temperature: float,
) -> Decoded:  # fmt: skip
    """All prompts, a domain at a time in one ragged batch."""
    outs, emitted, calls, slots = [], 0, 0, 0
    for prompts in domains.values():
        out = generate(
            lm, prompts, max_new_tokens=config.new_tokens, temperature=temperature,
            drafter=drafter, stop_ids=(), seed=5, gaps=drafter is None,
        )  # fmt: skip
        outs.append(out)
        emitted, calls = emitted + out.stats.emitted, calls + out.stats.calls
        slots += out.stats.slots
    return Decoded(outs, emitted, calls, slots)


def _figures(out: Decoded, plain: Decoded, at: str, near: float) -> dict[str, Any]:
    pairs = zip(plain.outs, out.outs, strict=True)
    gaps = [found.gap for pair in pairs for found in testing.compare(*pair)]
    return {
        f"tokens per call, {at}": out.emitted / out.calls,
        f"slots per call, {at}": out.slots / out.calls,
        f"rows that differ, {at}": sum(not gap < near for gap in gaps),
        f"rows that differ at a near-tie, {at}": sum(gap < near for gap in gaps),
    }


def _near(config: Config) -> float:
    """The gap below which calls of other shapes may choose another token."""
    return 1e-4 if config.dtype == "float32" else 1e-1


def _race(
    model: Any, lm: Any, drafter: Drafter, domains: Any, config: Config
) -> dict[str, Any]:
    """Plain decoding and this, in turns, one prompt at a time, greedily."""
    prompts = [p for some in domains.values() for p in some[: config.timed]]
    times: dict[str, list[float]] = {"plain": [], "drafted": []}
    calls = {"plain": 0, "drafted": 0}
    for turn in range(config.rounds + 1):
        for name, who, how in (("plain", model, None), ("drafted", lm, drafter)):
            spent = 0.0
            calls[name] = 0
            for prompt in prompts:
                stats = generate(
                    who, prompt, max_new_tokens=config.new_tokens, drafter=how,
                    stop_ids=(), capacity=256,
                ).stats  # fmt: skip
                spent += stats.decode_seconds
                calls[name] += stats.calls
            if turn:  # the first turn compiles
                times[name].append(spent)
    ratio = np.array(times["plain"]) / np.array(times["drafted"])
    each = {name: np.median(times[name]) / calls[name] for name in times}
    return {
        "ratios": ratio,
        "wall clock over plain": float(ratio.mean()),
        "lowest": float(ratio.min()),
        "highest": float(ratio.max()),
        "time of a call over plain's": float(each["drafted"] / each["plain"]),
    }


# ---- the report


def _report(found: Any, plain: Any, domains: Any, config: Config, report: Any) -> None:
    prompts = [p for some in domains.values() for p in some]
    rows = []
    for arm, some in found.items():
        row: dict[str, Any] = {"drafter": arm}
        for at in ("T=0", "T=1"):
            values = [r[f"tokens per call, {at}"] for r in some]
            mean, interval = float(np.mean(values)), student_interval(values)
            row[f"tokens per call, {at}"] = round(mean, 3)
            if interval is not None:
                row[f"95 %, {at}"] = f"{interval[0]:.2f} to {interval[1]:.2f}"
        first = some[0]
        row |= {
            "slots per call": round(first["slots per call, T=0"], 1),
            "time of a call over plain's": round(
                first["time of a call over plain's"], 2
            ),
            "wall clock over plain": round(first["wall clock over plain"], 2),
            "lowest": round(first["lowest"], 2),
            "highest": round(first["highest"], 2),
            "parameters": first["parameters"],
            "training, s": round(first["training, s"], 1),
        }
        rows.append(row)
    report.table("Drafters on one target", rows)
    repeats = {
        at: np.mean([repeated_ngrams(p, t) for p, t in zip(prompts, out.rows)])
        for at, out in plain.items()
    }
    report.table(
        "Share of repeated 4-grams in what is emitted",
        [{f"T={at:g}": round(float(share), 3) for at, share in repeats.items()}],
    )
    _figure(rows, report)
    _claims(found, 2 * len(prompts), config, report)


def _figure(rows: list[dict[str, Any]], report: Any) -> None:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(7, 0.45 * len(rows) + 1))
    axes = fig.add_subplot()
    places = np.arange(len(rows))
    for shift, at in ((-0.2, "T=0"), (0.2, "T=1")):
        values = [row[f"tokens per call, {at}"] for row in rows]
        axes.barh(places + shift, values, 0.38, label=at)
    axes.set_yticks(places, [row["drafter"] for row in rows])
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("tokens per call")
    axes.legend()
    report.figure("Tokens per call", fig)


def _claims(found: Any, compared: int, config: Config, report: Any) -> None:
    """`compared` is the number of rows of one drafter at both temperatures."""
    every = [row for some in found.values() for row in some]
    at_one = lambda arm: [row["tokens per call, T=1"] for row in found[arm]]
    learned = {arm: at_one(arm) for arm in found if ARMS[arm].start is not None}
    names = [f"rows that differ, T={t}" for t in (0, 1)]
    differing = lambda some: sum(row[name] for row in some for name in names)
    where = f"where plain decoding had no near-tie (gap < {_near(config):g})"
    report.claim(
        "lossless",
        f"rows that differ, over all drafters, seeds and temperatures, {where}",
        paper="drafts are verified: the output is the target's",
        measured=differing(every), unit="rows", op="==", bound=0,
        n=compared * len(every), reason="a bug: please report it",
    )  # fmt: skip
    over, best = None, "none"
    if learned and "prompt lookup" in found:
        best = max(learned, key=lambda arm: np.mean(learned[arm]))
        over = np.array(learned[best]) / at_one("prompt lookup")[0]
    _mean_claim(
        report, "trained_over_lookup_t1", over,
        f"tokens per call at T=1 of the best trained drafter here ({best}), chosen by "
        "this figure, over those of prompt lookup",
        paper="each paper has its own target, data and tree: no figure for this",
        unit="x", reason="the trainings are short",
    )  # fmt: skip
    least = min(learned, key=lambda arm: np.mean(learned[arm])) if learned else "none"
    _mean_claim(
        report, "drafts_help_each", learned.get(least),
        f"tokens per call at T=1 of the worst trained drafter here ({least}), above "
        "the 1 that a call emits without any draft",
        paper="each paper reports more than plain decoding's 1", unit="tokens/call",
        reason="the trainings are short",
    )  # fmt: skip
    gated = [row for arm in found if arm in _GATED for row in found[arm]]
    report.claim(
        "mtp_gate",
        "rows that the model with mask tokens and gated adapters emits otherwise than "
        f"without, {where}" + ("" if gated else "; -1: not measured"),
        paper="the gate leaves the model's own outputs as they were",
        measured=differing(gated) if gated else -1, unit="rows", op="==", bound=0,
        n=compared * len(gated),
        reason="a bug: please report it" if gated else _LEFT_OUT,
    )  # fmt: skip
    fastest = max(found, key=lambda arm: found[arm][0]["wall clock over plain"])
    ratios = found[fastest][0]["ratios"]
    report.claim(
        "wall_clock_best",
        f"wall clock of plain decoding over that of the fastest here ({fastest}), "
        "chosen by this figure",
        paper="1.5x to 5x on GPUs",
        measured=round(float(np.mean(ratios)), 3), unit="x", op=">=", bound=1.5,
        ci95=student_interval(ratios), n=len(ratios),
        reason="a call of several nodes costs more than one of one here (see the "
        "table): the target's weights fit into the processor's cache",
    )  # fmt: skip


_GATED = ("mask tokens", "mask tokens, linear")
_LEFT_OUT = "not measured: this preset leaves out an arm that it needs"


def _mean_claim(
    report: Any, id_: str, values: Any, claim: str, *, paper: str, unit: str,
    reason: str,
) -> None:  # fmt: skip
    """A mean over seeds, which is to be above 1."""
    there = values is not None
    report.claim(
        id_, claim if there else f"not measured: {claim}", paper=paper,
        measured=round(float(np.mean(values)), 3) if there else 0.0, unit=unit, op=">",
        bound=1.0, ci95=student_interval(values) if there else None,
        n=len(values) if there else 0, reason=reason if there else _LEFT_OUT,
    )  # fmt: skip
