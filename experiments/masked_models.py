"""The joint-sampling experiment on a public masked model, such as Dream-7B.

Unlike the paper, the layer of a model that follows instructions is taught on samples
without a prompt, too: MetaMathQA is not at hand.
"""

import json
import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jtok
from experiments.cache import cached
from jtok import predict, testing, train

__all__ = ["public_model"]


def public_model(config: Any, report: Any) -> None:
    """A public model: its layer, then nats, MAUVE and tokens a second by K.

    Args:
      config: of `experiments.diffusion_joint_sampling`.
      report: where the figures go.
    """
    base = jtok.models.load(config.model, dtype="bfloat16")
    report.artifact("model", config.model)
    report.artifact("judge", config.judge)
    made = _public_layer(base, config)
    judge = jtok.models.load(config.judge, dtype="bfloat16")
    prompts = _problems(base, config)
    rows, reference = [], None
    for joint in (False, True):
        for count in report.progress(range(1, config.most + 1), "tokens a forward"):
            texts, tokens, seconds = _public_samples(base, made, config, count, joint)
            reference = texts if reference is None else reference
            scores = jtok.models.score(judge, tokens)
            per_token = -scores.log_likelihood.sum() / scores.num_tokens.sum()
            row = {"method": "layer" if joint else "parallel", "K": count,
                   "nats a token": float(per_token),
                   "tokens a second": sum(map(len, tokens)) / seconds}  # fmt: skip
            try:
                row["MAUVE"] = predict.mauve_score(texts, reference)
            except jtok.errors.UnsupportedImplementationError as error:
                report.text(str(error))
            if prompts:
                row["GSM8K"] = _solved(base, made, prompts, config, count, joint)
            rows.append(row)
            report.metric(**row)
    report.table(f"{config.model}, {config.new_tokens} new tokens", rows)


def _unprompted(base: jtok.models.Model, config: Any, count: int) -> Any:
    """Rows of a first token and masks."""
    generation = base.generation_config
    first = base.vocabulary.special.get("bos")
    if first is None:
        first = generation.bos_token_id if generation else 0
    mask, pad = base.config.mask_token_id, -1
    return predict.lay_out(
        [[first]] * count, config.new_tokens, mask_id=mask, pad_id=pad
    )[0]


def _forbidden(base: jtok.models.Model) -> tuple[int, ...]:
    generation = base.generation_config
    ends = generation.eos_token_ids if generation else ()
    return tuple(sorted({*ends, *base.vocabulary.special.values()}))


def _public_layer(base: jtok.models.Model, config: Any) -> Any:
    key = {
        "model": config.model, "rows": config.trajectories, "most": config.most,
        "new_tokens": config.new_tokens, "steps": config.layer_steps,
    }  # fmt: skip

    def build(folder: Path) -> None:
        masks = _unprompted(base, config, config.trajectories)
        made = predict.collect_trajectories(
            base, masks, batch=64, forbid=_forbidden(base)
        )
        layer = predict.joint_layer(base.config)
        depth = config.most - 1
        starts, mask = predict.window_starts(made, depth), base.config.mask_token_id

        def windows(step: int) -> dict[str, np.ndarray]:
            rng = np.random.default_rng((2, step))
            at = starts[rng.integers(len(starts), size=32)]
            return {"states": predict.trajectory_windows(made, at, depth, mask_id=mask)}

        steps = config.layer_steps
        rate = train.schedule("constant", peak=5e-5, steps=steps, warmup=250)
        fitted = train.fit(
            predict.joint_loss(base, layer, max_depth=depth),
            layer.init(jax.random.key(0)), frozen=base.params,
            optimizer=train.adamw(rate, weight_decay=0.0, b2=0.999),
            data=windows, steps=steps, key=jax.random.key(1),
            folder=folder / "training",
        )  # fmt: skip
        predict.save_joint(layer, fitted.trainable, folder / "layer")

    folder = cached("joint_layer", key, build)
    return predict.load_joint(base.config, folder / "layer")


def _public_samples(
    base: Any, made: Any, config: Any, count: int, joint: bool
) -> tuple[list[str], list[np.ndarray], float]:
    how = {"layer": made[0], "layer_params": made[1]} if joint else {}
    masks, found = _unprompted(base, config, config.samples), []
    start = time.perf_counter()
    for first in range(0, len(masks), 32):
        out = predict.sample_masked(
            base, masks[first : first + 32], pace=predict.fixed_pace(count),
            temperature=1.0, forbid=_forbidden(base), seed=first, **how,
        )  # fmt: skip
        found += list(np.asarray(out.tokens))
    seconds = time.perf_counter() - start
    return [base.vocabulary.decode(row[1:]) for row in found], found, seconds


def _problems(base: Any, config: Any) -> list[tuple[str, str]]:
    """Questions of school maths with their answers."""
    if not config.problems:
        return []
    lines = testing.data("tasks/gsm8k_test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[: config.problems]]
    return [(row["question"], row["answer"].split("####")[-1].strip()) for row in rows]


def _solved(
    base: Any, made: Any, problems: Any, config: Any, count: int, joint: bool
) -> float:
    """Share of problems whose answer is the last number of the text."""
    how = {"layer": made[0], "layer_params": made[1]} if joint else {}
    generation, right = base.generation_config, 0
    pad = generation.pad_token_id
    pad = generation.eos_token_ids[0] if pad is None else pad
    for first in range(0, len(problems), 16):
        some = problems[first : first + 16]
        ids = [
            base.vocabulary.encode_chat([{"role": "user", "content": question}])
            for question, _ in some
        ]
        rows, valid = predict.lay_out(
            ids, 256, mask_id=base.config.mask_token_id, pad_id=pad
        )
        out = predict.sample_masked(
            base, rows, valid=valid, pace=predict.fixed_pace(count), temperature=0.0,
            block=32, start=rows.shape[1] - 256, **how,
        )  # fmt: skip
        for row, (_, answer) in zip(np.asarray(out.tokens), some, strict=True):
            numbers = re.findall(r"-?\d[\d,]*", base.vocabulary.decode(row[-256:]))
            right += bool(numbers) and numbers[-1].replace(",", "") == answer.replace(
                ",", ""
            )
    return right / len(problems)
