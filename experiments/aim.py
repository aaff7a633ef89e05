"""AIM: visual tokens merged before a language model, and pruned inside it by a ramp.

A small vision-language model, trained on synthetic scenes (`experiments.scenes`: 144
visual tokens, 6 of them with facts), answers questions with fewer visual tokens:
merged to 50 and 25 %, pruned inside the decoder by AIM's ramps (early, middle, late)
with several scores, all at counted FLOPs; beside FastV, VTW and PyramidDrop. Then the
clock: prefill and decoding of about 1600 tokens, compact and masked, and bytes of keys
and values. The counted FLOPs of the paper's own models are compared with its tables.

```
python -m experiments.run aim
python -m experiments.run aim --preset full
```

The paper (arXiv 2412.03248): on LLaVA-OneVision-7B 25 % of the tokens and the ramp from
layer 14 to 22 of 28 take 14.76 of 99.63 TFLOPs and lose nothing on VideoMME. No figures
of accuracy are reproduced here, only directions; `full` runs LLaVA-1.5-7B on
LLaVA-Bench (In-the-Wild). About 15 minutes on 2 free CPU cores, models included.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import aim_clock, aim_report, scene_models, scenes
from experiments.scenes import SceneConfig
from jtok import compress, nn
from jtok.compress import AimScore, LastTokenScore

CLAIMS = (
    "flops_formula",
    "same_tokens_in_both_modes",
    "compact_equals_mask",
    "late_ramp_is_free",
    "early_ramp_costs",
    "merging_is_free",
    "merging_and_ramp_are_free",
    "pagerank_beats_random",
    "pagerank_finds_the_object",
    "pagerank_near_last_token",
    "beats_fastv_at_equal_flops",
    "beats_vtw_at_equal_flops",
    "position_bias",
    "compact_prefill_is_faster",
    "mask_is_no_speedup",
    "kv_bytes_as_counted",
)
SOURCES = (
    "experiments/aim_clock.py",
    "experiments/aim_llava.py",
    "experiments/aim_report.py",
    "experiments/scene_models.py",
    "experiments/scenes.py",
    "jtok/compress/depth.py",
    "jtok/compress/flops.py",
    "jtok/compress/frame_merging.py",
    "jtok/compress/importance.py",
    "jtok/compress/prefill.py",
    "jtok/compress/pruned_cache.py",
    "jtok/models/layerwise.py",
    "jtok/models/model.py",
    "jtok/nn/block.py",
    "jtok/ops/byproducts/reference.py",
    "jtok/train/loop.py",
)
MINUTES = {"smoke": 0.4, "small": 15, "full": 120}

# Section 4 of the paper: layers, width, key-value width, MLP, text tokens.
_QWEN2 = (28, 3584, 512, 18944, 100)
_VICUNA = (32, 4096, 4096, 11008, 40)
_NEVER = (99, 100)
# Name, model, visual tokens, ramp, TFLOPs in the paper's tables.
_TABLES = (
    ("base", _QWEN2, 6272, _NEVER, 99.63),
    ("AIM", _QWEN2, 1568, (14, 22), 14.76),
    ("merged to 50 %", _QWEN2, 3136, _NEVER, 46.48),
    ("merged to 25 %", _QWEN2, 1568, _NEVER, 22.90),
    # 24 of the 196 tokens of a frame, though its code leaves 25.
    ("merged to 12.5 %", _QWEN2, 768, _NEVER, 11.64),
    ("LLaVA-1.5", _VICUNA, 576, _NEVER, 8.18),
    ("AIM, 252 tokens", _VICUNA, 252, (13, 21), 2.22),
    ("AIM, 72 tokens", _VICUNA, 72, (13, 21), 1.00),
)


# Settings that no claim is about.
_OTHERS = (
    "merged to 50 %",
    "AIM: 50 % and late ramp",
    "PyramidDrop",
    "late ramp, first tokens",
    "middle ramp, first tokens",
    "early ramp, first tokens",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The model, what is asked, and what is timed.

    `world` describes scenes and model, one for each of `seeds`. `questions` are asked
    about held-out scenes. `early`, `middle` and `late` are ramps of the decoder. The
    clock runs on a random decoder of `speed_layers` layers and `speed_width`, for
    `speed_visual` visual and `speed_text` other tokens, of which merging keeps
    `speed_keeps`, `repeats` times. With `few` what no claim needs is left out. With
    `model` (a hub id) that one answers `pairs` questions of LLaVA-Bench, in place of
    scenes.
    """

    world: SceneConfig = dataclasses.field(default_factory=SceneConfig)
    seeds: tuple[int, ...] = (0, 1, 2)
    questions: int = 800
    early: tuple[int, int] = (0, 2)
    middle: tuple[int, int] = (1, 4)
    late: tuple[int, int] = (3, 6)
    speed_layers: int = 14
    speed_width: int = 192
    speed_visual: int = 1568
    speed_text: int = 100
    speed_keeps: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)
    new_tokens: int = 32
    repeats: int = 5
    few: bool = False
    model: str = ""
    pairs: int = 60


PRESETS = {
    "smoke": Config(
        world=SceneConfig(
            grid=6, layers=2, width=32, tower_width=32, tower_layers=1, heads=2,
            steps=2, crops=0.0, batch=2, asked=2,
        ),
        seeds=(0,), questions=8, middle=(0, 2), late=(0, 2), speed_layers=2,
        speed_width=48, speed_visual=64, speed_text=8, speed_keeps=(1.0, 0.25),
        new_tokens=4, repeats=1, few=True,
    ),
    "small": Config(),
    "full": Config(model="llava-hf/llava-1.5-7b-hf"),
}  # fmt: skip


def run(config: Config, report: Any) -> None:
    """Counts, answers and times.

    Args:
      config: what to run.
      report: where the figures go.
    """
    _formula(report)
    found = []
    if config.model:
        from experiments import aim_llava

        found = [aim_llava.measure(config.model, config.pairs, report)]
    else:
        report.data("synthetic scenes", scenes.__doc__.encode(), kind="synthetic")
        for seed in report.progress(config.seeds, "seeds"):
            found.append(_scenes(config, seed, report))
    aim_report.answers(found, report)
    aim_clock.speed(config, report)


# Counted ------------------------


def _formula(report: Any) -> None:
    rows, worst = [], 0.0
    for name, sizes, visual, (first, last), paper in _TABLES:
        layers, width, keys, inner, text = sizes
        decoder = nn.DecoderConfig(
            vocab_size=8, width=width, num_layers=layers, num_heads=width // 128,
            num_kv_heads=keys // 128, head_dim=128, mlp_width=inner, max_positions=8,
        )  # fmt: skip
        counts = compress.ramp_schedule(layers, first, last).token_counts(visual, text)
        charged = compress.flops(decoder, counts, tokens="leaving").flops / 1e12
        real = compress.flops(decoder, counts, where="layer").flops / 1e12
        worst = max(worst, abs(charged / paper - 1))
        row = {"setting": name, "visual tokens": visual, "paper, T": paper}
        row |= {"counted as there, T": round(charged, 2), "computed, T": round(real, 2)}
        rows.append(row)
    report.table("FLOPs of the paper's models, in T", rows)
    report.claim(
        "flops_formula",
        "largest difference between counted FLOPs and the paper's tables",
        paper="99.63, 14.76, 8.18, 2.22, 1.00 TFLOPs", measured=round(worst, 5),
        unit="of the paper's figure", op="<=", bound=0.01, n=len(rows),
        reason="the tables round, or count other parts",
    )  # fmt: skip


# Answers ------------------------


@functools.partial(jax.jit, static_argnames="steps")
def _merge(tokens: jax.Array, steps: tuple[int, ...]) -> jax.Array:
    return compress.merge_frames(tokens, steps).tokens


def _settings(config: Config) -> dict[str, Any]:
    """Name -> (share kept by merging, schedule, score)."""
    layers = config.world.layers
    ramp = lambda pair: compress.ramp_schedule(layers, *pair)
    never = compress.ramp_schedule(layers, layers, layers + 1)
    middle, tokens = ramp(config.middle), config.world.tokens
    goal = _cost(config, middle, tokens)
    last = LastTokenScore()
    settings = {
        "base": (1.0, never, None),
        "merged to 50 %": (0.5, never, None),
        "merged to 25 %": (0.25, never, None),
        "AIM: 50 % and late ramp": (0.5, ramp(config.late), AimScore()),
        "AIM: 25 % and late ramp": (0.25, ramp(config.late), AimScore()),
        "VTW": (1.0, _nearest(config, goal, _vtw_schedules(layers)), None),
        "PyramidDrop": (
            1.0,
            compress.pyramid_schedule(layers, stages=min(3, layers)),
            last,
        ),
    }
    drops = np.linspace(0.02, 0.98, 49)
    fastv = [compress.fastv_schedule(layers, 1, float(drop)) for drop in drops]
    settings["FastV, layer 1"] = (1.0, _nearest(config, goal, fastv), last)
    scores = {
        "PageRank": AimScore(), "last token": last, "first tokens":
        compress.FirstTokensScore(), "random": compress.RandomScore(),
    }  # fmt: skip
    for name in ("early", "middle", "late"):
        for score, how in scores.items():
            settings[f"{name} ramp, {score}"] = (1.0, ramp(getattr(config, name)), how)
    for name in _OTHERS if config.few else ():
        del settings[name]
    return settings


def _vtw_schedules(layers: int) -> list[Any]:
    return [compress.vtw_schedule(layers, layer) for layer in range(1, layers)]


def _cost(config: Config, schedule: Any, visual: int) -> int:
    lm = scene_models.decoder_config(config.world)
    counts = schedule.token_counts(visual, 3)
    return compress.flops(lm, counts, where="layer").flops


def _nearest(config: Config, goal: int, schedules: list[Any]) -> Any:
    distance = lambda s: abs(_cost(config, s, config.world.tokens) - goal)
    return min(schedules, key=distance)


def _scenes(config: Config, seed: int, report: Any) -> dict[str, Any]:
    """What one model answers under each setting; one row of figures a setting."""
    own = dataclasses.replace(config.world, seed=seed)
    model, key = scene_models.trained(own)
    report.artifact(f"scene model, seed {seed}", key)
    asked = 4
    held_out = scenes.make_scenes(own, config.questions // asked, seed=1, asked=asked)
    seen = jax.jit(scene_models.encode)(model, held_out.images)
    visual = jnp.repeat(seen.tokens, asked, axis=0)
    questions = jnp.asarray(held_out.questions.reshape(-1, 2))
    answers = held_out.answers.reshape(-1)
    cells = np.take_along_axis(held_out.cells, held_out.about, 1).reshape(-1)
    rows: dict[str, Any] = {}
    for name, (keep, schedule, score) in _settings(config).items():
        steps = compress.frame_removals(own.tokens, keep=keep)
        tokens = _merge(visual, steps)
        out = _answered(model, tokens, questions, schedule, score)
        right = np.asarray(jnp.argmax(out.logits, -1)) == answers
        kept = np.asarray(out.kept)[:, :, 1:-2]
        rows[name] = {
            "accuracy": float(right.mean()),
            "flops": _cost(config, schedule, tokens.shape[1]),
        }
        if keep == 1.0:
            rows[name] |= _places(kept, cells)
    middle = compress.ramp_schedule(own.layers, *config.middle)
    ask = functools.partial(_answered, model, visual, questions, middle, AimScore())
    short, masked = ask(), ask(mode="mask")
    forced = ask(kept=masked.kept)
    same = np.asarray(short.kept) == np.asarray(masked.kept)
    difference = float(jnp.max(jnp.abs(forced.logits - masked.logits)))
    return {"seed": seed, "rows": rows, "same": same.mean(), "difference": difference}


def _answered(
    model: Any, tokens: Any, questions: Any, schedule: Any, score: Any, **options: Any
) -> Any:
    batch, count = tokens.shape[:2]
    real = jnp.ones((batch, count), bool)
    at = jnp.broadcast_to(1 + jnp.arange(count, dtype=jnp.int32)[None], (batch, count))
    x, positions, _ = scene_models.prompt(model, tokens, questions, real, at)
    prunable = np.zeros(x.shape[:2], bool)
    prunable[:, 1 : 1 + count] = True
    return compress.prefill(
        model.lm, x, prunable=prunable, schedule=schedule, score=score,
        positions=positions, **options,
    )  # fmt: skip


def _places(kept: np.ndarray, cells: np.ndarray) -> dict[str, float]:
    """Where kept tokens stand, and whether what is asked about is among them."""
    layers, rows, count = kept.shape
    index = np.arange(count) / max(count - 1, 1)
    some = [layer for layer in range(layers) if 0 < kept[layer].sum() < rows * count]
    if not some:
        return {}
    place = np.mean([(kept[i] * index).sum() / kept[i].sum() for i in some])
    fact = np.mean([kept[i][np.arange(rows), cells].mean() for i in some])
    return {"mean place": float(place), "asked object kept": float(fact)}
