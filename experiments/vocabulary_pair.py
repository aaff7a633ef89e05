"""Two small language models with vocabularies of their own, for transplants.

The base has a byte-level BPE of 1024 tokens that cuts numbers into single digits, the
donor one of 1600 that keeps them whole, both trained on the standard library, each on
files of its own; both are untied llamas of two layers. Bits per byte are of held-out
files, so they compare across vocabularies.
"""

import dataclasses
import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers

import jtok
from experiments.cache import cached
from experiments.corpus import Corpus, standard_library
from jtok import train
from jtok.models import Model
from jtok.text import Vocabulary

__all__ = [
    "Pair",
    "PairConfig",
    "bits_by_text",
    "bits_per_byte",
    "held_out_texts",
    "vocabulary_pair",
]

END_OF_TEXT = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """Both models and their training.

    Attributes:
      base_vocabulary: ids of the base, with single digits.
      donor_vocabulary: ids of the donor, with whole numbers.
      layers: of both models, and so the others.
      width: of the residual stream.
      heads: of attention.
      hidden: of the MLP.
      steps: updates.
      batch: rows of a batch.
      length: tokens of a row.
      learning_rate: the peak.
      max_files: train on that many files only; None for all.
      characters: of the files that a tokenizer is trained on.
    """

    base_vocabulary: int = 1024
    donor_vocabulary: int = 1600
    layers: int = 2
    width: int = 128
    heads: int = 4
    hidden: int = 352
    steps: int = 900
    batch: int = 8
    length: int = 256
    learning_rate: float = 2e-3
    max_files: int | None = None
    characters: int = 1_500_000


SMOKE = PairConfig(
    base_vocabulary=300,
    donor_vocabulary=340,
    width=32,
    heads=2,
    hidden=64,
    steps=12,
    batch=4,
    length=64,
    max_files=8,
    characters=60_000,
)


class Pair(NamedTuple):
    """The models, with their vocabularies, and the folders that they came from."""

    base: Model
    donor: Model
    base_folder: Path
    donor_folder: Path


def vocabulary_pair(seed: int = 0, config: PairConfig | None = None) -> Pair:
    """Finds both models in the cache, or trains them.

    Args:
      seed: of their first weights and the order of what they read.
      config: see `PairConfig`.

    Returns:
      `Pair`; the folders are in the Hugging Face format.

    Raises:
      DataNotFoundError: this Python has no library sources.
      WriteError: the cache cannot be written.
    """
    config = config or PairConfig()
    corpus = standard_library(config.max_files)
    folders = []
    for name in ("base", "donor"):
        key = {"seed": seed, "name": name, "corpus": corpus.sha256}
        key["config"] = dataclasses.asdict(config)
        build = functools.partial(_train, name, seed, config, corpus)
        folders.append(cached("vocabulary_pair", key, build) / "model")
    base, donor = (jtok.models.load(folder) for folder in folders)
    return Pair(base, donor, *folders)


def held_out_texts(count: int = 16, characters: int = 8000) -> list[str]:
    """The starts of held-out files, of which neither model has read any.

    Args:
      count: how many files; those with enough text come first.
      characters: of each.

    Returns:
      The texts.
    """
    texts = [text[:characters] for text in standard_library().held_out_code]
    long = [text for text in texts if len(text) == characters]
    return (long + [text for text in texts if len(text) < characters])[:count]


def bits_per_byte(model: Model, texts: Sequence[str], *, length: int = 256) -> float:
    """Bits for each byte of all texts together.

    Args:
      model: with its vocabulary.
      texts: held out.
      length: tokens of a window; each but the first of a text sees half of one before.

    Returns:
      Bits per byte.
    """
    return train.bits_per_byte(model, model.vocabulary, texts, length=length)


def bits_by_text(
    model: Model, texts: Sequence[str], *, length: int = 256
) -> np.ndarray:
    """Bits for each byte, text by text, for paired comparisons.

    Args:
      model: with its vocabulary.
      texts: held out.
      length: tokens of a window.

    Returns:
      `[texts]` float64.
    """
    return np.array([bits_per_byte(model, [text], length=length) for text in texts])


def _train(
    name: str, seed: int, config: PairConfig, corpus: Corpus, folder: Path
) -> None:
    """Builds the cached folder; called again after a kill, with what was there."""
    donor = name == "donor"
    documents = corpus.train_code[int(donor) :: 2]
    vocabulary = _vocabulary(donor, config, documents)
    end = vocabulary.special["eos"]
    key, init_key = jax.random.split(jax.random.key(2 * seed + int(donor)))
    fields = _fields(config, vocabulary)
    model = jtok.models.init(fields, init_key, vocabulary=vocabulary)
    data = train.packed_batches(
        train.tokenize_documents(documents, vocabulary, eos_id=end),
        length=config.length,
        batch_size=config.batch,
        seed=seed,
        eos_id=end,
    )
    rate = train.schedule(
        "cosine", peak=config.learning_rate, steps=config.steps,
        warmup=min(50, config.steps // 10), floor=0.02,
    )  # fmt: skip
    result = train.fit(
        train.lm_loss(model),
        _scaled_to_width(model.params),
        optimizer=train.adamw(rate, weight_decay=0.1),
        data=data,
        steps=config.steps,
        key=key,
        folder=folder / "training",
        save_every=300,
        keep=1,
        metrics_file=folder / "metrics.jsonl",
    )
    jtok.models.save(model.replace(params=result.trainable), folder / "model")
    if jax.process_index() == 0:
        shutil.rmtree(folder / "training")


def _vocabulary(
    donor: bool, config: PairConfig, documents: Sequence[str]
) -> Vocabulary:
    sample, size = [], 0
    for text in documents:
        sample.append(text)
        size += len(text)
        if size > config.characters:
            break
    if donor:
        return Vocabulary.train_bpe(sample, config.donor_vocabulary, (END_OF_TEXT,))
    return single_digit_bpe(sample, config.base_vocabulary)


def single_digit_bpe(texts: Sequence[str], size: int) -> Vocabulary:
    """Trains a byte-level BPE that never puts two digits into a token.

    Args:
      texts: the corpus.
      size: number of ids: an end of text, 256 bytes, merges.

    Returns:
      The vocabulary.
    """
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, level])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    roles = {f"{role}_token": END_OF_TEXT for role in ("bos", "eos", "pad")}
    return Vocabulary.from_json(tokenizer.to_str(pretty=True), roles)


def _fields(config: PairConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """The model in the words of a Hugging Face `config.json`."""
    end = vocabulary.special["eos"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": end,
        "dtype": "float32",
        "eos_token_id": end,
        "head_dim": config.width // config.heads,
        "hidden_act": "silu",
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "max_position_embeddings": 1024,
        "model_type": "llama",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary.size,
    }


def _scaled_to_width(params: Any) -> Any:
    """Starts kernels at 1 / sqrt(inputs): at these widths 0.02 loses many updates."""

    def scaled(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if getattr(path[-1], "key", None) != "kernel":
            return leaf
        return leaf * (leaf.shape[-2] ** -0.5 / 0.02)

    layers = jax.tree_util.tree_map_with_path(scaled, params["layers"])
    return {**params, "layers": layers}
