"""Which golden checkpoints are towers."""

TOWERS = ("deit", "dinov2", "siglip_vision", "vit")
FAMILIES = (
    "clip_vision_model",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "siglip_vision_model",
    "vit",
)
