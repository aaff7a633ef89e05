"""Families of checkpoints: a translation of their configuration, and a weight table.

A further family takes three steps, in the `families_*` file of its relatives:
1. `read`, which turns the fields of its `config.json` into those of `DecoderConfig`.
   Every field that changes a number is translated, or refused by name (`refuse`). A
   choice that no family made before becomes a field of `DecoderConfig`, called by what
   it does, and a few lines of `jtok.nn`.
2. `write`, its inverse, so that new and changed models can be saved.
3. Its weight table: a row for each kind of tensor (`linear`, `norm`, `Weight`).
Then a line in its table of families, a golden and a line in the lists of the tests.
A family of another kind than decoders also names its configuration, see `Backbone`;
encoders say what stands on them in `families_heads`.
"""

from jtok.errors import CheckpointError, UnsupportedCheckpointError, near
from jtok.models import mamba
from jtok.models.families_common import Family, Fields
from jtok.models.families_encoders import ENCODER_FAMILIES
from jtok.models.families_experts import EXPERT_FAMILIES
from jtok.models.families_gemma import GEMMA_FAMILIES
from jtok.models.families_gpt import GPT_FAMILIES
from jtok.models.families_joint import JOINT_FAMILIES
from jtok.models.families_llama import LLAMA_FAMILIES
from jtok.models.families_masked import MASKED_FAMILIES
from jtok.models.families_sound import SOUND_FAMILIES
from jtok.models.families_towers import TOWER_FAMILIES
from jtok.nn import MambaConfig

__all__ = ["FAMILIES", "Family", "family_of"]

FAMILIES: dict[str, Family] = {
    **LLAMA_FAMILIES,
    **GEMMA_FAMILIES,
    **GPT_FAMILIES,
    **EXPERT_FAMILIES,
    **MASKED_FAMILIES,
    **ENCODER_FAMILIES,
    **SOUND_FAMILIES,
    **TOWER_FAMILIES,
    **JOINT_FAMILIES,
    "mamba": Family(mamba.read, mamba.write, mamba.WEIGHTS, config=MambaConfig),
}


def family_of(fields: Fields, *, where: str = "config.json") -> Family:
    """The family that `model_type` names.

    Args:
      fields: of `config.json`.
      where: the file, for the error message.

    Returns:
      Its `Family`.

    Raises:
      UnsupportedCheckpointError: an unknown `model_type`; the known are listed.
      CheckpointError: there is none.

    Example:
      >>> family_of({"model_type": "gpt2"}).prefix
      'transformer.'
    """
    name = fields.get("model_type")
    if name is None:
        raise CheckpointError(f"{where}: there is no model_type.")
    if name not in FAMILIES:
        hint = near(name, FAMILIES)
        raise UnsupportedCheckpointError(f"{where}: model_type {name!r}{hint}.")
    return FAMILIES[name]
