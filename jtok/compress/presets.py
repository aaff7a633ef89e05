"""PiToMe as it is set for each model, and the mean over merged tokens.

Source: Tran et al. 2024, arXiv 2405.16148, and its code.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.compress.pitome import pitome
from jtok.compress.schedule import Schedule, schedule
from jtok.compress.schedules import linear_margins
from jtok.compress.tome import tome
from jtok.errors import check, near
from jtok.ops.eager import one_program

__all__ = ["mean_by_size", "pitome_preset"]

_IMAGE_CHANNELS = 3
_TOME_THROUGH = 12  # LLaVA's tower: the last layer that uses ToMe


class _Preset(NamedTuple):
    """A row of the table: margins, rules of the first half and of the rest."""

    margins: tuple[float, float]
    rules: tuple[Literal["all", "bsm", "text"], Literal["all", "bsm", "text"]]
    settings: dict[str, Any]
    first: int = 0  # the first layer that acts
    most: int | None = None  # how many act


_PRESETS = {
    "deit": _Preset((0.75, 0.75), ("bsm", "all"), {}),
    "mae": _Preset((0.75, 0.75), ("all", "bsm"), {}),
    "augreg": _Preset((0.9, 0.9), ("all", "all"), {}),
    "blip": _Preset((0.9, 0.9), ("all", "all"), {"metric": "x"}, 1),
    "blip2": _Preset((0.75, 0.4), ("all", "all"), {"proportional": True}),
    "clip": _Preset((0.95, 0.95), ("all", "all"), {"metric": "x"}),
    "llava": _Preset(
        (0.9, 0.9), ("all", "all"), {"metric": "x", "where": "layer", "how": "mean"}
    ),
    "bert": _Preset(
        (0.9, 0.25), ("text", "text"), {"restart": True, "metric": "keys_sum"}, 0, 3
    ),
    "distilbert": _Preset((0.9, 0.25), ("text", "text"), {"restart": True}, 0, 3),
}  # fmt: skip


def pitome_preset(
    model: str,
    num_layers: int,
    *,
    keep: float | Sequence[float],
    compat: Literal["official"] | None = None,
    **settings: Any,
) -> Schedule:
    """PiToMe as its authors set it for a kind of model.

    Margins fall with depth. DeiT merges by rule "bsm" in the first half of the layers
    and by "all" in the rest, MAE the other way round; BLIP spares its first layer; BERT
    and DistilBERT merge by "text" in the first three layers; LLaVA's tower merges after
    whole layers, by ToMe up to layer 12; BLIP, CLIP and LLaVA compare the stream, the
    others keys. Only BLIP-2 counts sizes in attention.

    Args:
      model: "deit", "mae", "augreg", "blip", "blip2", "clip", "llava", "bert" or
        "distilbert".
      num_layers: of the model.
      keep: share of the unprotected tokens that each layer keeps, .5 to 1; a sequence
        has one for each layer that acts.
      compat: "official" has the class token counted in LLaVA's ToMe layers, BLIP's
        last layer spared in place of its first one (its code reads the shares from
        their end), padding that takes part in texts, and a sequence of shares for
        texts read from its end.
      **settings: of `schedule`, in place of the preset's.

    Returns:
      `Schedule`.

    Raises:
      ArgumentError: an unknown model, no layer, or what `schedule` refuses.

    Source: Tran et al. 2024, arXiv 2405.16148, section 4, and its code, whose margins
      and rules differ from the paper's one formula.

    Example:
      >>> pitome_preset("deit", 12, keep=0.9).token_counts(197, 12, prefix=1)[-1]
      60
    """
    check(model in _PRESETS, "model", model, f"a preset{near(model, list(_PRESETS))}")
    check(num_layers >= 1, "num_layers", num_layers, "at least 1")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    preset, official = _PRESETS[model], compat == "official"
    acting = range(num_layers)[preset.first :][: preset.most]
    if official and preset.first:  # shares are read from the end: 1 comes last
        acting = range(num_layers - preset.first)
    margins = linear_margins(num_layers, *preset.margins)
    half = -(-num_layers // 2)
    options: dict[str, Any] = {
        "margin": [margins[layer] for layer in acting],
        "rule": [preset.rules[layer >= half] for layer in acting],
        "layers": tuple(acting),
    }
    method: Any = pitome
    if model == "llava":
        by_tome = [layer <= _TOME_THROUGH for layer in acting]
        method = [tome if plain else pitome for plain in by_tome]
        if official:
            options["whole"] = by_tome
        if all(by_tome):
            del options["margin"], options["rule"]
    if preset.rules[0] == "text" and official:
        options["compat"] = "official"
        keep = keep if isinstance(keep, float | int) else list(keep)[::-1]
    return schedule(method, keep=keep, **{**preset.settings, **options, **settings})


@one_program
def mean_by_size(
    x: Float[Array, "batch rows dim"],
    size: Float[Array, "batch rows"],
    *,
    protect: int = 0,
    valid: Bool[Array, "batch rows"] | None = None,
    compat: Literal["official"] | None = None,
) -> Float[Array, "batch dim"]:
    """The mean over the tokens that merged rows stand for: pooling as if none merged.

    Args:
      x: `[batch, rows, dim]` of the last layer.
      size: `[batch, rows]` tokens of each row, such as `CompressedOutput.plan.size`.
      protect: first rows that are left out (class token and such).
      valid: `[batch, rows]` bool; other rows are left out. None leaves out none.
      compat: "official" divides by the three channels of an image instead of the
        number of tokens, as the code for MAE does; a norm behind it hides that.

    Returns:
      `[batch, dim]` in the dtype of `x`, zeros where no row counts.

    Raises:
      ArgumentError: shapes that do not fit, or `protect` beyond the rows.

    Source: the code of Tran et al. 2024, arXiv 2405.16148, for MAE.

    Example:
      >>> x = jnp.array([[[9.0], [1.0], [4.0]]])
      >>> mean_by_size(x, jnp.array([[1.0, 2.0, 1.0]]), protect=1).tolist()
      [[2.0]]
    """
    rows = x.shape[1]
    good = size.shape == x.shape[:2]
    check(good, "size", f"shape {size.shape}", f"{x.shape[:2]}, the rows of x")
    check(0 <= protect <= rows, "protect", protect, f"0 to {rows}, the rows")
    check(compat in (None, "official"), "compat", compat, "None or 'official'")
    weight = size.astype(jnp.float32) * (jnp.arange(rows) >= protect)[None]
    if valid is not None:
        weight = weight * valid
    total = jnp.sum(weight, axis=1, keepdims=True)
    count = jnp.float32(_IMAGE_CHANNELS) if compat else jnp.where(total > 0, total, 1.0)
    summed = jnp.sum(x.astype(jnp.float32) * weight[..., None], axis=1)
    return (summed / count).astype(x.dtype)
