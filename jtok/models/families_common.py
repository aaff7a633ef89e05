"""What translations of configurations share, and the refusals among it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jtok.errors import UnsupportedCheckpointError, near
from jtok.models.weights import Weight
from jtok.nn import DecoderConfig

__all__ = [
    "Family",
    "activation",
    "kinds_of",
    "linear",
    "norm",
    "refuse",
    "rope",
    "windows",
    "write_rope",
]

Fields = dict[str, Any]

SLIDING, FULL = "sliding_attention", "full_attention"
_SCALINGS = ("default", "linear", "llama3", "yarn")
# Which items of a scaling change its numbers; the first are required.
_ITEMS = {
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ()),
    "yarn": (
        (),
        (
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
}
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class Family(NamedTuple):
    """One `model_type`.

    Attributes:
      read: fields of `config.json` -> fields of the configuration.
      write: the configuration -> fields of `config.json`.
      weights: the table, in the order in which tensors are written.
      ignored: patterns of tensors that hold nothing (buffers, tied copies).
      prefix: what some files put before every name, and others leave out.
      config: class of the configuration; its type names the `Backbone`.
      older: a part of names that older files have, and the table leaves out.
    """

    read: Callable[[Fields], Fields]
    write: Callable[[Any], Fields]
    weights: tuple[Weight, ...]
    ignored: tuple[str, ...] = ()
    prefix: str = ""
    config: type = DecoderConfig
    older: str = ""


def refuse(fields: Fields, **usual: Any) -> None:
    """Refuses options that have another value than the one that jtok computes.

    Args:
      fields: of `config.json`; an absent or null option is the usual one.
      **usual: option -> its usual value.

    Raises:
      UnsupportedCheckpointError: the first option at fault, with its value.
    """
    for name, value in usual.items():
        if (found := fields.get(name)) is not None and found != value:
            raise UnsupportedCheckpointError(
                f"{name}={found!r} is not supported, only {value!r}."
            )


def activation(name: str | None) -> str:
    """The name that `jtok.nn.activation` has for it; None is a null of the file."""
    if name not in _ACTIVATIONS:
        hint = near(str(name), _ACTIVATIONS)
        raise UnsupportedCheckpointError(f"activation {name!r}{hint}.")
    return _ACTIVATIONS[str(name)]


# ---- positions


def rope(
    fields: Fields,
    *,
    theta: float = 10000.0,
    scaling: Fields | None = None,
    partial: bool = False,
) -> Fields:
    """Base and scaling, as `transformers` writes them now and wrote them before 5.

    Args:
      fields: of `config.json`.
      theta: the family's base where the file has none.
      scaling: what to read in place of `rope_parameters` or `rope_scaling`.
      partial: whether the family can rotate a part of each head.

    Returns:
      `rope_theta`, `rope_scaling` and, where `partial`, `rotary_fraction`.
    """
    if scaling is None:
        scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    scaling = dict(scaling)
    base = scaling.pop("rope_theta", None) or fields.get("rope_theta") or theta
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    if kind not in _SCALINGS:
        hint = near(kind, _SCALINGS)
        raise UnsupportedCheckpointError(f"rope_type {kind!r}{hint}.")
    share = {"partial_rotary_factor": fields.get("partial_rotary_factor"), **scaling}
    read = {"rope_theta": float(base), "rope_scaling": _items(kind, scaling, fields)}
    if partial:
        fraction = share["partial_rotary_factor"]
        return {**read, "rotary_fraction": 1.0 if fraction is None else float(fraction)}
    refuse(share, partial_rotary_factor=1.0)
    return read


def _items(kind: str, scaling: Fields, fields: Fields) -> tuple[tuple[str, Any], ...]:
    if kind == "default":
        return ()
    required, optional = _ITEMS[kind]
    items = {"rope_type": kind, **{name: scaling[name] for name in required}}
    items |= {n: scaling[n] for n in optional if scaling.get(n) is not None}
    if kind != "linear":
        name = "original_max_position_embeddings"
        items[name] = (
            fields.get(name) or scaling.get(name) or fields["max_position_embeddings"]
        )
        if kind == "yarn":
            ratio = fields["max_position_embeddings"] / items[name]
            items["factor"] = scaling.get("factor") or ratio
    return tuple(sorted(items.items()))


def write_rope(config: DecoderConfig) -> Fields:
    """The field `rope_parameters`."""
    base = {"rope_theta": config.rope_theta, "rope_type": "default"}
    return {"rope_parameters": {**base, **config.rotary_scaling}}


# ---- windows


def windows(
    fields: Fields, kinds: Sequence[str] | None, size: int | None
) -> tuple[int | None, ...]:
    """The window of every layer.

    Args:
      fields: of `config.json`; its `layer_types` go before `kinds`.
      kinds: of the layers; None takes a window in every layer where there is one.
      size: of the windows, or None.

    Returns:
      For each layer a size or None; an empty tuple where no layer has a window.
    """
    count = fields["num_hidden_layers"]
    default = (FULL if size is None else SLIDING,) * count
    kinds = tuple(fields.get("layer_types") or kinds or default)
    unknown = sorted(set(kinds) - {SLIDING, FULL})
    if unknown or len(kinds) != count:
        what = repr(unknown[0])[:60] if unknown else f"{len(kinds)} entries"
        raise UnsupportedCheckpointError(
            f"layer_types has {what}, expected {SLIDING!r} or {FULL!r} "
            f"for each of {count} layers."
        )
    if SLIDING not in kinds:
        return ()
    if size is None:
        raise UnsupportedCheckpointError(
            f"layer_types has {SLIDING!r}, but there is no sliding_window in use."
        )
    return tuple(size if kind == SLIDING else None for kind in kinds)


def kinds_of(config: DecoderConfig) -> list[str]:
    """The field `layer_types`."""
    sizes = config.windows or (None,) * config.num_layers
    return [FULL if size is None else SLIDING for size in sizes]


# ---- rows of weight tables


def linear(name: str, *paths: str, by_head: bool = False) -> tuple[Weight, ...]:
    """A linear map that the file keeps as `[out, in]`, with its optional bias."""
    kernels = tuple(f"{path}/kernel" for path in paths)
    biases = tuple(f"{path}/bias" for path in paths)
    return (
        Weight(f"{name}.weight", kernels, transpose=True, by_head=by_head),
        Weight(f"{name}.bias", biases, by_head=by_head),
    )


def norm(name: str, path: str) -> tuple[Weight, ...]:
    """A norm, with its optional bias."""
    return (
        Weight(f"{name}.weight", (f"{path}/scale",)),
        Weight(f"{name}.bias", (f"{path}/bias",)),
    )
