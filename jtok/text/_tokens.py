"""What a tokenizer's files say about its tokens: bytes, roles, rules, identity."""

import functools
import hashlib
import json
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool

from jtok.errors import ArgumentError, CheckpointError
from jtok.text import _tokenizer_json as tj

__all__ = ["TokenTable"]


class TokenTable:
    """The part of a `Vocabulary` that neither reads files nor encodes.

    Immutable, and equal and hashed by content.
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

        One of `gpt2`, `llama3`, `qwen2`, `o200k`, `clip` (their split patterns),
        `metaspace`, `bert`, `whitespace`, `none` (not split), `other`.
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
        if self._spec["model"].get("merges") is None:
            return None
        spell = self._spell
        return tuple(
            (spell(left), spell(right)) for left, right in tj.merge_pairs(self._spec)
        )

    @functools.cached_property
    def word_starts(self) -> Bool[np.ndarray, " size"]:
        """`[size]` bool: the token begins a word. Read-only.

        A leading space for byte-level and metaspace tokens, no `##` for WordPiece, all
        tokens of a word-level vocabulary; never a special token or a gap. No token of
        CLIP's, which marks where words end (a space after their bytes).
        """
        if self.kind in ("wordpiece", "wordlevel"):
            prefix = self._prefix if self.kind == "wordpiece" else ""
            starts = [
                id_ in self._surfaces
                and not (prefix and self._surfaces[id_].startswith(prefix))
                for id_ in range(self.size)
            ]
        elif self._suffix:
            starts = [False] * self.size
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
        rules = [tj.split_rules(self._spec), self._spec.get("normalizer")]
        if options := tj.model_options(self._spec):
            rules.append(options)
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

    @property
    def decoder(self) -> dict[str, Any] | None:
        """How tokens are joined: the `decoder` of the `tokenizer.json`, or None."""
        return self._spec.get("decoder")

    def surface_of(self, id_: int) -> str | None:
        """The printed form of a token as its file spells it; None for a gap.

        Args:
          id_: the id.

        Returns:
          The text, for instance `Ġthe` or `##ing`.

        Example:
          >>> from jtok.text import Vocabulary
          >>> Vocabulary.train_bpe(["a b"], 257).surface_of(1)
          '!'
        """
        return self._surfaces.get(id_)

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

    # ---- as a value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenTable):
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

    def __copy__(self) -> "TokenTable":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "TokenTable":
        return self

    def __reduce__(self) -> tuple[type, tuple[dict[str, str], str]]:
        return type(self), (self._contents, self._origin)

    # ---- parts

    @functools.cached_property
    def _prefix(self) -> str:
        return self._spec["model"].get("continuing_subword_prefix") or ""

    @functools.cached_property
    def _suffix(self) -> str:
        return self._spec["model"].get("end_of_word_suffix") or ""

    @functools.cached_property
    def _spell(self) -> Any:
        """The function from the printed form of a model token to its bytes."""
        return functools.partial(
            tj.surface_bytes,
            kind=self.kind,
            fallback=tj.has_byte_fallback(self._spec),
            prefix=self._prefix,
            suffix=self._suffix,
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
