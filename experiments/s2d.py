"""One sorted draft for several targets: drafts that leave at the first sure exit.

A target of eight layers is trained; its first six layers become a draft, once with the
losses of three exits together (SoFT) and once with that of the last alone (SFT). Held
out text tells how good each exit is. Then both drafts serve two targets, the one of
eight layers and the small model of `pretrain`, which is wider and has four: fixed
exits, and the first exit that is sure (S2D) over a grid of thresholds. Counted are
tokens per call and layers per draft; the speed-up is modelled from the weights that are
read, and measured on this machine beside it. Where the best of several settings is
claimed, every second prompt chooses it and the others tell how fast it is.

```
python -m experiments.run s2d
```

The paper (arXiv 2407.01955), Spec-Bench, a 12-layer draft of Vicuna 7B: S2D 1.34x,
1.38x and 1.95x for targets of 7, 13 and 70 billion parameters, SFT exits 1.08x, 1.05x
and 1.54x at best. With a vocabulary of 2,048 a width of 128 makes an unembedding as
dear as 1.3 layers, so testing an exit costs more here than there.
"""

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jtok
from experiments.cache import cached
from experiments.corpus import held_out_prompts, standard_library
from experiments.intervals import student_interval
from experiments.pretrain import PRESETS as PRETRAIN
from experiments.pretrain import small_lm
from jtok import testing, train
from jtok.decode import (
    Drafter,
    Generated,
    dynamic,
    generate,
    lengths,
    sorted_chain,
    sorted_tree,
)
from jtok.models import Model, cut_layers, stack_layers
from jtok.predict import (
    calibrate_thresholds,
    exit_costs,
    exit_layers,
    exit_nats,
    modelled_speed,
    read_exits,
    sorted_loss,
)

CLAIMS = (
    "soft_low_exits",
    "soft_last_exit",
    "lossless_t0",
    "lossless_t1",
    "s2d_over_sft",
    "s2d_near_best",
    "s2d_robust",
    "calibrated",
    "wall_clock",
)
SOURCES = (
    "experiments/pretrain.py",
    "jtok/decode/candidates.py",
    "jtok/decode/dynamic.py",
    "jtok/decode/loop.py",
    "jtok/decode/sorted.py",
    "jtok/decode/sorted_drafts.py",
    "jtok/decode/sorted_state.py",
    "jtok/decode/types.py",
    "jtok/decode/verify.py",
    "jtok/models/segments.py",
    "jtok/predict/exit_costs.py",
    "jtok/predict/sorted.py",
    "jtok/predict/targets.py",
)
_UNSURE = (
    "drafts of this size are seldom sure, so most leave late (see layers per draft), "
    "and testing an exit reads an unembedding, as dear as a layer and more"
)
MINUTES = {"smoke": 0.5, "small": 10, "full": 2000}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained and decoded.

    Attributes:
      targets: hub ids or folders; none for the two small models of this machine.
      draft: the model whose first layers are the draft; "" for the first target.
      data: "" for the standard library, or "repository:file" of a data set at the hub,
        a JSON list of conversations.
      small: whether the small models are the real ones or the smoke-sized ones.
      exits: layers of each exit.
      grid: thresholds of the first exits to try, the same at each.
      official: thresholds of the paper, one for each exit.
      chain: drafts of a chain: in the first call, and at most.
      steps: updates of a draft.
      batch: rows of a batch.
      length: tokens of a row.
      learning_rate: peak.
      distill: teacher's share of the loss; 0 for none.
      seeds: one draft of each kind is trained for each.
      prompts: prompts of code and of English, each.
      prompt_tokens: tokens of a prompt at most.
      new_tokens: tokens to emit for each.
      timed_prompts: prompts of the timed runs.
      rounds: timed runs of each method, in turns.
      held_out: rows of held-out text for the losses of the exits.
      dtype: of the parameters when decoding.
      seed: of prompts and sampling.
    """

    targets: tuple[str, ...] = ()
    draft: str = ""
    data: str = ""
    small: bool = True
    exits: tuple[int, ...] = (2, 4, 6)
    grid: tuple[float, ...] = (0.1, 0.3, 0.7, 0.9)
    official: tuple[float, ...] = (0.5, 0.5, 0.0)
    chain: tuple[int, int] = (5, 8)
    steps: int = 800
    batch: int = 4
    length: int = 128
    learning_rate: float = 1e-3
    distill: float = 0.0
    seeds: tuple[int, ...] = (0, 1, 2)
    prompts: int = 6
    prompt_tokens: int = 48
    new_tokens: int = 48
    timed_prompts: int = 2
    rounds: int = 2
    held_out: int = 48
    dtype: str = "float32"
    seed: int = 0


PRESETS = {
    "smoke": Config(
        small=False, exits=(1, 2), grid=(0.3,), official=(0.5, 0.0), chain=(2, 3),
        steps=4, length=32, seeds=(0,), prompts=1, prompt_tokens=12, new_tokens=12,
        timed_prompts=1, rounds=1, held_out=4,
    ),
    "small": Config(),
    "full": Config(
        targets=(
            "lmsys/vicuna-7b-v1.5",
            "lmsys/vicuna-13b-v1.5",
            "meta-llama/Llama-2-70b-chat-hf",
        ),
        draft="lmsys/vicuna-7b-v1.5",
        data="Aeala/ShareGPT_Vicuna_unfiltered:ShareGPT_V4.3_unfiltered_cleaned_split.json",
        exits=(6, 9, 12), grid=(0.25, 0.5, 0.75, 0.9), steps=2000, batch=128,
        length=2048, learning_rate=2e-5, prompts=80, prompt_tokens=1024,
        new_tokens=1024, timed_prompts=40, dtype="bfloat16", held_out=256,
    ),
}  # fmt: skip

# Settings are chosen on every second prompt of each kind and reported on the others.
ALL, CHOOSE, REPORT = slice(None), slice(None, None, 2), slice(1, None, 2)


class Speeds(NamedTuple):
    """Modelled speed-ups on all prompts, on those that choose, and on the others."""

    all: float
    choose: float
    report: float


_TARGET = {
    True: dataclasses.replace(
        PRETRAIN["small"], layers=8, width=128, hidden=344, steps=500, length=128
    ),
    False: dataclasses.replace(PRETRAIN["smoke"], layers=3),
}


def run(config: Config, report: Any) -> None:
    """Trains the drafts, decodes with them and writes the report.

    Args:
      config: what to train and to decode.
      report: where the figures go.
    """
    targets = _targets(config, report)
    drafts = {
        (kind, seed): _draft(config, kind, seed, next(iter(targets.values())), report)
        for seed in config.seeds
        for kind in ("SoFT", "SFT")
    }
    _report_losses(config, drafts, report)
    prompts = _prompts(config, next(iter(targets.values())), report)
    runs = _decode_all(config, targets, drafts, prompts, report)
    _report_speeds(config, targets, drafts, runs, report)
    _report_lossless(runs, report)
    _report_calibration(config, targets, drafts, prompts, runs, report)
    _report_trees(config, targets, drafts, prompts, report)
    _report_wall_clock(config, targets, drafts, prompts, report)


# ---- models


def _targets(config: Config, report: Any) -> dict[str, Model]:
    if config.targets:
        for name in config.targets:
            report.artifact("target", name)
        return {n: jtok.models.load(n, dtype=config.dtype) for n in config.targets}
    made = {}
    other = (PRETRAIN["small"],) if config.small else ()  # one is enough for a smoke
    for pretrained in (_TARGET[config.small], *other):
        folder = small_lm(pretrained)
        model = jtok.models.load(folder)
        layers = model.config.num_layers
        report.artifact(f"target of {layers} layers", folder.parent.name)
        made[f"{layers} layers"] = model
    return made


def _draft(config: Config, kind: str, seed: int, target: Model, report: Any) -> Model:
    """Trains the first layers of a model, or finds them in the cache."""
    source = config.draft or (config.targets[0] if config.targets else "")
    key = {
        "kind": kind, "seed": seed, "source": source or str(_TARGET[config.small]),
        "exits": config.exits, "steps": config.steps, "batch": config.batch,
        "length": config.length, "rate": config.learning_rate, "data": config.data,
        "distill": config.distill, "corpus": standard_library().sha256,
    }  # fmt: skip
    build = functools.partial(_train, config, kind, seed, target)
    folder = cached("s2d", key, build)
    report.artifact(f"{kind} draft, seed {seed}", folder.name)
    return jtok.models.load(folder / "model", dtype=config.dtype)


def _train(config: Config, kind: str, seed: int, target: Model, folder: Path) -> None:
    whole = target
    if config.draft:
        whole = jtok.models.load(config.draft, dtype="float32")
    model = cut_layers(whole, config.exits[-1])
    model = model.replace(params=stack_layers(model.params))
    exits = config.exits if kind == "SoFT" else config.exits[-1:]
    rate = train.schedule(
        "cosine", peak=config.learning_rate, steps=config.steps,
        warmup=max(1, config.steps // 25),
    )  # fmt: skip
    vocabulary: Any = model.vocabulary
    end = vocabulary.special["eos"]
    data = train.packed_batches(
        train.tokenize_documents(_documents(config), vocabulary, eos_id=end),
        length=config.length, batch_size=config.batch, seed=seed, eos_id=end,
    )  # fmt: skip
    distill = config.distill if kind == "SoFT" else 0.0
    result = train.fit(
        sorted_loss(model, exits, distill=distill), model.params,
        optimizer=train.adamw(rate, weight_decay=0.0), data=data, steps=config.steps,
        key=jax.random.key(seed), folder=folder / "training", save_every=500, keep=1,
        metrics_file=folder / "metrics.jsonl",
    )  # fmt: skip
    params = jtok.models.split_layers(result.trainable)
    jtok.models.save(model.replace(params=params), folder / "model")
    if jax.process_index() == 0:
        shutil.rmtree(folder / "training")


def _documents(config: Config) -> list[str]:
    """Conversations of a public data set, or the standard library's texts."""
    if not config.data:
        corpus = standard_library()
        return [*corpus.train_code, *corpus.train_english * 4]
    from huggingface_hub import hf_hub_download

    name, file = config.data.split(":")
    path = hf_hub_download(name, file, repo_type="dataset")
    talks = json.loads(Path(path).read_text(encoding="utf-8"))
    roles = {"human": "USER", "gpt": "ASSISTANT"}
    return [
        "\n".join(
            f"{roles.get(turn['from'], turn['from'])}: {turn['value']}"
            for turn in talk["conversations"]
        )
        for talk in talks
    ]


def _prompts(config: Config, model: Model, report: Any) -> list[np.ndarray]:
    vocabulary: Any = model.vocabulary
    texts: list[str] = []
    for kind in ("code", "english"):
        texts += held_out_prompts(kind, count=config.prompts, seed=config.seed)
    report.data("standard library, held-out prompts", "\n".join(texts).encode())
    return [vocabulary.encode(text)[-config.prompt_tokens :] for text in texts]


# ---- losses of the exits


def _report_losses(config: Config, drafts: Any, report: Any) -> None:
    rows, nats = [], {}
    some = next(iter(drafts.values()))
    vocabulary: Any = some.vocabulary
    end = vocabulary.special["eos"]
    corpus = standard_library()
    texts = [t[:20000] for k in ("code", "english") for t in corpus.held_out(k)]
    ids = train.tokenize_documents(texts, vocabulary, eos_id=end)
    data = train.packed_batches(
        ids, length=config.length, batch_size=config.held_out, seed=0, eos_id=end
    )
    tokens = jnp.asarray(data[0]["tokens"])
    read = jax.jit(exit_nats, static_argnums=2)
    for (kind, seed), model in drafts.items():
        nats[kind, seed] = np.asarray(read(model, tokens, config.exits))
        row = {"draft": kind, "seed": seed}
        for layers, value in zip(config.exits, nats[kind, seed], strict=True):
            row[f"exit {layers}"] = round(float(value), 3)
        rows.append(row)
    report.table("Held-out loss at every exit (nats per token)", rows)
    gain = np.array([nats["SFT", s] - nats["SoFT", s] for s in config.seeds])
    low, last = gain[:, :-1].min(axis=1), -gain[:, -1]
    report.claim(
        "soft_low_exits",
        "nats by which sorted training betters the early exits (the smallest gain)",
        paper="early exits of a draft trained at its last exit alone are useless",
        measured=round(float(low.mean()), 4), unit="nats/token", op=">", bound=0.1,
        ci95=student_interval(low), n=len(low),
        reason="the early exits were good without it",
    )  # fmt: skip
    report.claim(
        "soft_last_exit",
        "nats that sorted training costs at the last exit",
        paper="slightly worse than fine-tuning that exit alone",
        measured=round(float(last.mean()), 4), unit="nats/token", op="<=", bound=0.1,
        ci95=student_interval(last), n=len(last),
        reason="so few layers cannot serve three exits at no cost",
    )  # fmt: skip


# ---- decoding


def _settings(config: Config) -> dict[str, tuple[str, tuple[float, ...], int | None]]:
    """Name -> kind of draft, thresholds, and the exit where it is a fixed one."""
    count = len(config.exits)
    made: dict[str, tuple[str, tuple[float, ...], int | None]] = {}
    for kind in ("SFT", "SoFT"):
        for index, layers in enumerate(config.exits):
            bounds = (2.0,) * index + (0.0,) * (count - index)
            made[f"{kind}, exit {layers}"] = kind, bounds, index
    made["S2D, as published"] = "SoFT", config.official, None
    for bound in config.grid:
        bounds = (bound,) * (count - 1) + (0.0,)
        if bounds != config.official:
            made[f"S2D, {bound:g}"] = "SoFT", bounds, None
    return made


def _chain(config: Config, model: Model, bounds: tuple[float, ...]) -> Drafter:
    start, most = config.chain
    return sorted_chain(model, config.exits, bounds, chain=lengths(start, most=most))


def _timed_chain(
    config: Config, model: Model, bounds: tuple[float, ...], fixed: int | None
) -> Drafter:
    """The same drafts; a fixed exit is the only one, so that no other is tested."""
    if fixed is None:
        return _chain(config, model, bounds)
    alone = dataclasses.replace(config, exits=config.exits[fixed : fixed + 1])
    return _chain(alone, model, (0.0,))


def _decode_all(
    config: Config, targets: Any, drafts: Any, prompts: Any, report: Any
) -> dict[Any, Generated]:
    """All prompts of a setting in one batch; rows leave at their own exits."""
    settings, runs = _settings(config), {}
    for temperature in (0.0, 1.0):
        # Sampled text is decoded with the first seed's drafts.
        seeds = config.seeds if temperature == 0 else config.seeds[:1]
        cases = [(t, s, n) for t in targets for s in seeds for n in settings]
        for target, seed, name in report.progress(cases, f"decode, T={temperature:g}"):
            plain = (temperature, target, seed, "plain")
            options: dict[str, Any] = {
                "max_new_tokens": config.new_tokens,
                "temperature": temperature,
                "seed": config.seed,
                "stop_ids": (),
            }
            if plain not in runs:
                model = targets[target]
                runs[plain] = generate(model, prompts, gaps=True, **options)
            kind, bounds, _ = settings[name]
            drafter = _chain(config, drafts[kind, seed], bounds)
            out = generate(targets[target], prompts, drafter=drafter, **options)
            runs[temperature, target, seed, name] = out
    return runs


def _costs(config: Config, draft: Model, target: Model, fixed: int | None) -> Any:
    """What a draft costs at every exit; a fixed exit tests none before it."""
    if fixed is None:
        return exit_costs(draft, config.exits, target)
    costs = np.zeros(len(config.exits))
    costs[fixed] = exit_costs(draft, config.exits[fixed : fixed + 1], target)[0]
    return costs


def _modelled(
    config: Config, draft: Model, target: Model, out: Generated, fixed: Any,
    rows: slice = ALL,
) -> float:  # fmt: skip
    """The modelled speed-up on some of the prompts that were decoded."""
    left = np.asarray(out.drafter_state.left)[rows].sum(axis=0)
    cost = float(left @ _costs(config, draft, target, fixed)) / max(left.sum(), 1)
    calls = out.stats.row_calls[rows].sum()
    emitted = out.stats.row_emitted[rows].sum()
    return modelled_speed(emitted / calls, left.sum() / calls, cost)


def _report_speeds(
    config: Config, targets: Any, drafts: Any, runs: Any, report: Any
) -> None:
    settings = _settings(config)
    speeds: dict[Any, Speeds] = {}
    rows = []
    for (temperature, target, seed, name), out in runs.items():
        if name == "plain":
            continue
        kind, _, fixed = settings[name]
        draft = drafts[kind, seed]
        parts = (ALL, CHOOSE, REPORT)
        some = [_modelled(config, draft, targets[target], out, fixed, p) for p in parts]
        speeds[temperature, target, seed, name] = Speeds(*some)
        left = np.asarray(out.drafter_state.left).sum(axis=0)
        calls = out.stats.calls
        rows.append(
            {
                "temperature": temperature,
                "target": target,
                "seed": seed,
                "draft": name,
                "tokens per call": round(out.stats.tokens_per_call, 3),
                "drafts per call": round(float(left.sum()) / calls, 2),
                "layers per draft": round(exit_layers(config.exits, left), 2),
                "modelled speed-up": round(some[0], 3),
            }
        )
    report.table("Drafts of fixed exits, and of the first sure one", rows)
    _claim_speeds(config, targets, speeds, report)
    _plot(config, targets, speeds, report)


def _claim_speeds(config: Config, targets: Any, speeds: Any, report: Any) -> None:
    names = _settings(config)
    by_kind = {
        kind: [n for n in names if n.startswith(kind)]
        for kind in ("S2D,", "SFT,", "SoFT,")
    }

    def best(kind: str, seed: int, some: Any) -> float:
        """Of a setting that is chosen on other prompts than it is reported on."""
        each = {n: [speeds[0.0, t, seed, n] for t in some] for n in by_kind[kind]}
        name = max(each, key=lambda n: sum(s.choose for s in each[n]))
        return float(np.mean([s.report for s in each[name]]))

    seeds = config.seeds
    gains = np.array(
        [best("S2D,", s, targets) / best("SFT,", s, targets) for s in seeds]
    )
    report.claim(
        "s2d_over_sft",
        "modelled speed-up of the best thresholds over the best exit of an SFT draft, "
        "means over the targets, T=0, both chosen on other prompts",
        paper="1.55 against 1.22 over three targets and two temperatures",
        measured=round(float(gains.mean()), 4), unit="ratio", op=">", bound=1.0,
        ci95=student_interval(gains), n=len(gains),
        reason=_UNSURE,
    )  # fmt: skip
    near = np.array(
        [
            min(best("S2D,", s, [t]) / best("SoFT,", s, [t]) for t in targets)
            for s in seeds
        ]
    )
    report.claim(
        "s2d_near_best",
        "modelled speed-up of the best thresholds over the best fixed exit, at the "
        "target where it is lowest, T=0, both chosen on other prompts",
        paper="0.97 (7B: 1.34 against 1.38), 1.0 (13B), above 1 (70B)",
        measured=round(float(near.mean()), 4), unit="ratio", op=">=", bound=0.9,
        ci95=student_interval(near), n=len(near),
        reason=_UNSURE,
    )  # fmt: skip
    robust = np.array(
        [best("S2D,", s, targets) / best("SoFT,", s, targets) for s in seeds]
    )
    report.claim(
        "s2d_robust",
        "modelled speed-up of one choice of thresholds for all targets over one fixed "
        "exit for all, T=0, both chosen on other prompts",
        paper="the gain of S2D is that one setting serves all targets",
        measured=round(float(robust.mean()), 4), unit="ratio", op=">=", bound=1.0,
        ci95=student_interval(robust), n=len(robust),
        reason=_UNSURE,
    )  # fmt: skip


def _plot(config: Config, targets: Any, speeds: Any, report: Any) -> None:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9, 3.5))
    for axes, target in zip(np.atleast_1d(fig.subplots(1, len(targets))), targets):
        names = list(_settings(config))
        values = [
            np.mean([speeds[0.0, target, s, n].all for s in config.seeds])
            for n in names
        ]
        colours = ["C2" if n.startswith("S2D") else "C0" for n in names]
        axes.barh(names[::-1], values[::-1], color=colours[::-1])
        axes.axvline(1.0, color="grey", lw=0.7)
        axes.set(xlabel="modelled speed-up, T=0", title=f"target: {target}")
        axes.tick_params(labelsize=6)
    fig.tight_layout()
    report.figure("Modelled speed-up", fig)


def _report_lossless(runs: Any, report: Any) -> None:
    """Every output against plain decoding; a difference must be a near-tie."""
    ties = []
    for temperature, id_ in ((0.0, "lossless_t0"), (1.0, "lossless_t1")):
        unexplained = count = 0
        for (t, target, seed, name), out in runs.items():
            if t != temperature or name == "plain":
                continue
            plain = runs[t, target, seed, "plain"]
            count += out.stats.emitted
            for found in testing.compare(plain, out):
                unexplained += found.gap >= 1e-4
                ties.append(
                    {"T": t, "target": target, "draft": name, "row": found.row,
                     "token": found.index, "gap": found.gap}
                )  # fmt: skip
        report.claim(
            id_,
            "rows that differ from plain decoding where it had no near-tie "
            f"(gap < 1e-4), T={temperature:g}",
            paper="lossless; its code is not, above temperature 0",
            measured=unexplained, unit="rows", op="==", bound=0, n=count,
            reason="a bug: please report it",
        )  # fmt: skip
    report.table("Differences from plain decoding (near-ties)", ties)


def _report_calibration(
    config: Config, targets: Any, drafts: Any, prompts: Any, runs: Any, report: Any
) -> None:
    """Thresholds from the trace of every second prompt, used on the others."""
    settings, seed = _settings(config), config.seeds[0]
    draft = drafts["SoFT", seed]
    length = min(config.chain[0], config.new_tokens - 1)
    grid = [name for name, (_, _, fixed) in settings.items() if fixed is None]
    rows, ratios = [], []
    for name, target in targets.items():
        out = runs[0.0, name, seed, "plain"]
        whole = [np.concatenate(pair) for pair in zip(prompts, out.tokens, strict=True)]
        trace = _trace(config, draft, whole[CHOOSE], prompts[CHOOSE])
        costs = exit_costs(draft, config.exits, target)
        found = calibrate_thresholds(*trace, costs, length=length)
        out = generate(
            target, prompts[REPORT], max_new_tokens=config.new_tokens, stop_ids=(),
            drafter=_chain(config, draft, found.thresholds),
        )  # fmt: skip
        here = _modelled(config, draft, target, out, None)
        tried = {
            setting: [
                _modelled(
                    config, draft, target, runs[0.0, name, seed, setting], None, some
                )
                for some in (CHOOSE, REPORT)
            ]
            for setting in grid
        }
        best = max(grid, key=lambda setting: tried[setting][0])
        there = tried[best][1]
        ratios.append(here / there)
        rows.append(
            {"target": name, "chosen": str(found.thresholds),
             "prompts": len(prompts[CHOOSE]),
             "predicted": round(found.speed, 3), "reached": round(here, 3),
             "best of the grid": f"{best}: {there:.3f}"}
        )  # fmt: skip
    report.table("Thresholds from a trace, on other prompts", rows)
    report.claim(
        "calibrated",
        "modelled speed-up with thresholds from a trace over the best of the grid, at "
        "the target where it is lowest, both chosen on other prompts",
        paper="none: its thresholds are set by hand",
        measured=round(min(ratios), 4), unit="ratio", op=">=", bound=0.95,
        n=len(prompts[REPORT]),
        reason="the trace is short, or chains change in length",
    )  # fmt: skip


def _trace(config: Config, draft: Model, whole: Any, prompts: Any) -> Any:
    """How sure and how right every exit is on what a target emitted."""
    longest = max(map(len, whole))
    ids = np.zeros((len(whole), longest), np.int32)
    for row, text in enumerate(whole):
        ids[row, : len(text)] = text
    reads = jax.jit(read_exits, static_argnums=2)(draft, jnp.asarray(ids), config.exits)
    sure, said = np.asarray(reads.confidence), np.asarray(reads.tokens)
    cut = config.new_tokens - 1
    spans = [np.s_[:, i, len(p) - 1 : len(p) - 1 + cut] for i, p in enumerate(prompts)]
    after = np.roll(ids, -1, axis=1)
    right = said == after[None]
    return tuple(np.stack([x[span] for span in spans], axis=1) for x in (sure, right))


def _report_trees(
    config: Config, targets: Any, drafts: Any, prompts: Any, report: Any
) -> None:
    """Chains against trees whose levels leave together."""
    name, target = next(iter(targets.items()))
    draft, rows = drafts["SoFT", config.seeds[0]], []
    size = dynamic(4, 3, 16)
    for level in ("max", "mean") if config.small else ("max",):
        drafter = sorted_tree(
            draft, config.exits, config.official, size=size, level=level
        )
        out = generate(
            target, prompts, max_new_tokens=config.new_tokens, drafter=drafter,
            stop_ids=(),
        )  # fmt: skip
        left = np.asarray(out.drafter_state.left).sum(axis=0)
        rows.append(
            {"target": name, "level": level, "nodes": size.num_nodes,
             "tokens per call": round(out.stats.tokens_per_call, 3),
             "layers per level": round(exit_layers(config.exits, left), 2)}
        )  # fmt: skip
    report.table("Trees with the published thresholds, T=0", rows)


def _report_wall_clock(
    config: Config, targets: Any, drafts: Any, prompts: Any, report: Any
) -> None:
    """One prompt at a time, in turns; the fastest of the rounds counts."""
    settings, seed = _settings(config), config.seeds[0]
    some = prompts[: config.timed_prompts]
    rows, ratios = [], {}
    for target_name, target in targets.items():
        drafters: dict[str, Drafter | None] = {"plain": None}
        for name, (kind, bounds, fixed) in settings.items():
            if (fixed is not None and kind == "SoFT") or name == "S2D, as published":
                drafters[name] = _timed_chain(config, drafts[kind, seed], bounds, fixed)
        times: dict[str, list[float]] = {name: [] for name in drafters}
        for round_ in report.progress(range(config.rounds + 1), f"time {target_name}"):
            for name, drafter in drafters.items():
                spent = 0.0
                for prompt in some:
                    out = generate(
                        target, prompt, max_new_tokens=config.new_tokens,
                        drafter=drafter, stop_ids=(),
                    )  # fmt: skip
                    spent += out.stats.decode_seconds
                if round_ > 0:  # the first compiles
                    times[name].append(spent)
        tokens = len(some) * config.new_tokens
        best = {name: tokens / min(spent) for name, spent in times.items()}
        for name, rate in best.items():
            speed = round(rate / best["plain"], 3)
            rows.append(
                {"target": target_name, "draft": name,
                 "tokens per second": round(rate, 1), "speed-up": speed}
            )  # fmt: skip
        ratios[target_name] = best["S2D, as published"] / best["plain"]
    report.table("Measured on this machine, one prompt at a time, T=0", rows)
    largest = max(targets, key=lambda name: num_weights(targets[name]))
    report.claim(
        "wall_clock",
        "measured speed-up of the published thresholds at the largest target, T=0",
        paper="1.95x (70B), its largest",
        measured=round(ratios[largest], 3), unit="ratio", op=">", bound=1.0,
        n=config.rounds,
        reason="on CPU cores a verified slot costs nearly as much as a call, and the "
        "draft is not much smaller than its targets",
    )  # fmt: skip


def num_weights(model: Model) -> int:
    """Numbers that a model's parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(model.params))
