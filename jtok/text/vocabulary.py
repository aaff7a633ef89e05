"""Bytes and ids: everything about a tokenizer that does not depend on a model."""

import functools
import hashlib
import json
import operator
import os
import pathlib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32, Integer

from jtok import files
from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    check,
)
from jtok.text import _tokenizer_json as tj

__all__ = ["Vocabulary"]

# `transformers` wants a class name to load a folder; this one fits any tokenizer.json.
_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}


class Vocabulary:
    """The tokens of a tokenizer: their bytes, their roles, and text to ids and back.

    Immutable, and equal and hashed by content (`hash`), so it can be static metadata
    of a pytree. Made by `load`, `train_bpe` or `from_json`. Ids may have gaps: those
    have empty bytes and are in `missing_ids`.

    Example:
      >>> vocabulary = Vocabulary.train_bpe(["the cat, the hat"], 260)
      >>> vocabulary.decode(vocabulary.encode("the mat"))
      'the mat'
    """

    def __init__(self, contents: Mapping[str, str], origin: str = tj.JSON) -> None:
        """Reads the texts of a tokenizer's files.

        Args:
          contents: file name -> text; `tokenizer.json` must be there, the names
            `tokenizer_config.json`, `special_tokens_map.json` and
            `chat_template.jinja` may be.
          origin: where they came from, for messages.

        Raises:
          CheckpointError: a text is damaged, or contradicts another.
          UnsupportedCheckpointError: a kind of tokenizer that jtok does not read.
        """
        tokenizer, spec = tj.parse_tokenizer(contents[tj.JSON], origin)
        config, roles = (
            tj.parse_object(contents.get(name, "{}"), origin, name)
            for name in (tj.CONFIG, tj.ROLES)
        )
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        surfaces = {id_: token for token, id_ in vocab.items()}
        if len(surfaces) < len(vocab):
            raise CheckpointError(f"{origin}: damaged, two tokens have the same id.")
        tj.check_added(spec, vocab, origin)
        named = tj.find_roles({**roles, **config}, vocab, origin)
        special = {**tj.unknown_role(spec["model"], vocab), **named}
        fields = {
            "_contents": dict(contents),
            "_origin": origin,
            "_tokenizer": tokenizer,
            "_spec": spec,
            "_config": config,
            "_surfaces": surfaces,
            "_added": tokenizer.get_added_tokens_decoder(),
            "_named_ids": frozenset(named.values()),
            "special": types.MappingProxyType(dict(sorted(special.items()))),
        }
        self.__dict__.update(fields)

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
            contents[tj.CONFIG] = tj.dump({**_CLASS, **tokenizer_config})
        return cls(contents)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        pattern: str | None = None,
        specials: Mapping[str, int] | None = None,
    ) -> "Vocabulary":
        """Reads a Hugging Face folder, or one `tokenizer.json` with its neighbours.

        Pickles and code are never read. SentencePiece, tiktoken and CLIP files are
        not read yet.

        Args:
          path: the folder or the file.
          pattern: split rule of formats whose file has none; not for `tokenizer.json`.
          specials: special tokens of such formats; not for `tokenizer.json`.

        Returns:
          The vocabulary.

        Raises:
          ArgumentError: `pattern` or `specials` given for a `tokenizer.json`.
          CheckpointError: a file is damaged; the message names it.
          MissingFileError: there is no tokenizer at `path`.
          UnsupportedCheckpointError: the tokenizer is in another format.

        Example:
          >>> import tempfile
          >>> folder = tempfile.mkdtemp()
          >>> Vocabulary.train_bpe(["a b"], 257).save(folder)
          >>> Vocabulary.load(folder).size
          257
        """
        place = pathlib.Path(path).expanduser()
        files.recover_folder(place)
        if place.is_dir():
            file = place / tj.JSON
        else:
            tj.refuse_format(place)
            file = place
        if not file.is_file():
            tj.refuse_folder(place)
        for name, value in (("pattern", pattern), ("specials", specials)):
            check(value is None, name, value, f"None: {tj.JSON} holds its own")
        contents = {tj.JSON: tj.read_text(file)}
        for name in (tj.CONFIG, tj.ROLES, tj.TEMPLATE):
            if (neighbour := file.with_name(name)).is_file():
                contents[name] = tj.read_text(neighbour)
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
        contents.setdefault(tj.CONFIG, tj.dump(_CLASS))
        for name, text in contents.items():
            files.write_atomic(pathlib.Path(folder) / name, text)

    # ---- what the tokens are

    # Filled by __init__ through __dict__: instances refuse assignment.
    special: Mapping[str, int]
    _contents: dict[str, str]
    _origin: str
    _tokenizer: tokenizers.Tokenizer
    _spec: dict[str, Any]
    _config: dict[str, Any]
    _surfaces: dict[int, str]
    _named_ids: frozenset[int]
    _added: dict[int, tokenizers.AddedToken]

    @functools.cached_property
    def size(self) -> int:
        """Number of ids, added tokens and gaps included: the highest id plus one."""
        return max(self._surfaces, default=-1) + 1

    @functools.cached_property
    def kind(self) -> str:
        """`byte_bpe`, `sentencepiece_bpe`, `wordpiece`, `unigram` or `wordlevel`.

        BPE over characters is `sentencepiece_bpe` with or without byte fallback.
        """
        return tj.kind_of(self._spec)

    @functools.cached_property
    def pretokenizer(self) -> str:
        """How text is split before merging.

        One of `gpt2`, `llama3`, `qwen2` (their split patterns), `metaspace`, `bert`,
        `whitespace`, `none` (not split), `other`.
        """
        return tj.pretokenizer_of(self._spec)

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes of every id; special tokens have their text, gaps have none."""
        table = [b""] * self.size
        spell = self._spell
        for id_, surface in self._surfaces.items():
            table[id_] = (
                self._added_bytes(id_) if id_ in self._added else spell(surface)
            )
        return tuple(table)

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that control and are no text.

        Those of added tokens marked special, and of roles that the config files name;
        an unknown token that only the model names is text.
        """
        marked = {id_ for id_, token in self._added.items() if token.special}
        return frozenset(marked | self._named_ids)

    @functools.cached_property
    def missing_ids(self) -> frozenset[int]:
        """Ids below `size` that no token has."""
        return frozenset(set(range(self.size)) - self._surfaces.keys())

    @functools.cached_property
    def merges(self) -> tuple[tuple[bytes, bytes], ...] | None:
        """The merge rules of a BPE, first learnt first, as bytes; None for others."""
        if "merges" not in self._spec["model"]:
            return None
        spell = self._spell
        return tuple(
            (spell(left), spell(right)) for left, right in tj.merge_pairs(self._spec)
        )

    @functools.cached_property
    def word_starts(self) -> Bool[np.ndarray, " size"]:
        """`[size]` bool: the token begins a word. Read-only.

        A leading space for byte-level and metaspace tokens, no `##` for WordPiece, all
        tokens of a word-level vocabulary; never a special token or a gap.
        """
        if self.kind in ("wordpiece", "wordlevel"):
            prefix = self._prefix if self.kind == "wordpiece" else ""
            starts = [
                id_ in self._surfaces
                and not (prefix and self._surfaces[id_].startswith(prefix))
                for id_ in range(self.size)
            ]
        else:
            starts = [token.startswith(b" ") for token in self.token_bytes]
        result = np.asarray(starts, bool)
        result[list(self.special_ids)] = False
        result.flags.writeable = False
        return result

    @functools.cached_property
    def round_trips(self) -> bool:
        """Whether token bytes, one after another, are the bytes of the encoded text.

        True for BPE that has every byte (as such, or through `<0xNN>`) and drops no
        character; a space before the text (metaspace) and Unicode composition (NFC)
        are allowed. False for WordPiece, Unigram and word-level vocabularies, whose
        token bytes are only their surface.
        """
        if self.kind not in ("byte_bpe", "sentencepiece_bpe"):
            return False
        fallback = self.kind == "byte_bpe" or tj.has_byte_fallback(self._spec)
        single = {token for token in self.token_bytes if len(token) == 1}
        if self.kind == "sentencepiece_bpe":
            spelled = filter(tj.is_byte_token, self._surfaces.values())
            single = {self._spell(token) for token in spelled}
        return fallback and len(single) == 256 and tj.keeps_text(self._spec)

    @functools.cached_property
    def hash(self) -> str:
        """Hex SHA-256 of what ids mean and how text becomes ids.

        Covers the bytes of all ids, special ids and roles, merges (or Unigram scores),
        the pre-tokeniser and the normaliser; the same in every process.
        """
        digest = hashlib.sha256()
        scores = self._spec["model"]["vocab"] if self.kind == "unigram" else None
        rules = (tj.split_rules(self._spec), self._spec.get("normalizer"))
        head = (self.kind, self.pretokenizer, *rules)
        roles = sorted(self.special.items())
        controls = [sorted(ids) for ids in (self.special_ids, self.missing_ids)]
        digest.update(tj.canonical([*head, roles, *controls, scores]))
        pairs = [part for pair in self.merges or () for part in pair]
        for group in (self.token_bytes, pairs):
            digest.update(len(group).to_bytes(8, "little"))
            for item in group:
                digest.update(len(item).to_bytes(4, "little") + item)
        return digest.hexdigest()

    @property
    def chat_template(self) -> str | None:
        """The Jinja text of the chat template, the default one of several; or None."""
        if tj.TEMPLATE in self._contents:
            return self._contents[tj.TEMPLATE]
        template = self._config.get("chat_template")
        if isinstance(template, list):
            named = {entry.get("name"): entry.get("template") for entry in template}
            return named.get("default")
        return template

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        """A copy of `tokenizer_config.json`; empty where there is none."""
        return json.loads(json.dumps(self._config))

    def tokenizer_json(self) -> str:
        """The text of `tokenizer.json` exactly as it was read.

        Returns:
          The text.

        Example:
          >>> Vocabulary.train_bpe(["a b"], 257).tokenizer_json()[:1]
          '{'
        """
        return self._contents[tj.JSON]

    def id_of(self, token: bytes | str) -> int:
        """The id of a token given by its bytes.

        Where several ids have the same bytes, a token of the model goes before a
        `<0xNN>` one, both before a special one; then the lowest id.

        Args:
          token: its bytes, or its text; for WordPiece also the `##` form as text.

        Returns:
          The id.

        Raises:
          ArgumentError: no token has these bytes.

        Example:
          >>> Vocabulary.train_bpe(["a b"], 257).id_of(b"!")
          1
        """
        wanted = token.encode() if isinstance(token, str) else token
        found = self._ids_by_bytes.get(wanted)
        if isinstance(token, str) and self.kind == "wordpiece":
            spelled = self._tokenizer.token_to_id(token)
            found = found if spelled is None else spelled
        if found is None:
            raise ArgumentError(
                f"token: got {token!r}, expected the bytes of one of the {self.size} "
                "tokens."
            )
        return found

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
        try:
            encoding = self._tokenizer.encode(
                _as_text(text), add_special_tokens=specials
            )
        except Exception as error:  # the library raises bare Exception
            raise _encode_error(error) from error
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
        try:
            encodings = self._tokenizer.encode_batch(
                [_as_text(text) for text in texts], add_special_tokens=specials
            )
        except ArgumentError:
            raise
        except Exception as error:
            raise _encode_error(error) from error
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

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
        kept = self._checked(ids, skip_special)
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
        return b"".join(table[id_] for id_ in self._checked(ids, skip_special))

    # ---- as a value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self is other or self.hash == other.hash

    def __hash__(self) -> int:
        return int(self.hash[:15], 16)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return (
            f"Vocabulary(kind={self.kind!r}, size={self.size}, hash={self.hash[:12]!r})"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: a Vocabulary cannot be changed.")

    def __copy__(self) -> "Vocabulary":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Vocabulary":
        return self

    def __reduce__(self) -> tuple[type, tuple[dict[str, str], str]]:
        return Vocabulary, (self._contents, self._origin)

    # ---- parts

    @functools.cached_property
    def _prefix(self) -> str:
        return self._spec["model"].get("continuing_subword_prefix") or ""

    @functools.cached_property
    def _spell(self) -> Any:
        """The function from the printed form of a model token to its bytes."""
        return functools.partial(
            tj.surface_bytes,
            kind=self.kind,
            fallback=tj.has_byte_fallback(self._spec),
            prefix=self._prefix,
        )

    def _added_bytes(self, id_: int) -> bytes:
        """Literal text, but for the metaspaces that decoding turns back."""
        token = self._added[id_]
        metaspace = self.kind in ("sentencepiece_bpe", "unigram") and not token.special
        text = token.content
        return (text.replace(tj.METASPACE, " ") if metaspace else text).encode()

    @functools.cached_property
    def _ids_by_bytes(self) -> dict[bytes, int]:
        def rank(id_: int) -> tuple[bool, bool, int]:
            byte = tj.is_byte_token(self._surfaces[id_])
            return id_ in self.special_ids, byte, id_

        result: dict[bytes, int] = {}
        for id_ in sorted(self._surfaces, key=rank):
            result.setdefault(self.token_bytes[id_], id_)
        return result

    def _checked(self, ids: Iterable[SupportsIndex], skip_special: bool) -> list[int]:
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


def _encode_error(error: Exception) -> Exception:
    if isinstance(error, ArgumentError):
        return error
    return ArgumentError(f"text: the tokenizer cannot encode it: {error}.")
