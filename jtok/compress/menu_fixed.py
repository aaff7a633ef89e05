"""The transformation- and query-based rows of the menu."""

from collections.abc import Callable

from jtok.compress.connected import internvl, mobilevlm, slam_asr, videollama2
from jtok.compress.frames import frame_pooling, frame_stacking
from jtok.compress.interface import Compressed, Method
from jtok.compress.matryoshka import matryoshka
from jtok.compress.queries import perceiver, qformer, windowed_qformer
from jtok.compress.resample import (
    adaptive_pooling,
    average_pooling,
    bilinear_pooling,
    deco,
    max_pooling,
    pllava,
    unshuffle,
)

__all__ = ["QUERY_METHODS", "TRANSFORMATION_METHODS"]

_SIGHT = ("image", "video")
_ANY = ("image", "video", "audio")


def _row(
    run: Callable[..., Compressed],
    modalities: tuple[str, ...],
    summary: str,
    source: str,
    *,
    needs: tuple[str, ...] = (),
    family: str = "transformation",
    trained: bool | None = None,
) -> Method:
    """A row whose count follows from sizes; what has parameters is trained."""
    return Method(
        name=getattr(run, "__name__", ""), family=family, modalities=modalities,
        trained="params" in needs if trained is None else trained,
        needs=needs, run=run, summary=summary, source=source, fixed=True,
    )  # fmt: skip


TRANSFORMATION_METHODS = (
    _row(
        adaptive_pooling, _ANY, "Averages a grid into one of any smaller size.",
        "arXiv 2405.20985, 2404.16994",
    ),
    _row(
        average_pooling, _ANY, "Averages windows that do not overlap.",
        "arXiv 2505.07062, 2406.16852",
    ),
    _row(
        bilinear_pooling, _ANY, "Reads the grid linearly at fewer places.",
        "arXiv 2408.03326",
    ),
    _row(
        deco, _SIGHT, "Adaptive pooling of each image to 144 tokens.",
        "arXiv 2405.20985", needs=("grid",),
    ),
    _row(
        frame_pooling, ("audio",), "Averages neighbouring frames of sound.",
        "arXiv 2407.10759, section 2",
    ),
    _row(
        frame_stacking, ("audio",), "Frames of sound side by side in the channels.",
        "arXiv 2402.08846, 2409.06666", trained=True,
    ),
    _row(
        internvl, _SIGHT, "Pixel unshuffle and a trained MLP.",
        "arXiv 2404.16821", needs=("params", "grid"),
    ),
    _row(
        matryoshka, _SIGHT, "One scale of nested averages of squares.",
        "arXiv 2405.17430, section 3", needs=("grid",),
    ),
    _row(
        max_pooling, _ANY, "The largest of every channel in windows.",
        "arXiv 2507.20198",
    ),
    _row(
        mobilevlm, _SIGHT, "A trained MLP, 2 x 2 averages, a depthwise convolution.",
        "arXiv 2402.03766, section 3.3", needs=("params", "grid"),
    ),
    _row(
        pllava, ("video",), "Adaptive pooling over space and time together.",
        "arXiv 2404.16994, section 3", needs=("grid",),
    ),
    _row(
        slam_asr, ("audio",), "Frames side by side and a trained MLP.",
        "arXiv 2402.08846", needs=("params",),
    ),
    _row(
        unshuffle, _SIGHT, "Squares of tokens side by side in the channels.",
        "arXiv 2404.16821, 2409.11402", needs=("grid",), trained=True,
    ),
    _row(
        videollama2, ("video",), "Trained convolutions over space and time.",
        "arXiv 2406.07476, section 2.1", needs=("params", "grid"),
    ),
)  # fmt: skip
QUERY_METHODS = (
    _row(
        perceiver, _SIGHT, "Trained latents read all tokens, layer by layer.",
        "arXiv 2204.14198, section 3.1.1", needs=("params", "config"), family="query",
    ),
    _row(
        qformer, _SIGHT, "Trained queries of a BERT-like transformer read the image.",
        "arXiv 2301.12597, section 3", needs=("params", "config"), family="query",
    ),
    _row(
        windowed_qformer, ("audio",), "A Q-Former reads sound window by window.",
        "arXiv 2310.13289, section 3.1", needs=("params", "config"), family="query",
    ),
)  # fmt: skip
