"""Typed access to a JSON configuration: what has the wrong type is named, in one place.

A kind is found by the name of a field, so that families index what they need and get
an integer, a number, a flag, a text or an object, never something else. Fields that no
rule knows are given as they are: a family that computes with a new one adds its rule.
"""

import inspect
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args, get_origin

from jtok.errors import CheckpointError, MissingFileError

__all__ = ["Fields", "check_types", "read_object", "read_text"]

_MAX_SIZE = 2**31 - 1  # extents and ids are int32
_MAX_LAYERS = 10_000  # families make tuples of as many


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_integer(value) and 0 <= value <= _MAX_SIZE


def _is_layers(value: Any) -> bool:
    return _is_size(value) and value <= _MAX_LAYERS


def _is_step(value: Any) -> bool:
    return _is_size(value) and value > 0


def _are_indices(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_size, value))


def _is_id(value: Any) -> bool:
    # Some files say -1 for "none".
    return _is_integer(value) and -1 <= value <= _MAX_SIZE


def _is_ids(value: Any) -> bool:
    return _is_id(value) or (isinstance(value, list) and all(map(_is_id, value)))


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= 1e300 and math.isfinite(value)


def _is_scalar(value: Any) -> bool:
    # Arrays have no room for larger integers.
    return _is_number(value) and (isinstance(value, float) or abs(value) <= _MAX_SIZE)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_numbers(value: Any) -> bool:
    # A tuple is what `checked` makes of a list.
    return isinstance(value, list | tuple) and all(map(_is_number, value))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


class _Kind(NamedTuple):
    """A kind of value: its test, its name, and whether null may stand for a default."""

    takes: Callable[[Any], bool]
    expected: str
    nullable: bool


_SIZE = _Kind(_is_size, f"an integer from 0 to {_MAX_SIZE}", True)
_LAYERS = _Kind(_is_layers, f"an integer from 0 to {_MAX_LAYERS}", True)
_STEP = _Kind(_is_step, "an integer above 0", True)
_INDICES = _Kind(_are_indices, "a list of indices", True)
_CAP = _Kind(_is_number, "a finite number", True)
_NUMBER = _Kind(_is_number, "a finite number", False)
_SCALAR = _Kind(_is_scalar, "a finite number that arrays can hold", False)
_POSITIVE = _Kind(_is_positive, "a finite number above 0", False)
_FLAG = _Kind(_is_flag, "true or false", True)
_TEXT = _Kind(_is_text, "a text", False)
_TEXTS = _Kind(_is_texts, "a list of texts", True)
_NUMBERS = _Kind(_is_numbers, "a list of finite numbers", True)
_OBJECT = _Kind(_is_object, "an object", True)
_ROPE = _Kind(_is_object, "an object", True)  # given without its nulls
_ID = _Kind(_is_id, "an id", True)
_IDS = _Kind(_is_ids, "an id, or a list of ids", True)

# The first pattern that is the whole name decides.
_KINDS: tuple[tuple[re.Pattern[str], _Kind], ...] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"rope_(parameters|scaling)|(full|sliding)_attention", _ROPE),
        (r"(text|vision)_config|id2label|label2id", _OBJECT),
        (r"(bos|eos|pad)_token_id", _IDS),
        (r"mask_token_id", _ID),
        (r"layer_types|architectures", _TEXTS),
        (r"(short|long)_factor", _NUMBERS),
        (r"(hidden_)?act(ivation)?(_fn|_function|_type)?|hidden_activation", _TEXT),
        (r"model_type|rope_type|type|(torch_)?dtype|feed_forward_proj", _TEXT),
        (r"classifier_(activation|pooling)|position_embedding_type", _TEXT),
        (r"num_hidden_layers|(num|n)_layers?|encoder_layers", _LAYERS),
        (r"_?sliding_window_pattern|decoder_sparse_step|conv_kernel", _STEP),
        (r"global_attn_every_n_layers", _STEP),
        (r"mlp_only_layers", _INDICES),
        (r"\w+_softcapping", _CAP),
        (r"norm_topk_prob|residual_in_fp32", _FLAG),
        (r"(use|tie|add|is|do)_\w+|scale_attn_\w+|(\w+_)?(q|k|v|o)?bias", _FLAG),
        (r"(\w+_)?(theta|factor|base_freq|attn_scalar|emb_base)|rotary_pct", _POSITIVE),
        (r"(\w+_)?(eps|epsilon|multiplier|scale)|expand|time_step_m(in|ax)", _NUMBER),
        (r"(num|n)_(\w+_)?(layers?|heads?|embd|inner|positions|ctx)", _SIZE),
        (r"num_\w+_(layers|heads|experts)|num_experts(_per_tok)?", _SIZE),
        (r"(vocab|hidden|(moe_)?intermediate|embedding|patch|image|state)_size", _SIZE),
        (r"(head|ffn|mlp|embed|encoder_ffn|decoder_ffn)_dim|d_model|d_ff", _SIZE),
        (r"(hidden_)?dim|d_kv|(task_)?type_vocab_size|rel_pos_size", _SIZE),
        (r"relative_attention_(num_buckets|max_distance)|local_attention", _SIZE),
        (r"num_mel_bins|max_source_positions", _SIZE),
        (r"encoder_attention_heads", _SIZE),
        (r"num_(labels|channels|register_tokens)|mlp_ratio|projection_dim", _SIZE),
        (r"(pooler_output|projection)_size|image_(token_(index|id)|seq_length)", _SIZE),
        (r"(pooler|projector_hidden)_act|vision_feature_select_strategy", _TEXT),
        (r"vision_use_head", _FLAG),
        (r"logit_scale_init_value|layerscale_value", _NUMBER),
        (r"(original_)?max_position_embeddings|max_sequence_length", _SIZE),
        (r"max_window_layers|sliding_window|mlp_hidden_size", _SIZE),
    )
)


# What arithmetic is done with: never null or 0 where they are there.
_DEMANDED = re.compile(
    r"hidden_size|num_hidden_layers|num_attention_heads|n_(embd|layer|head)"
    r"|encoder_(layers|attention_heads)"
)


def _kind_of(name: str) -> _Kind | None:
    return next((kind for rule, kind in _KINDS if rule.fullmatch(name)), None)


class Fields(dict[str, Any]):
    """The fields of one JSON object, checked when they are asked for.

    `fields[name]` demands a value; of sizes, one that is positive. `fields.get(name)`
    takes null and 0 too, as many files write them for "the default".

    Args:
      fields: the object.
      where: the file, for messages.

    Example:
      >>> Fields({"is_x": "no"}, where="config.json").get("is_gated")
      Traceback (most recent call last):
      jtok.errors.CheckpointError: config.json: is_x is 'no', expected true or false.
    """

    def __init__(self, fields: Mapping[str, Any], where: str = "config.json") -> None:
        super().__init__(fields)
        self.where = where

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise CheckpointError(f"{self.where}: there is no field {name!r}.")
        value = super().__getitem__(name)
        kind = _kind_of(name)
        size = kind in (_SIZE, _LAYERS)
        if kind is not None and (value is None or (size and value == 0)):
            wanted = "a positive integer" if size else kind.expected
            raise self._error(name, value, wanted)
        return self._checked(name, value, kind)

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` where there is no such field."""
        if name not in self:
            return default
        value = super().__getitem__(name)
        kind = _kind_of(name)
        if value is None and (kind is None or kind.nullable or default is None):
            return None
        return self._checked(name, value, kind)

    def checked(self) -> "Fields":
        """The same with every field looked at, so that copies need no look.

        What scales rotary frequencies is given without its nulls.

        Returns:
          The fields, whose values are of their kinds or null.

        Raises:
          CheckpointError: a field of another kind.
        """
        found = {}
        for name in self:
            demanded = _DEMANDED.fullmatch(name)
            found[name] = self[name] if demanded else self.get(name)
        return Fields(found, self.where)

    def _checked(self, name: str, value: Any, kind: _Kind | None) -> Any:
        if kind is None:
            return value
        if not kind.takes(value):
            raise self._error(name, value, kind.expected)
        if kind not in (_OBJECT, _ROPE):
            return value
        inner = Fields(value, f"{self.where}: {name}")
        return inner if kind is _OBJECT else inner._without_nulls()

    def _without_nulls(self) -> dict[str, Any]:
        """A plain dict that can be hashed by its items, unless objects are in it."""
        plain = {}
        for name in self:
            value = self.get(name)
            if isinstance(value, list):
                if not _is_numbers(value):
                    raise self._error(name, value, _NUMBERS.expected)
                value = tuple(value)
            elif isinstance(value, dict) and _kind_of(name) is not _ROPE:
                raise self._error(name, value, "a number or a text")
            if value is not None:
                plain[name] = value
        return plain

    def _error(self, name: str, value: Any, expected: str) -> CheckpointError:
        shown = "null" if value is None else repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        return CheckpointError(f"{self.where}: {name} is {shown}, expected {expected}.")


def check_types(made: Mapping[str, Any], record: type, *, where: str) -> None:
    """Refuses values that the fields of a dataclass do not take.

    Args:
      made: name of the field -> value, from a family's `read`.
      record: the dataclass; fields that are an integer, a number, a flag or a text
        are looked at.
      where: the file, for the message.

    Raises:
      CheckpointError: a value of another type, or a number that is not finite.

    Example:
      >>> import dataclasses
      >>> record = dataclasses.make_dataclass("Sizes", [("width", int)])
      >>> check_types({"width": 8}, record, where="config.json")
    """
    kinds: dict[Any, _Kind] = {int: _SIZE, float: _SCALAR, bool: _FLAG, str: _TEXT}
    parts = map(inspect.get_annotations, record.__mro__[::-1])
    known = {name: declared for part in parts for name, declared in part.items()}
    for name, value in made.items():
        declared = known.get(name)
        options = get_args(declared) if get_origin(declared) is not None else ()
        kind = kinds.get(declared)
        if kind is not None and not kind.takes(value):
            raise CheckpointError(
                f"{where}: its fields give {name}={value!r}, expected {kind.expected}."
            )
        if options and all(map(_is_text, options)) and value not in options:
            raise CheckpointError(
                f"{where}: its fields give {name}={value!r}, expected one of {options}."
            )


def read_object(file: pathlib.Path) -> Fields:
    """Reads a JSON object.

    Args:
      file: such as `config.json`.

    Returns:
      Its fields, which know where they are from.

    Raises:
      MissingFileError: it is not there.
      CheckpointError: it cannot be read, or is no JSON object.

    Example:
      >>> read_object(pathlib.Path("nowhere.json"))
      Traceback (most recent call last):
      jtok.errors.MissingFileError: nowhere.json: not there; a checkpoint needs it.
    """
    return Fields(_parse_object(file, read_text(file)), where=str(file))


def read_text(file: pathlib.Path) -> str:
    """Reads a small file of a checkpoint, in UTF-8 with or without its mark.

    Args:
      file: which.

    Returns:
      The text.

    Raises:
      MissingFileError: it is not there.
      CheckpointError: it cannot be read, or is not UTF-8.

    Example:
      >>> import tempfile
      >>> place = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (place / "a.txt").write_text("text")
      >>> read_text(place / "a.txt")
      'text'
    """
    try:
        return file.read_bytes().decode().removeprefix("\ufeff")
    except FileNotFoundError as error:
        raise MissingFileError(f"{file}: not there; a checkpoint needs it.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{file}: cannot be read ({reason}).") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: damaged, it is not UTF-8 ({error}).") from error


def _parse_object(file: pathlib.Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged or truncated ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: damaged, expected a JSON object.")
    return value
