"""The joint-sampling experiment on a public masked model, such as Dream-7B.

A layer for free text is taught on samples without a prompt at temperature 1, one for a
model that follows instructions on its answers to problems of MetaMathQA. There the
official code attends to the padding before a prompt; here it is not seen.
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

__all__ = ["first_seed", "public_model", "timed_fill"]

_SEEDS = 1_000_000  # more than the rows of any sample


def first_seed(count: int, seed: int = 0) -> int:
    """Seeds of rows that are drawn so many tokens a forward: noise of their own.

    Args:
      count: tokens a forward, below 50; 0 for the trajectories that teach a layer.
      seed: of the run, below 85.

    Returns:
      The seed of the first of up to a million rows.
    """
    return _SEEDS * (50 * seed + count)


def timed_fill(
    model: Any, rows: np.ndarray, *, size: int, seed: int, valid: Any = None, **how: Any
) -> tuple[np.ndarray, float]:
    """Fills rows, some at a time, and tells how fast without compiling.

    Args:
      model: as `sample_masked` takes it.
      rows: `[rows, seq]` int32 with MASK.
      size: rows at a time.
      seed: of the first row.
      valid: `[rows, seq]` bool or None.
      how: options of `sample_masked`.

    Returns:
      The filled rows, and how many tokens were revealed a second.
    """

    def fill(first: int) -> predict.Filled:
        at = np.arange(first, first + size) % len(rows)  # one shape for all
        out = predict.sample_masked(
            model, rows[at], valid=None if valid is None else valid[at],
            seed=(seed + at).tolist(), **how,
        )  # fmt: skip
        return jax.block_until_ready(out)

    fill(0)
    start = time.perf_counter()
    parts = [fill(first) for first in range(0, len(rows), size)]
    seconds = time.perf_counter() - start
    revealed = sum(int((np.asarray(part.turn) >= 0).sum()) for part in parts)
    tokens = np.concatenate([np.asarray(part.tokens) for part in parts])
    return tokens[: len(rows)], revealed / seconds


def public_model(config: Any, report: Any) -> None:
    """A public model and its layer: by K, how fast, and how good.

    Nats and MAUVE of samples without a prompt, or, of a model that follows
    instructions, the share of solved problems of GSM8K.

    Args:
      config: of `experiments.diffusion_joint_sampling`.
      report: where the figures go.
    """
    problems = _problems(config)
    base = jtok.models.load(config.model, dtype="bfloat16")
    report.artifact("model", config.model)
    made = _public_layer(base, config)
    judge = None
    if not problems:
        judge = jtok.models.load(config.judge, dtype="bfloat16")
        report.artifact("judge", config.judge)
    rows, reference = [], None
    for joint in (False, True):
        for count in report.progress(range(1, config.most + 1), "tokens a forward"):
            row: dict[str, Any] = {"method": "layer" if joint else "parallel"}
            how: dict[str, Any] = {"pace": predict.fixed_pace(count)}
            if joint:
                how |= {"layer": made[0], "layer_params": made[1]}
            row["K"] = count
            if problems:
                row |= _solved(base, problems, config, first_seed(count), how)
            else:
                texts, found = _judged(base, judge, config, first_seed(count), how)
                reference = texts if reference is None else reference
                row |= found
                try:
                    row["MAUVE"] = predict.mauve_score(texts, reference)
                except jtok.errors.UnsupportedImplementationError as error:
                    report.text(str(error))
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


def _asked(base: jtok.models.Model, config: Any, questions: list[str]) -> Any:
    """Rows of questions and masks, and what of them is no padding."""
    ids = [
        base.vocabulary.encode_chat([{"role": "user", "content": question}])
        for question in questions
    ]
    return predict.lay_out(
        ids, config.new_tokens, mask_id=base.config.mask_token_id, pad_id=_pad(base)
    )


def _pad(base: jtok.models.Model) -> int:
    """What fills the end of an answer: the padding, or else an end of text."""
    generation: Any = base.generation_config
    pad = generation.pad_token_id
    return generation.eos_token_ids[0] if pad is None else pad


def _forbidden(base: jtok.models.Model) -> tuple[int, ...]:
    generation = base.generation_config
    ends = generation.eos_token_ids if generation else ()
    return tuple(sorted({*ends, *base.vocabulary.special.values()}))


def _taught(base: jtok.models.Model, config: Any) -> tuple[Any, Any, Any]:
    """Trajectories that teach a layer, what of a row is read, and what is learnt."""
    if not config.questions:
        masks = _unprompted(base, config, config.trajectories)
        made = predict.collect_trajectories(
            base, masks, batch=64, seed=first_seed(0), forbid=_forbidden(base)
        )
        return made, np.ones(masks.shape, bool), np.ones(masks.shape, bool)
    from huggingface_hub import hf_hub_download

    name, file = config.questions.split(":")
    path = Path(hf_hub_download(name, file, repo_type="dataset"))
    every = [row["query"] for row in json.loads(path.read_text(encoding="utf-8"))]
    some = [text for text in every if len(text) <= config.characters]
    rows, valid = _asked(base, config, some[: config.trajectories])
    made = predict.collect_trajectories(
        base, rows, valid=valid, batch=64, seed=first_seed(0), temperature=0.1,
        top_p=0.9, cut_id=_pad(base),
    )  # fmt: skip
    return made, valid, valid & (made.tokens != _pad(base))


def _public_layer(base: jtok.models.Model, config: Any) -> Any:
    key = {
        "model": config.model, "rows": config.trajectories, "most": config.most,
        "new_tokens": config.new_tokens, "steps": config.layer_steps,
        "questions": config.questions, "characters": config.characters, "version": 2,
    }  # fmt: skip

    def build(folder: Path) -> None:
        made, valid, learnt = _taught(base, config)
        layer = predict.joint_layer(base.config)
        depth = config.most - 1
        starts, mask = predict.window_starts(made, depth), base.config.mask_token_id

        def windows(step: int) -> dict[str, np.ndarray]:
            rng = np.random.default_rng((2, step))
            at = starts[rng.integers(len(starts), size=32)]
            states = predict.trajectory_windows(made, at, depth, mask_id=mask)
            row = at[:, 0]
            return {"states": states, "valid": valid[row], "learnt": learnt[row]}

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


def _judged(
    base: Any, judge: Any, config: Any, seed: int, how: Any
) -> tuple[list[str], dict[str, float]]:
    """Samples without a prompt, and what another model thinks of them."""
    tokens, rate = timed_fill(
        base, _unprompted(base, config, config.samples), size=32, seed=seed,
        temperature=1.0, forbid=_forbidden(base), **how,
    )  # fmt: skip
    scores = jtok.models.score(judge, list(tokens))
    per_token = -scores.log_likelihood.sum() / scores.num_tokens.sum()
    texts = [base.vocabulary.decode(row[1:]) for row in tokens]
    return texts, {"nats a token": float(per_token), "tokens a second": rate}


def _problems(config: Any) -> list[tuple[str, str]]:
    """Questions of school maths with their answers."""
    if not config.problems:
        return []
    lines = testing.data("tasks/gsm8k_test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[: config.problems]]
    return [(row["question"], row["answer"].split("####")[-1].strip()) for row in rows]


def _solved(
    base: Any, problems: Any, config: Any, seed: int, how: Any
) -> dict[str, float]:
    """Share of problems whose answer is the last number before the end of the text."""
    rows, valid = _asked(base, config, [question for question, _ in problems])
    temperature, top_p = config.answers
    tokens, rate = timed_fill(
        base, rows, valid=valid, size=16, seed=seed, temperature=temperature,
        top_p=top_p, **how,
    )  # fmt: skip
    ends = {_pad(base), *base.generation_config.eos_token_ids}
    right = sum(
        _last_number(base.vocabulary.decode(_until(row[-config.new_tokens :], ends)))
        == answer.replace(",", "")
        for row, (_, answer) in zip(tokens, problems, strict=True)
    )
    return {"GSM8K": right / len(problems), "tokens a second": rate}


def _until(row: np.ndarray, ends: set[int]) -> np.ndarray:
    """The tokens before the first end."""
    found = np.flatnonzero(np.isin(row, list(ends)))
    return row[: found[0]] if len(found) else row


def _last_number(text: str) -> str | None:
    numbers = re.findall(r"-?\d[\d,]*", text)
    return numbers[-1].replace(",", "") if numbers else None
