"""Array-to-array primitives: no model, no vocabulary, no state."""

from jtok.ops.attention import (
    attention,
    cached_attention,
    write_rows,
)
from jtok.ops.byproducts import (
    Byproducts,
    attention_byproducts,
    attention_power,
)
from jtok.ops.energy import (
    energy,
    unit_rows,
)
from jtok.ops.generated_rows import (
    GeneratedTable,
    generated_rows,
    generated_table,
    random_entries,
    table_rows,
)
from jtok.ops.generated_softmax import (
    RowStatistics,
    generated_cross_entropy,
    generated_log_sum_exp,
    generated_statistics,
)
from jtok.ops.grids import (
    adaptive_pool,
    nested_pools,
    pixel_shuffle,
    pixel_unshuffle,
    pool_grid,
    resize_bilinear,
    stack_frames,
)
from jtok.ops.local_attention import (
    local_attention,
)
from jtok.ops.penalties import (
    Penalties,
    count_tokens,
    node_counts,
    penalize,
)
from jtok.ops.plan import (
    Plan,
    cell_plan,
    identity_plan,
    join_plan,
    keep_plan,
)
from jtok.ops.queries import (
    query_attention,
)
from jtok.ops.readouts import (
    Draw,
    Readout,
    Want,
    readout_logits,
)
from jtok.ops.sampling import (
    filter_logits,
    gumbel_at,
    purpose_keys,
    row_keys,
    uniform_at,
)
from jtok.ops.segments import (
    pool_segments,
    segment_attention,
)
from jtok.ops.selective_scan import (
    advance_state,
    selective_scan,
)
from jtok.ops.tree import (
    Tree,
    ancestor_mask,
    ancestor_path,
)
from jtok.ops.unembed import (
    VocabStatistics,
    cross_entropy,
    kl_divergence,
    readout,
    vocab_statistics,
)

__all__ = [
    "Byproducts",
    "Draw",
    "GeneratedTable",
    "Penalties",
    "Plan",
    "Readout",
    "RowStatistics",
    "Tree",
    "VocabStatistics",
    "Want",
    "adaptive_pool",
    "advance_state",
    "ancestor_mask",
    "ancestor_path",
    "attention",
    "attention_byproducts",
    "attention_power",
    "cached_attention",
    "cell_plan",
    "count_tokens",
    "cross_entropy",
    "energy",
    "filter_logits",
    "generated_cross_entropy",
    "generated_log_sum_exp",
    "generated_rows",
    "generated_statistics",
    "generated_table",
    "gumbel_at",
    "identity_plan",
    "join_plan",
    "keep_plan",
    "kl_divergence",
    "local_attention",
    "nested_pools",
    "node_counts",
    "penalize",
    "pixel_shuffle",
    "pixel_unshuffle",
    "pool_grid",
    "pool_segments",
    "purpose_keys",
    "query_attention",
    "random_entries",
    "readout",
    "readout_logits",
    "resize_bilinear",
    "row_keys",
    "segment_attention",
    "selective_scan",
    "stack_frames",
    "table_rows",
    "uniform_at",
    "unit_rows",
    "vocab_statistics",
    "write_rows",
]
