"""How files of towers call their tensors."""

from jtok.models.families_common import linear, norm
from jtok.models.weights import Weight

__all__ = ["DINO_TABLE", "tower_table", "vit_table"]


def _patches(name: str) -> tuple[Weight, ...]:
    """The map of patches: the file has `[out, channels, rows, columns]`."""
    return linear(name, "embed/patch")


def vit_table(stem: str) -> tuple[Weight, ...]:
    embed, layer = "{stem}embeddings", "{stem}encoder.layer.{layer}"
    own = f"{layer}.attention"
    return (
        Weight(f"{embed}.cls_token", ("embed/class",), lead=2),
        Weight(f"{embed}.distillation_token", ("embed/distill",), lead=2),
        *_patches(f"{embed}.patch_embeddings.projection"),
        Weight(f"{embed}.position_embeddings", ("embed/positions",), lead=1),
        *linear(f"{own}.attention.key", "key"),
        *linear(f"{own}.attention.query", "query"),
        *linear(f"{own}.attention.value", "value"),
        *linear(f"{own}.output.dense", "out"),
        *linear(f"{layer}.intermediate.dense", "mlp/up"),
        *norm(f"{layer}.layernorm_after", "mlp_norm"),
        *norm(f"{layer}.layernorm_before", "attn_norm"),
        *linear(f"{layer}.output.dense", "mlp/down"),
        *norm("{stem}layernorm", "final_norm"),
        *linear("{stem}pooler.dense", "pooler/dense"),
        *_labels(stem),
    )


def _labels(stem: str) -> tuple[Weight, ...]:
    if stem != "deit":
        return linear("classifier", "sequence/labels")
    taught = "distill/labels/kernel"
    either = [
        row._replace(without=taught) for row in linear("classifier", "sequence/labels")
    ]
    both = [
        row._replace(beside=taught)
        for row in linear("cls_classifier", "sequence/labels")
    ]
    return (*either, *both, *linear("distillation_classifier", "distill/labels"))


_DINO_LAYER = "{stem}encoder.layer.{layer}"
_DINO_OWN = f"{_DINO_LAYER}.attention"
_DINO_EMBED = "{stem}embeddings"
DINO_TABLE = (
    Weight(f"{_DINO_EMBED}.cls_token", ("embed/class",), lead=2),
    Weight(f"{_DINO_EMBED}.mask_token", ("embed/mask",), lead=1),
    *_patches(f"{_DINO_EMBED}.patch_embeddings.projection"),
    Weight(f"{_DINO_EMBED}.position_embeddings", ("embed/positions",), lead=1),
    Weight(f"{_DINO_EMBED}.register_tokens", ("embed/registers",), lead=1),
    *linear(f"{_DINO_OWN}.attention.key", "key"),
    *linear(f"{_DINO_OWN}.attention.query", "query"),
    *linear(f"{_DINO_OWN}.attention.value", "value"),
    *linear(f"{_DINO_OWN}.output.dense", "out"),
    Weight(f"{_DINO_LAYER}.layer_scale1.lambda1", ("attn_scale",)),
    Weight(f"{_DINO_LAYER}.layer_scale2.lambda1", ("mlp_scale",)),
    *(
        row._replace(without="mlp/gate/kernel")
        for row in (
            *linear(f"{_DINO_LAYER}.mlp.fc1", "mlp/up"),
            *linear(f"{_DINO_LAYER}.mlp.fc2", "mlp/down"),
        )
    ),
    *linear(f"{_DINO_LAYER}.mlp.weights_in", "mlp/gate", "mlp/up"),
    *(
        row._replace(beside="mlp/gate/kernel")
        for row in linear(f"{_DINO_LAYER}.mlp.weights_out", "mlp/down")
    ),
    *norm(f"{_DINO_LAYER}.norm1", "attn_norm"),
    *norm(f"{_DINO_LAYER}.norm2", "mlp_norm"),
    *norm("{stem}layernorm", "final_norm"),
    *linear("classifier", "sequence/labels"),
)


def tower_table(family: str, stem: str, under: str = "") -> tuple[Weight, ...]:
    """Rows of SigLIP's or CLIP's tower, wherever it stands.

    Args:
      family: "siglip_vision_model" or "clip_vision_model".
      stem: what stands before the names.
      under: the part of the tree that holds it, "" for the tree itself.

    Returns:
      The rows.
    """
    embed, layer = f"{stem}embeddings", f"{stem}encoder.layers.{{layer}}"
    own = f"{layer}.self_attn"
    rows = (
        Weight(f"{embed}.class_embedding", ("embed/class",)),
        *_patches(f"{embed}.patch_embedding"),
        Weight(f"{embed}.position_embedding.weight", ("embed/positions",)),
        *norm(f"{layer}.layer_norm1", "attn_norm"),
        *norm(f"{layer}.layer_norm2", "mlp_norm"),
        *linear(f"{layer}.mlp.fc1", "mlp/up"),
        *linear(f"{layer}.mlp.fc2", "mlp/down"),
        *linear(f"{own}.k_proj", "key"),
        *linear(f"{own}.out_proj", "out"),
        *linear(f"{own}.q_proj", "query"),
        *linear(f"{own}.v_proj", "value"),
        *(_siglip_head(stem) if family == "siglip_vision_model" else ()),
        *norm(f"{stem}post_layernorm", "final_norm"),
        *norm(f"{stem}pre_layrnorm", "embed/norm"),
    )
    if not under:
        return rows
    return tuple(
        row._replace(under=under)
        if row.per_layer
        else row._replace(paths=tuple(f"{under}/{path}" for path in row.paths))
        for row in rows
    )


def _siglip_head(stem: str) -> tuple[Weight, ...]:
    own = f"{stem}head"
    names = ("query", "key", "value")
    kernels = tuple(f"pooler/{name}/kernel" for name in names)
    biases = tuple(f"pooler/{name}/bias" for name in names)
    return (
        Weight(f"{own}.attention.in_proj_bias", biases),
        Weight(f"{own}.attention.in_proj_weight", kernels, transpose=True),
        *linear(f"{own}.attention.out_proj", "pooler/out"),
        *norm(f"{own}.layernorm", "pooler/norm"),
        *linear(f"{own}.mlp.fc1", "pooler/mlp/up"),
        *linear(f"{own}.mlp.fc2", "pooler/mlp/down"),
        Weight(f"{own}.probe", ("pooler/probe",), lead=2),
    )
