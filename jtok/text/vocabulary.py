"""Bytes and ids: everything about a tokenizer that does not depend on a model."""

import operator
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import tokenizers
from jaxtyping import Int32, Integer

from jtok import files
from jtok.errors import ArgumentError, ArgumentTypeError, check
from jtok.text import _formats
from jtok.text import _tokenizer_json as tj
from jtok.text.chat import ChatTable

__all__ = ["Vocabulary"]


class Vocabulary(ChatTable):
    """The tokens of a tokenizer: their bytes, their roles, and text to ids and back.

    Immutable, and equal and hashed by content (`hash`), so it can be static metadata
    of a pytree. Made by `load`, `train_bpe` or `from_json`. Ids may have gaps: those
    have empty bytes and are in `missing_ids`.

    Example:
      >>> vocabulary = Vocabulary.train_bpe(["the cat, the hat"], 260)
      >>> vocabulary.decode(vocabulary.encode("the mat"))
      'the mat'
    """

    @classmethod
    def from_json(
        cls, tokenizer_json: str, tokenizer_config: Mapping[str, Any] | None = None
    ) -> "Vocabulary":
        """Makes a vocabulary from the text of a `tokenizer.json`.

        Args:
          tokenizer_json: the text.
          tokenizer_config: roles (`{"eos_token": "</s>"}`), chat template and the
            like, as in `tokenizer_config.json`; None for none.

        Returns:
          The vocabulary.

        Raises:
          CheckpointError: the text is damaged.

        Example:
          >>> trained = Vocabulary.train_bpe(["a b"], 257)
          >>> Vocabulary.from_json(trained.tokenizer_json()).special
          mappingproxy({})
        """
        contents = {tj.JSON: tokenizer_json}
        if tokenizer_config is not None:
            contents[tj.CONFIG] = tj.dump({**tj.CLASS, **tokenizer_config})
        return cls(contents)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        pattern: str | None = None,
        specials: Mapping[str, int] | None = None,
    ) -> "Vocabulary":
        """Reads a folder or a file: a `tokenizer.json` or an older format.

        In a folder, the first that is there of: `tokenizer.json`, `tokenizer.model`
        and other SentencePiece `.model` files (BPE, Unigram), `.tiktoken` ranks,
        `vocab.json` with `merges.txt`, BERT's `vocab.txt`, CLIP's
        `bpe_simple_vocab_16e6.txt.gz`; its neighbours `tokenizer_config.json`,
        `special_tokens_map.json`, `added_tokens.json` and `chat_template.jinja` count.
        Pickles and code are never read. Ids are those of the format's own library;
        unlike there, the text of a control token becomes that token.

        Args:
          path: the folder or the file.
          pattern: split rule of `.tiktoken` ranks, which need one, and of `merges.txt`
            (None is GPT-2's): `gpt2`, `cl100k`, `llama3`, `qwen2`, `o200k`, `llama4`,
            or a regex. Others hold their own.
          specials: control token -> id for these two formats.

        Returns:
          The vocabulary.

        Raises:
          ArgumentError: `pattern` or `specials` that the format lacks or does not take,
            or a folder with several candidates.
          CheckpointError: a file is damaged; the message names it.
          MissingFileError: there is no tokenizer at `path`.
          UnsupportedCheckpointError: an option that jtok does not follow; it is named.

        Example:
          >>> import tempfile
          >>> folder = tempfile.mkdtemp()
          >>> Vocabulary.train_bpe(["a b"], 257).save(folder)
          >>> Vocabulary.load(folder).size
          257
        """
        place = pathlib.Path(path).expanduser()
        files.recover_folder(place)
        contents, file = _formats.read(place, pattern, specials)
        return cls(contents, str(file))

    @classmethod
    def train_bpe(
        cls,
        texts: Iterable[str],
        size: int,
        specials: Sequence[str] = ("<|endoftext|>",),
    ) -> "Vocabulary":
        """Trains a byte-level BPE with GPT-2's split rule, deterministically.

        Ids: the specials in order, then the 256 bytes, then the merges.

        Args:
          texts: the corpus, read once.
          size: number of ids; fewer when the corpus has no more pairs to merge.
          specials: control tokens; the first has the roles `bos`, `eos` and `pad`.

        Returns:
          The vocabulary.

        Raises:
          ArgumentError: `size` has no room for the bytes and the specials, or a
            special is empty or repeated.
          ArgumentTypeError: `texts` is one string.

        Source: Sennrich et al. 2016, arXiv 1508.07909, section 3.2, over bytes.

        Example:
          >>> Vocabulary.train_bpe(["low lower lowest"], 260).token_bytes[-3:]
          (b'lo', b'low', b' low')
        """
        if isinstance(texts, str | bytes):
            raise ArgumentTypeError(
                "texts: got one string, expected several in a list."
            )
        names = list(specials)
        check(all(names), "specials", names, "no empty token")
        check(len(set(names)) == len(names), "specials", names, "no token twice")
        least = 256 + len(names)
        check(size >= least, "size", size, f"at least {least}: 256 bytes and specials")
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
            add_prefix_space=False
        )
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=names,
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        roles = {f"{role}_token": names[0] for role in ("bos", "eos", "pad") if names}
        return cls.from_json(tokenizer.to_str(pretty=True), roles)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json` and its neighbours, byte for byte as they were read.

        What came from another format becomes the `tokenizer.json` of the same ids.

        Args:
          folder: an existing or new folder; other files in it stay.

        Raises:
          WriteError: a file cannot be written.

        Example:
          >>> import os, tempfile
          >>> folder = tempfile.mkdtemp()
          >>> Vocabulary.train_bpe(["a b"], 257).save(folder)
          >>> sorted(os.listdir(folder))
          ['tokenizer.json', 'tokenizer_config.json']
        """
        contents = dict(self._contents)
        contents.setdefault(tj.CONFIG, tj.dump(tj.CLASS))
        for name, text in contents.items():
            files.write_atomic(pathlib.Path(folder) / name, text)

    # ---- text to ids and back

    def encode(
        self, text: str | bytes, *, specials: bool = True
    ) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text, as `tokenizers.Tokenizer.encode` gives them.

        The text of a special token inside `text` becomes that token. Truncation and
        padding that a `tokenizer.json` may ask for are never applied.

        Args:
          text: a string, or its UTF-8 bytes.
          specials: add what the tokenizer adds around a text, as `transformers` does
            by default: BOS for Llama, CLS and SEP for BERT, nothing for GPT-2.

        Returns:
          `[tokens]` int32.

        Raises:
          ArgumentError: `text` cannot be written as UTF-8, or the tokenizer has no
            token for a part of it and no unknown token.

        Example:
          >>> Vocabulary.train_bpe(["a b"], 257).encode("!!")
          array([1, 1], dtype=int32)
        """
        with tj.guarded(_encode_error):
            encoding = self._tokenizer.encode(
                _as_text(text), add_special_tokens=specials
            )
        return np.asarray(encoding.ids, np.int32)

    def encode_batch(
        self, texts: Sequence[str | bytes], *, specials: bool = True
    ) -> list[Int32[np.ndarray, " tokens"]]:
        """Ids of several texts, in parallel; each as `encode` gives them.

        Args:
          texts: the texts.
          specials: as for `encode`.

        Returns:
          One `[tokens]` int32 array a text.

        Raises:
          ArgumentError: as for `encode`.
          ArgumentTypeError: `texts` is one string.

        Example:
          >>> Vocabulary.train_bpe(["a b"], 257).encode_batch(["!", ""])
          [array([1], dtype=int32), array([], dtype=int32)]
        """
        if isinstance(texts, str | bytes):
            raise ArgumentTypeError(
                "texts: got one string, expected several in a list."
            )
        with tj.guarded(_encode_error):
            encodings = self._tokenizer.encode_batch(
                [_as_text(text) for text in texts], add_special_tokens=specials
            )
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    def encode_chat(
        self,
        messages: Iterable[Any],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Int32[np.ndarray, " tokens"]:
        """Ids of a conversation: what `render_chat` writes, and nothing around it.

        Templates write the control tokens themselves, so none is added: BOS comes
        once, or not at all where the template leaves it out.

        Args:
          messages: as for `render_chat`, and so the others.
          add_generation_prompt: end with what comes before an assistant's answer.
          tools: JSON schemas of tools.
          template: name of one of `chat_templates`.
          extra: more variables for the template.

        Returns:
          `[tokens]` int32.

        Raises:
          ArgumentError: there is no template, or the tokenizer cannot encode its text.
          ArgumentTypeError: messages or variables of other types than JSON's.
          TemplateError: the template refuses the messages, fails, or does too much.

        Example:
          >>> config = {"chat_template": "{{ messages[0].content }}!"}
          >>> json = Vocabulary.train_bpe(["a b"], 257).tokenizer_json()
          >>> Vocabulary.from_json(json, config).encode_chat([{"content": "!"}])
          array([1, 1], dtype=int32)
        """
        text = self.render_chat(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            template=template,
            extra=extra,
        )
        return self.encode(text, specials=False)

    def decode(
        self,
        ids: Iterable[SupportsIndex] | Integer[np.ndarray, " tokens"],
        *,
        skip_special: bool = True,
    ) -> str:
        """Text of ids, as `tokenizers.Tokenizer.decode` gives it.

        Bytes that are no UTF-8 become U+FFFD; a leading metaspace is dropped. To
        join the texts of pieces, join `decode_bytes` instead. Gaps are skipped.

        Args:
          ids: `[tokens]` ids.
          skip_special: leave special tokens out.

        Returns:
          The text.

        Raises:
          ArgumentError: an id is negative or not below `size`.

        Example:
          >>> vocabulary = Vocabulary.train_bpe(["a b"], 257)
          >>> vocabulary.decode([0, 1, 1], skip_special=False)
          '<|endoftext|>!!'
        """
        kept = self.checked_ids(ids, skip_special=skip_special)
        with tj.guarded(_decode_error):
            return self._tokenizer.decode(kept, skip_special_tokens=skip_special)

    def decode_bytes(
        self,
        ids: Iterable[SupportsIndex] | Integer[np.ndarray, " tokens"],
        *,
        skip_special: bool = True,
    ) -> bytes:
        """The bytes of ids, one after another; nothing is stripped or cleaned.

        Args:
          ids: `[tokens]` ids.
          skip_special: leave special tokens out.

        Returns:
          The bytes. Where `round_trips`, those of the encoded text (after the space
          that metaspace tokenizers put before it).

        Raises:
          ArgumentError: an id is negative or not below `size`.

        Example:
          >>> vocabulary = Vocabulary.train_bpe(["a b"], 257)
          >>> vocabulary.decode_bytes(vocabulary.encode("été"))
          b'\\xc3\\xa9t\\xc3\\xa9'
        """
        table = self.token_bytes
        return b"".join(
            table[id_] for id_ in self.checked_ids(ids, skip_special=skip_special)
        )

    def checked_ids(
        self,
        ids: Iterable[SupportsIndex] | Integer[np.ndarray, " tokens"],
        *,
        skip_special: bool = False,
    ) -> list[int]:
        """Ids as plain integers, each known to be one of this vocabulary.

        Args:
          ids: `[tokens]` ids.
          skip_special: leave special tokens out.

        Returns:
          The ids.

        Raises:
          ArgumentError: an id is negative or not below `size`, or no row came.

        Example:
          >>> Vocabulary.train_bpe(["a b"], 257).checked_ids(np.array([0, 2]))
          [0, 2]
        """
        items = np.asarray(ids).tolist() if hasattr(ids, "__array__") else ids
        try:
            plain = [operator.index(item) for item in items]
        except TypeError as error:
            raise ArgumentError(
                f"ids: got {ids!r}, expected one row of ids."
            ) from error
        for id_ in plain:
            if not 0 <= id_ < self.size:
                raise ArgumentError(
                    f"ids: got the id {id_}, expected 0 <= id < {self.size}, the size "
                    "of the vocabulary."
                )
        hidden = self.special_ids if skip_special else frozenset()
        return [id_ for id_ in plain if id_ not in hidden]


def _as_text(text: str | bytes) -> str:
    try:
        if isinstance(text, bytes):
            return text.decode()
        text.encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        where = f"{error.reason} at {error.start}"
        raise ArgumentError(
            f"text: got {text[:40]!r}, expected valid UTF-8 ({where})."
        ) from error
    return text


def _encode_error(error: BaseException) -> Exception:
    return ArgumentError(f"text: the tokenizer cannot encode it: {error}.")


def _decode_error(error: BaseException) -> Exception:
    return ArgumentError(f"ids: the tokenizer cannot decode them: {error}.")
