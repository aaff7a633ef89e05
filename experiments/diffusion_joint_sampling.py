"""Joint sampling: one more layer lets a masked-diffusion model reveal several tokens.

Synthetic rows are pairs of groups of four tokens (a, pi(a), a + pi(a) mod 16, 3a + 1
mod 16): each token alone is uniform, and three of them follow from the first. A small
masked model learns them; one-at-a-time samples of it teach the layer (ADJUST) to
predict what the model would say once a token is drawn. Compared are shares of valid
groups at K = 1, 2, 4 tokens a forward: tokens drawn each for itself ("parallel"), with
the layer, and one at a time ("exact"). Second, the same for bytes of Python's standard
library, by the nats of the samples under an n-gram model.

```
python -m experiments.run diffusion_joint_sampling
python -m experiments.run diffusion_joint_sampling --preset full
```

The paper (arXiv 2509.22738): Dream-7B-Base without a prompt, 4 tokens a forward: MAUVE
0.87 with the layer, 0.31 without; nats under Qwen2.5-7B 5.58, 6.52, and 4.25 for one at
a time. The preset `full` is that experiment, for an accelerator; `instruct` is the one
on GSM8K, of a model that follows instructions: 74.0 solved of 100 with the layer at 4
tokens a forward, 58.0 without, 85.2 one at a time. `small` takes about 8 minutes on 2
CPU cores.
"""

import dataclasses
import functools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jtok
from experiments.cache import cached
from experiments.intervals import ratio_interval, student_interval
from experiments.masked_models import first_seed, public_model, timed_fill
from jtok import nn, predict, train

CLAIMS = (
    "single_tokens_do_not_depend_on_the_layer",
    "forwards_at_k4",
    "layer_over_marginals_kl",
    "groups_k2",
    "groups_k4",
    "groups_gap_closed_k2",
    "groups_gap_closed_k4",
    "groups_random_order_k4",
    "bytes_kl",
    "bytes_nats_k4",
)
SOURCES = (
    "experiments/cache.py",
    "experiments/corpus.py",
    "experiments/masked_models.py",
    "jtok/models/families_masked.py",
    "jtok/models/model.py",
    "jtok/nn/block.py",
    "jtok/nn/layers.py",
    "jtok/ops/unembed/divergence.py",
    "jtok/ops/unembed/statistics.py",
    "jtok/predict/denoiser.py",
    "jtok/predict/diffusion.py",
    "jtok/predict/joint.py",
    "jtok/predict/joint_training.py",
    "jtok/predict/masked_losses.py",
    "jtok/predict/masking.py",
    "jtok/predict/reveal.py",
    "jtok/predict/unmask.py",
)
MINUTES = {"smoke": 0.4, "small": 8, "full": 600}


@dataclasses.dataclass(frozen=True)
class Part:
    """One model, its layer, and what is sampled.

    Attributes:
      layers: of the model.
      width: of the model.
      heads: of the model.
      seq: tokens of a row.
      steps: updates of the model.
      batch: rows of an update.
      rate: learning rate of model and layer.
      rows: trajectories that teach the layer.
      held_out: trajectories that measure it.
      layer_steps: updates of the layer.
      layer_batch: windows of an update.
      samples: rows for each method and K.
    """

    layers: int = 2
    width: int = 48
    heads: int = 4
    seq: int = 8
    steps: int = 2500
    batch: int = 128
    rate: float = 2e-3
    rows: int = 1000
    held_out: int = 128
    layer_steps: int = 600
    layer_batch: int = 64
    samples: int = 512


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained and measured.

    Attributes:
      groups: the synthetic part.
      text: the part on bytes.
      max_files: files of the standard library to train on; None for all.
      seeds: of the synthetic part; the first is that of the bytes, too.
      random_ks: tokens a forward in random order, 4 among them.
      text_ks: tokens a forward of bytes, 1 and 4 among them.
      model: hub id of a masked model for the paper's own experiment, "" for none.
      judge: hub id of the causal model that measures its samples.
      new_tokens: tokens of such a sample.
      trajectories: of it, to teach its layer.
      layer_steps: updates of its layer.
      samples: of it for each method and K; MAUVE takes 500 or more.
      most: largest K of it.
      questions: "repository:file" at the hub of problems whose answers teach the
        layer of a model that follows instructions; "" for samples without a prompt.
      characters: of such a question at most.
      problems: of school maths to solve, in place of samples; 0 for none.
      answers: temperature and top-p of their solutions.
    """

    groups: Part = Part()
    text: Part = Part(
        layers=3, width=96, heads=4, seq=64, steps=500, batch=24, rows=128,
        held_out=32, layer_steps=200, layer_batch=16, samples=64,
    )  # fmt: skip
    max_files: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    random_ks: tuple[int, ...] = (1, 2, 4)
    text_ks: tuple[int, ...] = (1, 2, 4)
    model: str = ""
    judge: str = "Qwen/Qwen2.5-7B"
    new_tokens: int = 127
    trajectories: int = 100_000
    layer_steps: int = 20_000
    samples: int = 500
    most: int = 8
    questions: str = ""
    characters: int = 800
    problems: int = 0
    answers: tuple[float, float] = (1.0, 0.9)


PRESETS = {
    "smoke": Config(
        groups=Part(layers=1, width=16, heads=2, steps=20, batch=16, rows=16,
                    held_out=8, layer_steps=5, layer_batch=8, samples=16),
        text=Part(layers=1, width=16, heads=2, seq=16, steps=5, batch=4, rows=4,
                  held_out=4, layer_steps=3, layer_batch=4, samples=4),
        max_files=4, seeds=(0,), random_ks=(4,), text_ks=(1, 4),
    ),
    "small": Config(),
    "full": Config(model="Dream-org/Dream-v0-Base-7B", seeds=(0, 1, 2, 3, 4)),
    "instruct": Config(
        model="Dream-org/Dream-v0-Instruct-7B", new_tokens=256, trajectories=20_000,
        questions="meta-math/MetaMathQA:MetaMathQA-395K.json", problems=250,
        seeds=(0, 1, 2, 3, 4),
    ),
}  # fmt: skip

COUNT = 16  # values of the synthetic tokens; MASK is the id after them
KS = (1, 2, 4)


class Made(NamedTuple):
    """A trained model with its layer, and trajectories that neither has seen."""

    model: jtok.models.Model
    layer: predict.JointLayer
    params: Any
    held_out: predict.Trajectories
    loss: float


def run(config: Config, report: Any) -> None:
    """Trains, samples, compares, and writes the report.

    Args:
      config: what to do.
      report: where the figures go.
    """
    _groups(config, report)
    _bytes(config, report)
    if config.model:
        public_model(config, report)


# ---- training, shared by both parts


def _trained(name: str, part: Part, vocab: int, data: Any, seed: int, key: Any) -> Made:
    """Model and layer from the cache, or trained now."""
    entry = {"part": dataclasses.asdict(part), "seed": seed, "data": key, "version": 2}
    build = functools.partial(_train, part, vocab, data, seed)
    folder = cached(name, entry, build)
    model = jtok.models.load(folder / "model")
    layer, params = predict.load_joint(model.config, folder / "layer")
    held = np.load(folder / "held_out.npz")
    made = predict.Trajectories(held["tokens"], held["turn"], held["length"])
    loss = json.loads((folder / "loss.json").read_text())["loss"]
    return Made(model, layer, params, made, loss)


def _train(part: Part, vocab: int, data: Any, seed: int, folder: Path) -> None:
    keys = jax.random.split(jax.random.key(seed), 4)
    config = nn.DecoderConfig(
        family="llada", vocab_size=vocab + 1, width=part.width, num_layers=part.layers,
        num_heads=part.heads, num_kv_heads=part.heads,
        head_dim=part.width // part.heads, mlp_width=3 * part.width,
        max_positions=part.seq, norm_eps=1e-5, causal=False, mask_token_id=vocab,
    )  # fmt: skip
    model = jtok.models.init(config, keys[0])
    rate = lambda steps: train.schedule(
        "cosine", peak=part.rate, steps=steps, warmup=min(50, steps // 4), floor=0.05
    )
    rows = lambda step: {
        "tokens": data(np.random.default_rng((seed, 1, step)), part.batch)
    }
    fitted = train.fit(
        predict.diffusion_loss(model), jtok.models.stack_layers(_scaled(model.params)),
        optimizer=train.adamw(rate(part.steps), weight_decay=0.0),
        data=rows, steps=part.steps, key=keys[1],
    )  # fmt: skip
    params = jtok.models.split_layers(fitted.trainable)
    model = dataclasses.replace(model, params=params)
    masks = np.full((part.rows + part.held_out, part.seq), vocab, np.int32)
    made = predict.collect_trajectories(
        model, masks, batch=min(256, len(masks)), seed=first_seed(0, seed)
    )
    taught, held = (
        predict.Trajectories(made.tokens[some], made.turn[some], made.length[some])
        for some in (slice(part.rows), slice(part.rows, None))
    )
    layer = predict.joint_layer(config)
    depth = max(KS) - 1
    starts = predict.window_starts(taught, depth)

    def windows(step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((seed, 2, step))
        at = starts[rng.integers(len(starts), size=part.layer_batch)]
        return {"states": predict.trajectory_windows(taught, at, depth, mask_id=vocab)}

    adjusted = train.fit(
        predict.joint_loss(model, layer, max_depth=depth), layer.init(keys[2]),
        frozen=model.params,
        optimizer=train.adamw(rate(part.layer_steps), weight_decay=0.0, b2=0.999),
        data=windows, steps=part.layer_steps, key=keys[3],
    )  # fmt: skip
    jtok.models.save(model, folder / "model")
    predict.save_joint(layer, adjusted.trainable, folder / "layer")
    np.savez(folder / "held_out.npz", **dataclasses.asdict(held))
    loss = float(np.mean(fitted.metrics["loss"][-100:]))
    (folder / "loss.json").write_text(json.dumps({"loss": loss}))


def _scaled(params: Any) -> Any:
    """Starts kernels at 1 / sqrt(inputs): at these widths 0.02 loses many updates."""

    def scaled(path: Any, leaf: jax.Array) -> jax.Array:
        if getattr(path[-1], "key", None) != "kernel":
            return leaf
        return leaf * (leaf.shape[-2] ** -0.5 / 0.02)

    layers = jax.tree_util.tree_map_with_path(scaled, params["layers"])
    return {**params, "layers": layers}


def _divergences(made: Made) -> dict[str, float]:
    """KL to the model run again, of the layer and of the marginals, held out."""
    depth = max(KS) - 1
    model, params = predict.denoiser_of(made.model)
    starts = predict.window_starts(made.held_out, depth)
    starts = starts[:: max(1, len(starts) // 256)]
    states = predict.trajectory_windows(
        made.held_out, starts, depth, mask_id=model.mask_id
    )
    still = made.layer._replace(step=lambda p, q, tokens, hidden, valid, i: hidden)
    found = {}
    for name, layer in (("layer", made.layer), ("marginals", still)):
        loss = jax.jit(
            functools.partial(predict.joint_loss_at, layer), static_argnums=1
        )
        values = [
            float(loss(made.params, model, params, jnp.asarray(states), d + 1))
            for d in range(depth)
        ]
        found[name] = float(np.dot(values, predict.depth_law(depth)))
        found |= {f"{name}, depth {d + 1}": value for d, value in enumerate(values)}
    return found


def _samples(
    made: Made,
    part: Part,
    count: int,
    *,
    joint: bool,
    seed: int,
    order: str = "entropy",
) -> predict.Filled:  # fmt: skip
    """Rows of masks, filled; with and without the layer the same noise."""
    return predict.sample_masked(
        made.model, _masks(made, part), seed=first_seed(count, seed), order=order,
        **_method(made, count, joint),
    )  # fmt: skip


def _masks(made: Made, part: Part) -> np.ndarray:
    mask = made.model.config.mask_token_id
    return np.full((part.samples, part.seq), mask, np.int32)


def _method(made: Made, count: int, joint: bool) -> dict[str, Any]:
    how = {"pace": predict.fixed_pace(count), "temperature": 1.0}
    if joint:
        how |= {"layer": made.layer, "layer_params": made.params}
    return how


# ---- groups


def group_rows(rng: np.random.Generator, count: int, seq: int) -> np.ndarray:
    """Rows of valid groups."""
    pi = np.random.default_rng(7).permutation(COUNT)
    a = rng.integers(COUNT, size=(count, seq // 4))
    groups = np.stack([a, pi[a], (a + pi[a]) % COUNT, (3 * a + 1) % COUNT], axis=-1)
    return groups.reshape(count, seq).astype(np.int32)


def valid_share(tokens: np.ndarray) -> float:
    """Share of groups that are as the first token says."""
    pi = np.random.default_rng(7).permutation(COUNT)
    a, b, c, d = np.moveaxis(tokens.reshape(-1, 4), -1, 0)
    good = (b == pi[a]) & (c == (a + pi[a]) % COUNT) & (d == (3 * a + 1) % COUNT)
    return float(good.mean())


def _groups(config: Config, report: Any) -> None:
    part = config.groups
    example = group_rows(np.random.default_rng(0), 64, part.seq)
    report.data("groups of four", example.tobytes(), kind="synthetic")
    data = functools.partial(_group_batch, part.seq)
    shares: dict[tuple[str, str, int], list[float]] = {}
    forwards: dict[tuple[str, int], float] = {}
    rows, different, pictures = [], 0, {}
    for seed in report.progress(config.seeds, "groups"):
        made = _trained("joint_groups", part, COUNT, data, seed, "groups of four")
        for order in ("entropy", "random"):
            single = None
            for joint in (False, True):
                for count in KS if order == "entropy" else config.random_ks:
                    out = _samples(
                        made, part, count, joint=joint, seed=seed, order=order
                    )
                    tokens = np.asarray(out.tokens)
                    name = "layer" if joint else "parallel"
                    shares.setdefault((order, name, count), []).append(
                        valid_share(tokens)
                    )
                    forwards[name, count] = float(np.mean(out.forwards))
                    pictures.setdefault((name, count), out)  # of the first order
                    if count == 1 and single is None:
                        single = tokens
                    elif count == 1:
                        different += int((tokens != single).sum())
        found = _divergences(made)
        rows.append({"seed": seed, "loss of the model": made.loss, **found})
    report.table("KL to the model run again (nats, held-out states)", rows)
    _group_table(shares, forwards, report)
    _group_claims(config, shares, forwards, rows, different, report)
    _group_figure(config, shares, report)
    for name in ("parallel", "layer"):
        title = f"Two rows by forwards, K = 4, {name}"
        _picture(title, pictures[name, 4], report)


def _group_batch(seq: int, rng: np.random.Generator, count: int) -> np.ndarray:
    return group_rows(rng, count, seq)


def _group_table(shares: Any, forwards: Any, report: Any) -> None:
    rows = []
    for (order, name, count), values in shares.items():
        label = "exact" if count == 1 else name
        row = {
            "order": order,
            "method": f"{label} ({name})" if count == 1 else label,
            "tokens a forward": count,
            "forwards": forwards[name, count],
            "valid groups": round(float(np.mean(values)), 4),
        }
        interval = student_interval(values)
        if interval is not None:
            row["95% low"], row["95% high"] = (round(x, 4) for x in interval)
        rows.append(row)
    report.table("Valid groups", rows)


def _group_claims(
    config: Config, shares: Any, forwards: Any, rows: Any, different: int, report: Any
) -> None:
    small = "the layer approximates: this model, its layer and their training are small"
    report.claim(
        "single_tokens_do_not_depend_on_the_layer",
        "tokens that differ between K = 1 with and without the layer",
        paper="K = 1 is exact",
        measured=different, unit="tokens", op="==", bound=0,
        reason="a bug: please report it",
    )  # fmt: skip
    report.claim(
        "forwards_at_k4",
        "forwards at K = 4 with the layer over those at K = 1",
        paper="a quarter",
        measured=forwards["layer", 4] / forwards["layer", 1],
        unit="ratio", op="==", bound=0.25, reason="a bug: please report it",
    )  # fmt: skip
    ratios = [row["layer"] / row["marginals"] for row in rows]
    report.claim(
        "layer_over_marginals_kl",
        "KL to the model run again: layer over marginals, held out",
        paper="not given",
        measured=round(float(np.mean(ratios)), 4), unit="ratio", op="<", bound=1.0,
        ci95=student_interval(ratios), n=len(ratios), reason=small,
    )  # fmt: skip

    def gaps(order: str, count: int) -> np.ndarray:
        one, two = (np.array(shares[order, n, count]) for n in ("layer", "parallel"))
        return one - two

    for id_, order, count in (
        ("groups_k2", "entropy", 2),
        ("groups_k4", "entropy", 4),
        ("groups_random_order_k4", "random", 4),
    ):
        values = gaps(order, count)
        report.claim(
            id_,
            f"valid groups at K = {count}, {order} order: layer minus parallel",
            paper="MAUVE 0.96 against 0.76 at K = 2, 0.87 against 0.31 at K = 4",
            measured=round(float(values.mean()), 4), unit="share", op=">", bound=0.0,
            ci95=student_interval(values), n=len(values), reason=small,
        )  # fmt: skip
    for count in (2, 4):
        exact = np.array(shares["entropy", "parallel", 1])
        whole = exact - np.array(shares["entropy", "parallel", count])
        gained, there = gaps("entropy", count), float(whole.mean())
        report.claim(
            f"groups_gap_closed_k{count}",
            f"share of the gap between parallel and exact that the layer closes, K = "
            f"{count}, means over seeds",
            paper="0.81 of the gap in MAUVE at K = 4",
            measured=round(float(gained.mean()) / there, 4) if there > 0 else 0.0,
            unit="share", op=">=", bound=0.5,
            ci95=ratio_interval(gained, whole) if there > 0 else None,
            n=len(whole) if there > 0 else 0,
            reason=f"{small}; a group is valid only if all four tokens are, which is "
            "harder than MAUVE" if there > 0 else "no gap here to close",
        )  # fmt: skip


def _group_figure(config: Config, shares: Any, report: Any) -> None:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8, 3))
    orders = {"entropy": KS, "random": config.random_ks}
    plots = fig.subplots(1, 2, sharey=True)
    for axes, (order, counts) in zip(plots, orders.items(), strict=True):
        for name in ("parallel", "layer"):
            values = np.array([shares[order, name, count] for count in counts])
            axes.errorbar(
                counts,
                values.mean(1),
                yerr=values.std(1),
                marker="o",
                capsize=3,
                label=name,
            )
        axes.set(xlabel="tokens a forward", title=f"{order} order", xticks=counts)
        axes.legend()
    fig.axes[0].set(ylabel="share of valid groups")
    report.figure("Valid groups", fig)


def _picture(name: str, out: predict.Filled, report: Any) -> None:
    pieces: list[tuple[str, int]] = []
    for row in range(2):
        tokens, forwards = np.asarray(out.tokens)[row], np.asarray(out.forward)[row]
        pieces += [(f"{t:3d} ", int(f)) for t, f in zip(tokens, forwards, strict=True)]
        pieces.append(("\n", 8))
    report.tokens(name, pieces)


# ---- bytes


def _bytes(config: Config, report: Any) -> None:
    from experiments.corpus import standard_library

    part, seed = config.text, config.seeds[0]
    corpus = standard_library(config.max_files)
    report.data("standard library", sha256=corpus.sha256)
    text = np.frombuffer("\n".join(corpus.train_code).encode(), np.uint8)
    data = functools.partial(_byte_batch, text, part.seq)
    made = _trained("joint_bytes", part, 256, data, seed, corpus.sha256)
    held = np.frombuffer("\n".join(corpus.held_out_code).encode(), np.uint8)
    judge = NGrams(text[: 600_000 if config.max_files is None else 20_000])
    rows, nats = [], {}
    real = _byte_batch(held, part.seq, np.random.default_rng(0), part.samples)
    nats["real", 0] = judge.nats(real)
    for joint in (False, True):
        for count in report.progress(config.text_ks, "bytes"):
            out = _samples(made, part, count, joint=joint, seed=seed)
            tokens, rate = timed_fill(
                made.model, _masks(made, part), size=part.samples,
                seed=first_seed(count, seed), **_method(made, count, joint),
            )  # fmt: skip
            name = "layer" if joint else "parallel"
            nats[name, count] = judge.nats(tokens)
            rows.append({"method": name, "tokens a forward": count,
                         "forwards": float(np.mean(out.forwards)),
                         "nats a byte": round(float(nats[name, count].mean()), 4),
                         "tokens a second": round(rate, 1)})  # fmt: skip
            if count == max(KS):
                _spelled(f"Bytes, K = 4, {name}", out, report)
    rows.append({"method": "held-out files", "tokens a forward": 0, "forwards": 0.0,
                 "nats a byte": round(float(nats["real", 0].mean()), 4),
                 "tokens a second": 0.0})  # fmt: skip
    report.table("Bytes: nats of samples under an n-gram model", rows)
    found = _divergences(made)
    report.table("Bytes: KL to the model run again (nats)",
                 [{"loss of the model": made.loss, **found}])  # fmt: skip
    report.claim(
        "bytes_kl",
        "KL to the model run again: layer over marginals, bytes, held out",
        paper="not given",
        measured=round(found["layer"] / found["marginals"], 4), unit="ratio", op="<",
        bound=1.0, n=part.held_out,
        reason="the layer is trained for a few hundred updates on few trajectories",
    )  # fmt: skip
    apart = _shift(nats, "parallel") - _shift(nats, "layer")
    # Rows of one K with and without the layer are pairs; those of two K are not.
    rng = np.random.default_rng(0)
    draws = rng.integers(part.samples, size=(2000, 2, part.samples))
    spread = [_shift(nats, "parallel", d) - _shift(nats, "layer", d) for d in draws]
    report.claim(
        "bytes_nats_k4",
        "how much nearer to the nats at K = 1 those at K = 4 are with the layer",
        paper="6.52 - 4.25 without and 5.58 - 4.25 with the layer",
        measured=round(apart, 4), unit="nats/byte", op=">", bound=0.0,
        ci95=tuple(np.quantile(spread, (0.025, 0.975)).tolist()), n=part.samples,
        reason="the layer is trained for a few hundred updates on few trajectories",
    )  # fmt: skip


def _shift(nats: Any, name: str, rows: Any = (slice(None),) * 2) -> float:
    """How far the mean nats at the largest K are from those at K = 1.

    `rows` says which rows of either count.
    """
    many, one = nats[name, max(KS)][rows[0]], nats[name, 1][rows[1]]
    return float(abs(many.mean() - one.mean()))


def _byte_batch(
    text: np.ndarray, seq: int, rng: np.random.Generator, count: int
) -> np.ndarray:
    at = rng.integers(len(text) - seq, size=count)
    return text[at[:, None] + np.arange(seq)].astype(np.int32)


def _spelled(name: str, out: predict.Filled, report: Any) -> None:
    pieces: list[tuple[str, int]] = []
    for row in range(3):
        tokens, forwards = np.asarray(out.tokens)[row], np.asarray(out.forward)[row]
        text = bytes(tokens.astype(np.uint8)).decode("latin-1")
        pieces += [(c, int(f)) for c, f in zip(text, forwards, strict=True)]
        pieces.append(("\n", 8))
    report.tokens(name, pieces)


class NGrams:
    """Witten-Bell smoothed counts of bytes after up to four others."""

    def __init__(self, text: np.ndarray, order: int = 5) -> None:
        self.order = order
        raw = text.tobytes()
        self.counts = [
            Counter(raw[i : i + n] for i in range(len(raw) - n + 1))
            for n in range(1, order + 1)
        ]
        self.total = [Counter[bytes]() for _ in range(order)]
        self.kinds = [Counter[bytes]() for _ in range(order)]
        for n, counts in enumerate(self.counts):
            for gram, count in counts.items():
                self.total[n][gram[:-1]] += count
                self.kinds[n][gram[:-1]] += 1

    def nats(self, rows: np.ndarray) -> np.ndarray:
        """`[rows]` mean nats of a byte."""
        return np.array([self._row(bytes(row.astype(np.uint8))) for row in rows])

    def _row(self, raw: bytes) -> float:
        total = 0.0
        for at in range(len(raw)):
            prob = 1 / 256
            for n in range(min(self.order, at + 1)):
                gram = raw[at - n : at + 1]
                seen = self.total[n][gram[:-1]]
                if seen:
                    kinds = self.kinds[n][gram[:-1]]
                    prob = (self.counts[n][gram] + kinds * prob) / (seen + kinds)
            total -= math.log(prob)
        return total / len(raw)
