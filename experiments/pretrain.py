"""A small language model learns Python's own library in minutes on two CPU cores.

It serves every experiment that needs a language model: a llama-shaped decoder with a
byte-level BPE, trained on the standard library's sources and English help texts, and
kept in the cache as a Hugging Face folder. This is no paper; what it shows is how well
the model predicts held-out files, which stands beside every figure that uses it.

```
python -m experiments.run pretrain
```

About 3.5 minutes on 2 free CPU cores, offline. The `full` preset trains a larger model
for longer, on an accelerator.
"""

import dataclasses
import functools
import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jtok
from experiments.cache import cached
from experiments.corpus import Corpus, held_out_prompts, standard_library
from jtok import train
from jtok.text import Vocabulary

__all__ = ["Config", "held_out_prompts", "run", "small_lm"]

CLAIMS = ("code_bits_per_byte", "english_bits_per_byte")
SOURCES = (
    "experiments/cache.py",
    "experiments/corpus.py",
    "jtok/models/model.py",
    "jtok/nn/block.py",
    "jtok/nn/layers.py",
    "jtok/nn/positions.py",
    "jtok/ops/unembed/*.py",
    "jtok/text/vocabulary.py",
    "jtok/train/*.py",
)
MINUTES = {"smoke": 0.3, "draft": 2, "small": 4, "full": 30}

END_OF_TEXT = "<|endoftext|>"
_TOKENIZER_CHARACTERS = 3_000_000


@dataclasses.dataclass(frozen=True)
class Config:
    """The model, its training and what is measured afterwards.

    `kv_heads` may be fewer than `heads`; `hidden` is the MLP's inner size; `context`
    the longest text the model is declared for. A batch is `batch` rows of `length`
    tokens. `english_repeats` counts the English texts that often, as there is little
    of them; `max_files` trains on that many code files only. The last three fields
    only measure, and the cached model does not depend on them: characters of each
    held-out text to use, prompts to continue, and by how many tokens.
    """

    seed: int = 0
    vocabulary: int = 2048
    layers: int = 4
    width: int = 192
    heads: int = 4
    kv_heads: int = 4
    hidden: int = 512
    context: int = 1024
    steps: int = 950
    batch: int = 4
    length: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    english_repeats: int = 4
    max_files: int | None = None
    held_out_characters: int | None = None
    samples: int = 2
    sample_tokens: int = 96


PRESETS = {
    "smoke": Config(
        vocabulary=320,
        layers=2,
        width=64,
        heads=2,
        kv_heads=2,
        hidden=128,
        steps=20,
        batch=4,
        length=64,
        max_files=8,
        held_out_characters=200,
        samples=1,
        sample_tokens=16,
    ),
    "small": Config(),
    # One layer over the same vocabulary: what drafts for the small model.
    "draft": Config(layers=1, width=96, heads=2, kv_heads=2, hidden=256),
    "full": Config(
        vocabulary=8192,
        layers=12,
        width=512,
        heads=8,
        kv_heads=8,
        hidden=1408,
        steps=6000,
        batch=64,
        length=512,
        learning_rate=1e-3,
        samples=4,
        sample_tokens=256,
    ),
}
_ONLY_MEASURE = ("held_out_characters", "samples", "sample_tokens")


def small_lm(config: Config | None = None) -> Path:
    """Finds the small language model in the cache, or trains it.

    A training that was killed resumes from its last checkpoint.

    Args:
      config: the model and its training; the preset `small` by default.

    Returns:
      A Hugging Face folder, for `jtok.models.load`. The name of the folder above it
      ends with the cache key; there, `metrics.jsonl` tells of the training.

    Raises:
      DataNotFoundError: this Python has no library sources.
      WriteError: the cache cannot be written.
    """
    config = PRESETS["small"] if config is None else config
    corpus = standard_library(config.max_files)
    trained = dataclasses.asdict(config)
    for name in _ONLY_MEASURE:
        del trained[name]
    key = {"config": trained, "corpus": corpus.sha256}
    build = functools.partial(_train, config, corpus)
    return cached("small_lm", key, build) / "model"


def run(config: Config, report: Any) -> None:
    """Trains or finds the model, and measures it on held-out files.

    Args:
      config: what to train and to measure.
      report: where the figures go.
    """
    corpus = standard_library(config.max_files)
    report.data("standard library", sha256=corpus.sha256)
    folder = small_lm(config)
    report.artifact("small_lm", folder.parent.name)
    _report_training(folder, report)
    model = jtok.models.load(folder)
    for kind in ("code", "english"):
        texts = [t[: config.held_out_characters] for t in corpus.held_out(kind)]
        measured = train.bits_per_byte(
            model, model.vocabulary, texts, length=config.length
        )
        report.claim(
            f"{kind}_bits_per_byte",
            f"held-out {kind} takes fewer bits per byte than gzip -9 needs",
            paper="none: the tool that all experiments share",
            measured=round(measured, 4),
            unit="bits/byte",
            op="<",
            bound=round(_gzip_bits_per_byte(texts), 3),
            n=sum(len(text.encode()) for text in texts),
            reason="the training is too short",
        )
    _report_samples(model, config, report)


def _train(config: Config, corpus: Corpus, folder: Path) -> None:
    """Builds the cached folder; called again after a kill, with what was there."""
    vocabulary = _vocabulary(config, corpus)
    end = vocabulary.special["eos"]
    key, init_key = jax.random.split(jax.random.key(config.seed))
    model = jtok.models.init(
        _model_config(config, vocabulary), init_key, vocabulary=vocabulary
    )
    documents = [*corpus.train_code, *corpus.train_english * config.english_repeats]
    data = train.packed_batches(
        train.tokenize_documents(documents, vocabulary, eos_id=end),
        length=config.length,
        batch_size=config.batch,
        seed=config.seed,
        eos_id=end,
    )
    rate = train.schedule(
        "cosine",
        peak=config.learning_rate,
        steps=config.steps,
        warmup=min(50, config.steps // 10),
        floor=0.02,
    )
    result = train.fit(
        train.lm_loss(model),
        _scaled_to_width(model.params),
        optimizer=train.adamw(rate, weight_decay=config.weight_decay),
        data=data,
        steps=config.steps,
        key=key,
        folder=folder / "training",
        save_every=300,
        keep=1,
        metrics_file=folder / "metrics.jsonl",
    )
    # Every process has a part of the arrays; the first writes.
    jtok.models.save(model.replace(params=result.trainable), folder / "model")
    if jax.process_index() == 0:
        shutil.rmtree(folder / "training")


def _scaled_to_width(params: Any) -> Any:
    """Starts kernels at 1 / sqrt(inputs): at these widths 0.02 loses many updates."""

    def scaled(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if getattr(path[-1], "key", None) != "kernel":
            return leaf
        return leaf * (leaf.shape[-2] ** -0.5 / 0.02)

    layers = jax.tree_util.tree_map_with_path(scaled, params["layers"])
    return {**params, "layers": layers}


def _vocabulary(config: Config, corpus: Corpus) -> Vocabulary:
    # The texts are in random order, and 3 MB give nearly the merges of all.
    sample, size = list(corpus.train_english), 0
    for text in corpus.train_code:
        size += len(text)
        if size > _TOKENIZER_CHARACTERS:
            break
        sample.append(text)
    return Vocabulary.train_bpe(sample, config.vocabulary, (END_OF_TEXT,))


def _model_config(config: Config, vocabulary: Vocabulary) -> dict[str, Any]:
    """The model in the words of a Hugging Face `config.json`."""
    end = vocabulary.special["eos"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": end,
        "dtype": "float32",
        "eos_token_id": end,
        "head_dim": config.width // config.heads,
        "hidden_act": "silu",
        "hidden_size": config.width,
        "initializer_range": 0.02,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "vocab_size": vocabulary.size,
    }


def _gzip_bits_per_byte(texts: Sequence[str]) -> float:
    """What a general compressor needs, each text on its own."""
    raw = [text.encode() for text in texts]
    packed = sum(len(gzip.compress(text, 9, mtime=0)) for text in raw)
    return 8 * packed / sum(len(text) for text in raw)


def _report_training(folder: Path, report: Any) -> None:
    """Shows the loss curve of the training, which may have been an earlier run's."""
    from matplotlib.figure import Figure

    lines = (folder.parent / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        report.metric(**row)
    fig = Figure(figsize=(6, 3))
    axes = fig.add_subplot()
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], lw=0.7)
    axes.set(xlabel="update", ylabel="training loss (nats per token)")
    report.figure("Training loss", fig)
    last = rows[-50:]
    report.table(
        "Training",
        [
            {
                "updates": rows[-1]["step"],
                "tokens": sum(row["tokens"] for row in rows),
                "seconds": rows[-1]["seconds"],
                "loss of the last 50": float(np.mean([row["loss"] for row in last])),
            }
        ],
    )


def _report_samples(model: Any, config: Config, report: Any) -> None:
    """Shows how the model continues held-out texts, greedily and at T=1."""
    for kind in ("code", "english"):
        prompts = held_out_prompts(kind, count=config.samples, seed=config.seed)
        for temperature in (0.0, 1.0):
            out = jtok.decode.generate(
                model,
                prompts,
                max_new_tokens=config.sample_tokens,
                temperature=temperature,
                seed=config.seed,
            )
            name = f"{kind.capitalize()} at temperature {temperature:g}"
            pieces = []
            for prompt, text in zip(prompts, out.text, strict=True):
                pieces += [(prompt, 0), (text, 1), ("\n\n", 8)]
            report.tokens(name, pieces)
