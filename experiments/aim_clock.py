"""The clock of the experiment on AIM: prefill, decoding, and bytes of the caches."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok import compress, models, nn
from jtok.decode import Session, generate

__all__ = ["speed"]


def speed(config: Any, report: Any) -> None:
    """Times a random decoder, and reports what it took.

    Args:
      config: of `experiments.aim`.
      report: where the figures go.
    """
    layers, wide = config.speed_layers, config.speed_width
    decoder = nn.DecoderConfig(
        vocab_size=64, width=wide, num_layers=layers, num_heads=max(wide // 48, 1),
        num_kv_heads=max(wide // 96, 1), head_dim=48, mlp_width=4 * wide,
        max_positions=8192,
    )  # fmt: skip
    lm = models.init(decoder, jax.random.key(0))
    never = compress.ramp_schedule(layers, layers, layers + 1)
    ramp = compress.ramp_schedule(layers, layers // 2, max(layers * 11 // 14, 2))
    text, rows = config.speed_text, []
    for keep in config.speed_keeps:
        visual = int(config.speed_visual * keep)
        for name, schedule, mode in (
            ("no ramp", never, "compact"),
            ("ramp", ramp, "compact"),
            ("ramp", ramp, "mask"),
        ):
            needed = mode == "mask" or (keep < 1) == (name == "ramp")
            if (mode == "mask" and keep < 1) or (config.few and not needed):
                continue
            row = {"merged to": keep, "schedule": name, "mode": mode}
            rows.append(row | _timed(config, lm, visual, text, schedule, mode))
    base = rows[0]["prefill, ms"]
    for row in rows:
        row["speed-up"] = round(base / row["prefill, ms"], 2)
    report.table(
        f"Prefill and decoding of {config.speed_visual} visual tokens on "
        f"{jax.devices()[0].device_kind}, merging not included", rows,
    )  # fmt: skip
    report.text(
        "Masks compute every token in every layer and rank them beside: they are no "
        "speed-up, and stand in the table to say so."
    )
    _claims(config, rows, report)


def _claims(config: Any, rows: list[dict[str, Any]], report: Any) -> None:
    base = rows[0]["prefill, ms"]
    time_of = lambda **wanted: next(
        row["prefill, ms"] for row in rows if wanted.items() <= row.items()
    )
    aim = {"merged to": 0.25, "schedule": "ramp", "mode": "compact"}
    mask = {"merged to": 1.0, "schedule": "ramp", "mode": "mask"}
    report.claim(
        "compact_prefill_is_faster", "prefill without AIM over prefill with it",
        paper="439.58 to 55.03 ms by a model of the hardware",
        measured=round(base / time_of(**aim), 3), unit="times", op=">", bound=1.0,
        n=config.repeats, reason="too few tokens for attention and MLP to matter",
    )  # fmt: skip
    report.claim(
        "mask_is_no_speedup", "prefill in mask mode over prefill without pruning",
        paper="none: its code has mask mode only", op=">=", bound=1.0, unit="times",
        measured=round(time_of(**mask) / base, 3), n=config.repeats,
        reason="noise of the clock",
    )  # fmt: skip
    off = [abs(row["KV bytes"] / row["KV bytes, counted"] - 1) for row in rows]
    compact = [d for d, row in zip(off, rows, strict=True) if row["mode"] == "compact"]
    report.claim(
        "kv_bytes_as_counted", "largest difference of the caches from counted bytes",
        paper="none", measured=max(compact), unit="share", op="==", bound=0.0,
        n=len(compact), reason="caches hold more than what is left",
    )  # fmt: skip


def _timed(
    config: Any, lm: Any, visual: int, text: int, schedule: Any, mode: str
) -> dict[str, Any]:
    """Medians of a prefill and of a token decoded after it."""
    seq = visual + text
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(1, 64, (1, seq)), jnp.int32)
    prunable = compress.spans_mask(seq, [(text // 4, text // 4 + visual)])[None]
    ask = functools.partial(
        compress.prefill, lm, ids, prunable=prunable, schedule=schedule, mode=mode
    )
    out = jax.block_until_ready(ask())
    prefills = [_seconds(lambda: jax.block_until_ready(ask().logits))
                for _ in range(config.repeats)]  # fmt: skip
    go_on = functools.partial(
        generate, out.target, out.prompts(), params=lm.params, stop_ids=(),
        cache=Session(**out.session()), max_new_tokens=config.new_tokens,
    )  # fmt: skip
    go_on()
    decodes = [_seconds(go_on) for _ in range(config.repeats)]
    counted = compress.flops(
        lm.config, schedule.token_counts(visual, text), where="layer"
    )
    return {
        "prefill, ms": round(1e3 * float(np.median(prefills)), 2),
        "decoding, ms a token": round(
            1e3 * float(np.median(decodes)) / config.new_tokens, 3
        ),
        "GFLOPs": round(counted.flops / 1e9, 2),
        "KV bytes": out.cache.num_bytes,
        "KV bytes, counted": counted.kv_bytes,
    }


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
