"""One-line faults in the library, each of which a named test must notice.

`python -m tests.mutations` applies each to a copy of the project, never to the
checkout, and runs the test that is to kill it; `--only ID` runs one. A test kills a
fault when an assertion of its body fails: an error at import, at collection or in a
fixture, or a test that does not run, kills nothing.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
COPIED = ("jtok", "experiments", "tests", "pyproject.toml", "README.md", "CHANGELOG.md")
TIMEOUT = 300


class Mutation(NamedTuple):
    """A one-line fault.

    Attributes:
      id: short and unique.
      slug: the paper whose code it breaks, "foundation" or "project".
      path: the file, from the project's root.
      before: text that occurs exactly once in the file, within one line.
      after: what stands there instead.
      killed_by: id of the test that fails, `tests/.../test_x.py::test_name`, with the
        brackets of a parametrised one or without (then any case may fail).
    """

    id: str
    slug: str
    path: str
    before: str
    after: str
    killed_by: str


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        id="sound-stem-with-the-layers-activation",
        slug="foundation",
        path="jtok/models/sound.py",
        before="return jax.nn.gelu(y, approximate=False)",
        after="return nn.activation(config.activation)(y)",
        killed_by="tests/models/test_sound.py"
        "::test_convolutions_are_followed_by_gelu_whatever_the_layers_have",
    ),
    Mutation(
        id="pooler-whatever-the-fields-say",
        slug="foundation",
        path="jtok/models/storage.py",
        before='or not bare or "add_pooling_layer" in config',
        after="or not bare",
        killed_by="tests/models/test_tower.py"
        "::test_a_pooler_that_the_fields_say_is_missed",
    ),
    Mutation(
        id="head-of-its-own-with-the-tied-bias",
        slug="foundation",
        path="jtok/models/families_bert.py",
        before="Weight(own, held, beside=rows)",
        after="Weight(tied, held, beside=rows)",
        killed_by="tests/models/test_encoder.py"
        "::test_a_masked_head_with_rows_of_its_own",
    ),
    Mutation(
        id="head-of-its-own-reads-the-embedding",
        slug="foundation",
        path="jtok/models/encoder_heads.py",
        before='held = params["embed"]["tokens"] if config.tied else',
        after='held = params["embed"]["tokens"] if True else',
        killed_by="tests/models/test_encoder.py"
        "::test_a_masked_head_with_rows_of_its_own",
    ),
    Mutation(
        id="aim-ramp-late",
        slug="aim",
        path="jtok/compress/depth.py",
        before="steps = (Fraction(layer - first + 1, wide)",
        after="steps = (Fraction(layer - first, wide)",
        killed_by="tests/compress/test_depth.py::test_named_schedules",
    ),
    Mutation(
        id="aim-fastv-floor",
        slug="aim",
        path="jtok/compress/depth.py",
        before='{layer: 1 - drop}, rounding="half_even")',
        after="{layer: 1 - drop})",
        killed_by="tests/compress/test_depth.py::test_named_schedules",
    ),
    Mutation(
        id="aim-mean-of-heads",
        slug="aim",
        path="jtok/compress/importance.py",
        before="return jnp.sqrt(jnp.mean(flow * flow, axis=1))",
        after="return jnp.mean(flow, axis=1)",
        killed_by="tests/compress/test_aim_goldens.py::test_importance",
    ),
    Mutation(
        id="aim-count-of-the-first-row",
        slug="aim",
        path="jtok/compress/prefill.py",
        before="left = table[layer][ends]",
        after="left = table[layer][ends[:1] + 0 * ends]",
        killed_by="tests/compress/test_prefill.py::test_each_row_keeps_its_own_count",
    ),
    Mutation(
        id="aim-position-of-new-tokens",
        slug="aim",
        path="jtok/compress/prefill.py",
        before="offsets=jnp.stack(ends) + 1 - length[None],",
        after="offsets=jnp.stack(used) - length[None],",
        killed_by="tests/compress/test_prefill.py"
        "::test_decoding_is_the_prefill_of_a_longer_prompt",
    ),
    Mutation(
        id="aim-mean-of-means",
        slug="aim",
        path="jtok/compress/frame_merging.py",
        before="path, real = path.then(plan), plan.valid",
        after="path, real = plan, plan.valid",
        killed_by="tests/compress/test_depth.py"
        "::test_frames_are_independent_and_scale_free",
    ),
    Mutation(
        id="aim-rewind-below-the-loss",
        slug="aim",
        path="jtok/compress/pruned_cache.py",
        before="bool(jnp.any(length < cache.floor))",
        after="bool(jnp.any(length < 0))",
        killed_by="tests/compress/test_prefill.py::test_bad_input",
    ),
    Mutation(
        id="data-env-last",
        slug="project",
        path="jtok/testing/data.py",
        before="folders.insert(0, ",
        after="folders.append(",
        killed_by="tests/testing/test_data.py::test_jtok_data_goes_first",
    ),
    Mutation(
        id="golden-contains-reads",
        slug="project",
        path="jtok/testing/goldens.py",
        before="self._read.add(key)",
        after="self._read.update(self._arrays)",
        killed_by="tests/testing/test_goldens.py"
        "::test_reading_is_recorded_and_listing_is_not",
    ),
    Mutation(
        id="tolerance-of-the-finer-dtype",
        slug="project",
        path="jtok/testing/tolerances.py",
        before="return max(tolerance(got.dtype)",
        after="return min(tolerance(got.dtype)",
        killed_by="tests/testing/test_tolerances.py::test_the_coarser_dtype_decides",
    ),
    Mutation(
        id="rotation-one-position-late",
        slug="foundation",
        path="jtok/nn/positions.py",
        before="positions[..., None, None].astype(jnp.float32) *",
        after="(positions[..., None, None] + 1.0) *",
        killed_by="tests/nn/test_positions.py"
        "::test_rotation_multiplies_complex_numbers",
    ),
    Mutation(
        id="encoder-positions-without-offset",
        slug="foundation",
        path="jtok/models/encoder.py",
        before="rows = positions + config.position_offset",
        after="rows = positions",
        killed_by="tests/models/test_encoder.py::test_outputs_of_transformers",
    ),
    Mutation(
        id="encoder-window-one-sided",
        slug="foundation",
        path="jtok/models/encoder_layers.py",
        before="near = jnp.abs(at[:, :, None] - at[:, None, :]) <= window",
        after="near = (at[:, :, None] - at[:, None, :]) <= window",
        killed_by="tests/models/test_encoder.py::test_outputs_of_transformers",
    ),
    Mutation(
        id="local-attention-reach-short-by-one",
        slug="foundation",
        path="jtok/ops/local_attention.py",
        before="near = jnp.abs(rows + block - columns) <= reach",
        after="near = jnp.abs(rows + block - columns) < max(reach, 1)",
        killed_by="tests/models/test_encoder.py"
        "::test_local_attention_is_attention_under_a_band",
    ),
    Mutation(
        id="roberta-counts-padding",
        slug="foundation",
        path="jtok/models/encoder.py",
        before="real = ids != config.padding_id",
        after="real = ids >= 0",
        killed_by="tests/models/test_encoder.py"
        "::test_positions_of_roberta_count_what_is_not_padding",
    ),
    Mutation(
        id="masked-lm-without-its-bias",
        slug="foundation",
        path="jtok/models/encoder_heads.py",
        before='params["masked_lm"].get("bias")',
        after="None",
        killed_by="tests/models/test_encoder.py::test_outputs_of_transformers",
    ),
    Mutation(
        id="ernie-counts-distances-as-t5",
        slug="foundation",
        path="jtok/models/encoder.py",
        before='upper="later" if config.relative == "t5" else "earlier"',
        after='upper="later"',
        killed_by="tests/models/test_encoder.py::test_outputs_of_the_released_ernie",
    ),
    Mutation(
        id="mean-over-padding",
        slug="foundation",
        path="jtok/models/classify.py",
        before="kept = jnp.where(real[..., None], hidden.astype(jnp.float32), 0.0)",
        after="kept = hidden.astype(jnp.float32)",
        killed_by="tests/models/test_classify.py::test_pools",
    ),
    Mutation(
        id="fresh-head-forgets-the-pooler",
        slug="foundation",
        path="jtok/models/classify.py",
        before='fresh["pooler"] = held["pooler"]',
        after='fresh["pooler"] = dict(fresh["pooler"])',
        killed_by="tests/models/test_classify.py"
        "::test_trained_parts_stay_under_a_fresh_head",
    ),
    Mutation(
        id="pseudo-score-sees-the-token",
        slug="foundation",
        path="jtok/models/pseudo.py",
        before="tokens[line, at] = mask_id",
        after="tokens[line, at] = row[at]",
        killed_by="tests/models/test_pseudo.py::test_every_token_is_masked_once",
    ),
    Mutation(
        id="xlm-roberta-unknown-is-the-files",
        slug="foundation",
        path="jtok/text/_fairseq.py",
        before='"unk_id": tokens["<unk>"]',
        after='"unk_id": 0',
        killed_by="tests/text/test_encoder_vocabularies.py"
        "::test_xlm_roberta_counts_pieces_as_fairseq",
    ),
    Mutation(
        id="cache-reads-one-slot-too-many",
        slug="foundation",
        path="jtok/ops/attention/reference.py",
        before="(slots[None] < length[:, None])",
        after="(slots[None] <= length[:, None])",
        killed_by="tests/ops/test_attention.py::test_cache_and_tree_are_one_softmax",
    ),
    Mutation(
        id="ancestor-mask-dropped",
        slug="foundation",
        path="jtok/models/model.py",
        before="return mask.astype(bool)",
        after="return jnp.ones_like(mask, bool)",
        killed_by="tests/models/test_target.py"
        "::test_steps_wait_until_they_are_committed",
    ),
    Mutation(
        id="scores-without-scale",
        slug="foundation",
        path="jtok/models/model.py",
        before='"scale": config.score_scale,',
        after='"scale": 1.0,',
        killed_by="tests/models/test_model.py::test_outputs_of_transformers",
    ),
    Mutation(
        id="cache-written-before-it-is-read",
        slug="foundation",
        path="jtok/models/model.py",
        before="pending = after(x, pending)",
        after="pending = tuple(pending)",
        killed_by="tests/models/test_target.py"
        "::test_temporaries_do_not_grow_with_the_capacity",
    ),
    Mutation(
        id="tie-to-the-later-block",
        slug="foundation",
        path="jtok/ops/unembed/reference.py",
        before='better = best > carry["best"]',
        after='better = best >= carry["best"]',
        killed_by="tests/ops/test_unembed.py::test_all_outputs_of_the_greedy_readout",
    ),
    Mutation(
        id="last-block-counted-twice",
        slug="foundation",
        path="jtok/ops/unembed/reference.py",
        before="fresh = (places >= index * block)[None, None]",
        after="fresh = (places >= 0)[None, None]",
        killed_by="tests/ops/test_unembed.py::test_all_outputs_of_the_greedy_readout",
    ),
    Mutation(
        id="noise-of-the-position-before",
        slug="foundation",
        path="jtok/ops/readouts.py",
        before="positions = self.start[:, None] + levels[None]",
        after="positions = self.start[:, None] + levels[None] - 1",
        killed_by="tests/ops/test_unembed.py::test_draw_is_gumbel_max_at_its_position",
    ),
    Mutation(
        id="top-p-of-one-drops-the-tail",
        slug="foundation",
        path="jtok/ops/sampling.py",
        before="(before < bound) | (bound >= 1)",
        after="(before < bound)",
        killed_by="tests/ops/test_sampling.py::test_filters_agree_with_numpy",
    ),
    Mutation(
        id="paths-sorted-by-length-only",
        slug="foundation",
        path="jtok/ops/tree.py",
        before="key=lambda path: (len(path), path)",
        after="key=len",
        killed_by="tests/ops/test_tree.py::test_sort_mends_the_order_and_nothing_else",
    ),
    Mutation(
        id="unknown-tensors-pass",
        slug="foundation",
        path="jtok/models/weights.py",
        before="if name not in known and not any(",
        after="if name in known and not any(",
        killed_by="tests/models/test_checkpoint.py::test_all_disagreements_are_listed",
    ),
    Mutation(
        id="first-node-teaches",
        slug="token_recycling",
        path="jtok/decode/recycling.py",
        before="order = jnp.arange(flat.size, dtype=jnp.int32) + 1",
        after="order = flat.size - jnp.arange(flat.size, dtype=jnp.int32)",
        killed_by="tests/decode/test_recycling.py::test_the_last_valid_node_gives_a_tokens_row",
    ),
    Mutation(
        id="finished-rows-teach",
        slug="token_recycling",
        path="jtok/decode/loop.py",
        before="valid=proposal.valid & live[:, None],",
        after="valid=proposal.valid,",
        killed_by="tests/decode/test_recycling.py::test_rows_that_finished_teach_nothing",
    ),
    Mutation(
        id="useless-parents-have-useful-children",
        slug="token_recycling",
        path="jtok/decode/recycling.py",
        before="fresh.append(fresh[-1][:, above] & new)",
        after="fresh.append(new)",
        killed_by="tests/decode/test_recycling.py::test_drafts_are_lookups_along_the_paths",
    ),
    Mutation(
        id="one-call-too-patient",
        slug="token_recycling",
        path="jtok/decode/recycling.py",
        before="return slow & (state.calls >= patience)",
        after="return slow & (state.calls > patience)",
        killed_by="tests/decode/test_recycling.py::test_drafting_stops_where_it_does_not_pay",
    ),
    Mutation(
        id="repeated-siblings-never-drafted",
        slug="token_recycling",
        path="jtok/decode/recycling.py",
        before="valid = jnp.ones_like(fresh) if official else fresh",
        after="valid = fresh",
        killed_by="tests/decode/test_goldens.py::test_the_loop_replays_a_trace",
    ),
    Mutation(
        id="drafts-right-below-wrong-ones",
        slug="speculative_verification",
        path="jtok/decode/verify.py",
        before="whole = jnp.all(right[:, None, :] | ~ancestors, axis=-1)",
        after="whole = right",
        killed_by="tests/decode/test_goldens.py::test_every_call_of_a_trace",
    ),
    Mutation(
        id="stop-id-not-emitted",
        slug="speculative_verification",
        path="jtok/decode/verify.py",
        before="jnp.argmax(is_stop, -1) + 1",
        after="jnp.argmax(is_stop, -1)",
        killed_by="tests/decode/test_goldens.py::test_the_loop_replays_a_trace",
    ),
    Mutation(
        id="budget-overshot",
        slug="speculative_verification",
        path="jtok/decode/verify.py",
        before="jnp.minimum(jnp.minimum(accepted.drafts + 1, first), budget)",
        after="jnp.minimum(accepted.drafts + 1, first)",
        killed_by="tests/decode/test_goldens.py::test_the_loop_replays_a_trace",
    ),
    Mutation(
        id="nodes-one-position-late",
        slug="speculative_verification",
        path="jtok/decode/loop.py",
        before="proposal.tokens, start[:, None] + depth, ancestors",
        after="proposal.tokens, start[:, None] + depth + 1, ancestors",
        killed_by="tests/decode/test_goldens.py::test_the_loop_replays_a_trace",
    ),
    Mutation(
        id="lookup-takes-the-shortest-ngram",
        slug="speculative_verification",
        path="jtok/decode/drafters.py",
        before="best = jnp.where(jnp.any(good, axis=1), hit + 1, best)",
        after="best = jnp.where(jnp.any(good, axis=1) & (best < 0), hit + 1, best)",
        killed_by="tests/decode/test_goldens.py::test_prompt_lookup_of_spec_bench",
    ),
    Mutation(
        id="bonus-chosen-at-the-root",
        slug="speculative_verification",
        path="jtok/decode/verify.py",
        before="along = jnp.where(path < 0, node[:, None], path)",
        after="along = jnp.where(path == node[:, None], 0, path)",
        killed_by="tests/decode/test_verify.py::test_trees_as_data_follow_the_walk",
    ),
    Mutation(
        id="invalid-drafts-accepted",
        slug="speculative_verification",
        path="jtok/decode/verify.py",
        before="(proposal.valid & (proposal.tokens == above))",
        after="(proposal.tokens == above)",
        killed_by="tests/decode/test_verify.py::test_trees_as_data_follow_the_walk",
    ),
    Mutation(
        id="tokens-after-a-stop-kept",
        slug="speculative_verification",
        path="jtok/decode/verify.py",
        before="jnp.minimum(jnp.minimum(accepted.drafts + 1, first), budget)",
        after="jnp.minimum(accepted.drafts + 1, budget)",
        killed_by="tests/decode/test_verify.py::test_what_is_kept_ends_exactly",
    ),
    Mutation(
        id="noise-by-node",
        slug="speculative_verification",
        path="jtok/decode/types.py",
        before="            depth=depth,",
        after="            depth=jnp.minimum("
        "jnp.arange(depth.shape[1])[None] + 0 * depth, max_depth),",
        killed_by="tests/contracts/test_drafters.py"
        "::test_tokens_are_those_of_plain_decoding[sampled-recycling-inherited]",
    ),
    Mutation(
        id="top-p-ignored",
        slug="speculative_verification",
        path="jtok/decode/types.py",
        before="top_p=self.top_p,",
        after="top_p=None,",
        killed_by="tests/decode/test_sampling_law.py"
        "::test_plain_sampling_is_that_of_numpy[top-p]",
    ),
    Mutation(
        id="one-token-too-few-committed",
        slug="speculative_verification",
        path="jtok/decode/loop.py",
        before="target.commit(cache, accepted.path, count)",
        after="target.commit(cache, accepted.path, jnp.maximum(count - 1, 0))",
        killed_by="tests/contracts/test_drafters.py"
        "::test_the_cache_holds_what_was_emitted_after_every_step[sampled-oracle]",
    ),
    Mutation(
        id="nodes-committed-in-tree-order",
        slug="speculative_verification",
        path="jtok/decode/loop.py",
        before="target.commit(cache, accepted.path, count)",
        after="target.commit(cache, jnp.sort(depth)[:, :1] + jnp.arange("
        "accepted.path.shape[1])[None], count)",
        killed_by="tests/contracts/test_drafters.py"
        "::test_the_cache_holds_what_was_emitted_after_every_step[sampled-random]",
    ),
    Mutation(
        id="finished-rows-go-on",
        slug="speculative_verification",
        path="jtok/decode/verify.py",
        before="count = jnp.where(live, count, 0)",
        after="count = jnp.where(live, count, 1)",
        killed_by="tests/contracts/test_drafters.py"
        "::test_a_finished_row_never_changes[sampled-oracle]",
    ),
    Mutation(
        id="extra-slots-seen-by-drafts",
        slug="speculative_verification",
        path="jtok/decode/loop.py",
        before="blind = jnp.zeros((rows, nodes, width), bool)",
        after="blind = jnp.ones((rows, nodes, width), bool)",
        killed_by="tests/contracts/test_drafters.py"
        "::test_tokens_are_those_of_plain_decoding[sampled-extra-slots]",
    ),
    Mutation(
        id="ancestors-of-one-level",
        slug="speculative_verification",
        path="jtok/decode/types.py",
        before="mask = ancestor_mask(self.parent, max_depth=self.max_depth)",
        after="mask = ancestor_mask(self.parent, max_depth=1)",
        killed_by="tests/contracts/test_drafters.py"
        "::test_tokens_are_those_of_plain_decoding[sampled-random]",
    ),
    Mutation(
        id="calls-of-finished-rows-counted",
        slug="speculative_verification",
        path="jtok/decode/record.py",
        before="calls=state.calls + live,",
        after="calls=state.calls + 1,",
        killed_by="tests/contracts/test_drafters.py"
        "::test_counts_agree_with_the_counter_of_the_target[sampled-random]",
    ),
    Mutation(
        id="latest-place-looked-up",
        slug="speculative_verification",
        path="jtok/decode/drafters.py",
        before="hit = jnp.argmax(good, axis=1)",
        after="hit = (capacity - 1 - jnp.argmax(good[:, ::-1], axis=1))",
        killed_by="tests/decode/test_drafters.py::test_what_followed_the_longest_ngram",
    ),
    Mutation(
        id="speedup-as-mean-of-ratios",
        slug="speculative_verification",
        path="jtok/decode/metrics.py",
        before="return float(np.mean(rates))",
        after="return float(turns[tokens].sum() / turns[seconds].sum())",
        killed_by="tests/decode/test_metrics.py::test_the_speedup_is_a_ratio_of_means",
    ),
    Mutation(
        id="invalid-nodes-teach",
        slug="token_recycling",
        path="jtok/decode/recycling.py",
        before="order = jnp.where(valid, order, 0)",
        after="order = order + 0 * valid",
        killed_by="tests/decode/test_recycling.py"
        "::test_the_last_valid_node_gives_a_tokens_row",
    ),
    Mutation(
        id="rank-of-a-node-ignored",
        slug="token_recycling",
        path="jtok/decode/recycling.py",
        before="table[tokens, rank[start:stop]], table[tokens, 0]",
        after="table[tokens, 0 * rank[start:stop]], table[tokens, 0]",
        killed_by="tests/decode/test_goldens.py::test_drafts",
    ),
    Mutation(
        id="inherited-table-dropped",
        slug="token_recycling",
        path="jtok/decode/recycling.py",
        before="return dataclasses.replace(fresh, table=table)",
        after="return fresh",
        killed_by="tests/decode/test_recycling.py::test_an_inherited_table_saves_calls",
    ),
    Mutation(
        id="swap-without-rollback",
        slug="foundation",
        path="jtok/files.py",
        before="        if not target.exists() and backup.exists():",
        after="        if False:",
        killed_by="tests/models/test_storage_faults.py"
        "::test_a_disk_that_fills_at_any_call_is_named_and_changes_nothing",
    ),
    Mutation(
        id="header-negative-counts",
        slug="foundation",
        path="jtok/models/_safetensors.py",
        before="and 0 <= item < _MAX_EXTENT",
        after="and item < _MAX_EXTENT",
        killed_by="tests/models/test_storage.py::test_damaged_header_is_refused",
    ),
    Mutation(
        id="config-deep-json",
        slug="foundation",
        path="jtok/models/fields.py",
        before="except (ValueError, RecursionError) as error:",
        after="except ValueError as error:",
        killed_by="tests/models/test_fuzz.py::test_damage_is_read_or_refused_by_name",
    ),
    Mutation(
        id="sizes-beyond-the-files",
        slug="foundation",
        path="jtok/models/checkpoint.py",
        before="if extent > numbers",
        after="if extent > 2**40",
        killed_by="tests/models/test_fuzz.py"
        "::test_sizes_beyond_the_files_are_refused_before_memory_is_taken",
    ),
    Mutation(
        id="load-without-lock",
        slug="foundation",
        path="jtok/models/checkpoint.py",
        before="    with files.folder_lock(folder, shared=True):",
        after="    if True:",
        killed_by="tests/models/test_storage_folders.py"
        "::test_a_folder_replaced_meanwhile_is_read_in_one_version",
    ),
    Mutation(
        id="download-pickles",
        slug="foundation",
        path="jtok/models/storage.py",
        before='PATTERNS = ("model*.safetensors",',
        after='PATTERNS = ("*.bin", "model*.safetensors",',
        killed_by="tests/models/test_hub.py"
        "::test_only_what_is_needed_is_downloaded_and_only_once",
    ),
    Mutation(
        id="save-keeps-dtype",
        slug="foundation",
        path="jtok/models/checkpoint.py",
        before="((name, x.astype(jnp.dtype(dtype))) for name, x in named)",
        after="((name, x) for name, x in named)",
        killed_by="tests/models/test_storage_folders.py::test_save_in_another_dtype",
    ),
    Mutation(
        id="penalty-without-ancestors",
        slug="foundation",
        path="jtok/ops/penalties.py",
        before="above = ancestors & (jnp.arange(nodes) > 0)[None, None]",
        after="above = ancestors & (jnp.arange(nodes) < 0)[None, None]",
        killed_by="tests/decode/test_shaping.py::test_counts_of_a_tree",
    ),
    Mutation(
        id="repetition-divides-negative-logits",
        slug="foundation",
        path="jtok/ops/penalties.py",
        before="logits / repetition, logits * repetition",
        after="logits / repetition, logits / repetition",
        killed_by="tests/decode/test_shaping.py::test_penalties_of_each_row",
    ),
    Mutation(
        id="processor-state-of-the-root",
        slug="foundation",
        path="jtok/decode/processors.py",
        before="return _where(depth == level + 1, ",
        after="return _where(depth < 0, ",
        killed_by="tests/decode/test_shaping.py::test_a_processor_of_ones_own",
    ),
    Mutation(
        id="minimum-ignores-depth",
        slug="foundation",
        path="jtok/decode/shaping.py",
        before="early = produced[:, None] + depth < ",
        after="early = produced[:, None] + 0 * depth < ",
        killed_by="tests/decode/test_shaping.py::test_the_minimum_counts_the_drafts_above_a_node",
    ),
    Mutation(
        id="logprobs-of-shaped-logits",
        slug="foundation",
        path="jtok/decode/loop.py",
        before="return readout_logits(logits, want), raw",
        after="return readout_logits(logits, want), logits",
        killed_by="tests/decode/test_shaping.py::test_log_probabilities_are_those_of_the_model",
    ),
    Mutation(
        id="stop-keeps-the-chunk",
        slug="foundation",
        path="jtok/decode/stops.py",
        before="for count in range(checked + 1, len(ids) + 1):",
        after="for count in range(len(ids), len(ids) + 1):",
        killed_by="tests/decode/test_stops.py::test_a_stop_string_ends_a_row",
    ),
    Mutation(
        id="stream-tells-half-characters",
        slug="foundation",
        path="jtok/decode/stream.py",
        before="self._text += self._pieces.push(spelled(new, self._vocabulary))",
        after="self._text += self._vocabulary.decode(spelled(new, self._vocabulary))",
        killed_by="tests/decode/test_stops.py::test_characters_come_whole",
    ),
    Mutation(
        id="session-reuses-what-differs",
        slug="foundation",
        path="jtok/decode/sessions.py",
        before="length = int(different[0]) if different.size else limit",
        after="length = limit",
        killed_by="tests/decode/test_sessions.py::test_what_a_prompt_does_not_share_is_forgotten",
    ),
    Mutation(
        id="serve-keeps-the-seed",
        slug="foundation",
        path="jtok/decode/serve.py",
        before="rows.place(index, prompt, seed + index)",
        after="rows.place(index, prompt, seed)",
        killed_by="tests/decode/test_serve.py::test_each_prompt_is_as_if_alone[none]",
    ),
    Mutation(
        id="mean-counts-padding",
        slug="foundation",
        path="jtok/models/scoring.py",
        before="kept = jnp.where(mask[..., None], hidden, 0.0)",
        after="kept = hidden",
        killed_by="tests/models/test_scoring.py::test_vectors_are_those_of_each_text_alone",
    ),
    Mutation(
        id="windows-score-twice",
        slug="foundation",
        path="jtok/models/scoring.py",
        before="yield row, first + np.arange(len(row) - 1) >= scored",
        after="yield row, first + np.arange(len(row) - 1) >= first",
        killed_by="tests/models/test_scoring.py::test_scores_are_those_of_one_window_at_a_time[16-8]",
    ),
    Mutation(
        id="window-one-too-wide",
        slug="foundation",
        path="jtok/models/model.py",
        before="allow = allow & (distance < window)",
        after="allow = allow & (distance <= window)",
        killed_by="tests/models/test_model.py"
        "::test_outputs_of_transformers[split-mistral_sliding]",
    ),
    Mutation(
        id="expert-weights-not-scaled",
        slug="foundation",
        path="jtok/nn/experts.py",
        before="if sum_to_one:",
        after="if False:",
        killed_by="tests/nn/test_experts.py"
        "::test_ties_go_to_the_lower_expert_and_weights_are_probabilities",
    ),
    Mutation(
        id="norm-offset-forgotten",
        slug="foundation",
        path="jtok/nn/layers.py",
        before="1.0 + wide_scale",
        after="0.0 + wide_scale",
        killed_by="tests/nn/test_layers.py"
        "::test_a_norm_with_offset_multiplies_by_one_more",
    ),
    Mutation(
        id="heads-side-by-side",
        slug="foundation",
        path="jtok/models/weights.py",
        before="columns = group * sum(sizes) + before + inside",
        after="columns = before * planned.groups + group * size + inside",
        killed_by="tests/models/test_checkpoint.py"
        "::test_golden_checkpoints_come_back_byte_for_byte[gpt_neox]",
    ),
    Mutation(
        id="readout-without-final-cap",
        slug="foundation",
        path="jtok/models/target.py",
        before="cap = config.final_softcap",
        after="cap = None",
        killed_by="tests/models/test_families_decode.py"
        "::test_the_target_reads_out_the_logits_of_the_model[gemma2]",
    ),
    Mutation(
        id="unknown-options-ignored",
        slug="project",
        path="jtok/models/families_common.py",
        before="is not None and found != value:",
        after="is not None and found is NotImplemented:",
        killed_by="tests/models/test_families.py"
        "::test_options_that_are_not_there_are_refused",
    ),
    Mutation(
        id="sharded-tensors-read-whole",
        slug="foundation",
        path="jtok/models/checkpoint.py",
        before="part = read(tuple(slice(*span) for span in spans))",
        after="part = read(tuple(slice(0, e) for e in shape))"
        "[tuple(slice(*s) for s in spans)]",
        killed_by="tests/models/test_checkpoint.py"
        "::test_a_mesh_reads_every_part_once_and_no_sharded_tensor_whole[mixtral]",
    ),
    Mutation(
        id="heads-cut-between-devices",
        slug="foundation",
        path="jtok/ops/sharding.py",
        before="if size % parts or (units or {}).get(str(name), 0) % parts:",
        after="if size % parts:",
        killed_by="tests/ops/test_sharding.py::test_units_are_not_cut",
    ),
    Mutation(
        id="uneven-heads-pass",
        slug="foundation",
        path="jtok/models/checkpoint.py",
        before='check_split("heads", config.num_heads)',
        after="pass",
        killed_by="tests/decode/test_mesh.py"
        "::test_a_mesh_that_does_not_divide_the_heads_is_refused",
    ),
    Mutation(
        id="cache-gathered-at-every-step",
        slug="foundation",
        path="jtok/models/cache.py",
        before="kept = write_rows(laid_out(buffer), laid_out(rows), cache.length)",
        after="kept = write_rows(buffer, rows, cache.length)",
        killed_by="tests/decode/test_mesh.py"
        "::test_a_cache_of_fewer_heads_than_devices_stays_where_it_is",
    ),
    Mutation(
        id="scores-kept-for-the-gradient",
        slug="foundation",
        path="jtok/models/model.py",
        before="keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable",
        after="keep = jax.checkpoint_policies.everything_saveable",
        killed_by="tests/train/test_distributed_meshes.py"
        "::test_attention_scores_are_not_kept_for_the_gradient",
    ),
    Mutation(
        id="moments-on-every-device",
        slug="foundation",
        path="jtok/train/_step.py",
        before="lambda _, parameter: parameter.sharding,",
        after="lambda _, parameter: whole,",
        killed_by="tests/train/test_distributed_meshes.py"
        "::test_twenty_steps_on_a_mesh_are_those_of_one_device",
    ),
    Mutation(
        id="only-the-first-process-gathers",
        slug="foundation",
        path="jtok/models/storage.py",
        before="if not good:",
        after="if good is None:",
        killed_by="tests/train/test_distributed.py"
        "::test_two_processes_decode_load_and_save_as_one",
    ),
    Mutation(
        id="what-does-not-fit-fits",
        slug="project",
        path="experiments/pod_plan.py",
        before='fitting = [plan for plan in tried if plan["fits"]]',
        after="fitting = [plan for plan in tried]",
        killed_by="tests/experiments/test_pod_plan.py"
        "::test_the_best_mesh_is_the_fastest_that_fits",
    ),
    Mutation(
        id="scan-outputs-before-the-step",
        slug="foundation",
        path="jtok/ops/selective_scan.py",
        before="return state, jnp.sum(state * C[:, None, :], axis=-1)",
        after="return state, jnp.sum((state - dt[..., None]) * C[:, None, :], axis=-1)",
        killed_by="tests/ops/test_selective_scan.py::test_equals_the_definition[1]",
    ),
    Mutation(
        id="scan-masked-steps-count",
        slug="foundation",
        path="jtok/ops/selective_scan.py",
        before="parts = tuple(jnp.where(mask[..., None], part, 0.0) for part in parts)",
        after="parts = tuple(parts)",
        killed_by="tests/ops/test_selective_scan.py"
        "::test_blocks_change_nothing[64-False]",
    ),
    Mutation(
        id="scan-rows-without-steps-lose-bits",
        slug="foundation",
        path="jtok/ops/selective_scan.py",
        before="return jnp.where(jnp.any(mask, axis=1)[:, None, None], after, before)",
        after="return after",
        killed_by="tests/ops/test_selective_scan.py"
        "::test_a_row_without_steps_keeps_every_bit",
    ),
    Mutation(
        id="mamba-conv-forgets-one-input",
        slug="foundation",
        path="jtok/nn/mamba.py",
        before="index = count[:, None] + jnp.arange(history.shape[1])[None]",
        after="index = count[:, None] - 1 + jnp.arange(history.shape[1])[None]",
        killed_by="tests/nn/test_mamba.py::test_history_is_what_the_next_inputs_see",
    ),
    Mutation(
        id="mamba-keeps-every-node",
        slug="foundation",
        path="jtok/nn/mamba.py",
        before="kept = jnp.arange(path.shape[1])[None] < count[:, None]",
        after="kept = jnp.arange(path.shape[1])[None] < count[:, None] + 1",
        killed_by="tests/models/test_mamba.py"
        "::test_commit_keeps_the_state_after_so_many_nodes",
    ),
    Mutation(
        id="chains-with-extra-slots-pass",
        slug="foundation",
        path="jtok/decode/options.py",
        before="if not ((is_chain and proposal.extra is None) or target.info.trees):",
        after="if not (is_chain or target.info.trees):",
        killed_by="tests/decode/test_recurrent.py::test_extra_slots_are_refused",
    ),
    Mutation(
        id="text-cache-keeps-nodes-in-step-order",
        slug="foundation",
        path="jtok/models/foreign.py",
        before="take_along_axis(cache.pending, jnp.maximum(path, 0), axis=1)",
        after="asarray(cache.pending[:, : path.shape[1]])",
        killed_by="tests/models/test_foreign.py::test_the_cache_is_the_text",
    ),
    Mutation(
        id="kernel-reads-one-slot-too-many",
        slug="foundation",
        path="jtok/ops/attention/pallas_tpu.py",
        before="used = (column < length[row])",
        after="used = (column <= length[row])",
        killed_by="tests/ops/test_attention_kernel.py::test_kernel_equals_xla[tree]",
    ),
    Mutation(
        id="kernel-blocks-not-shrunk",
        slug="foundation",
        path="jtok/ops/attention/pallas_tpu.py",
        before="mixed[...] = mixed[...] * shrink + added",
        after="mixed[...] = mixed[...] + added",
        killed_by="tests/ops/test_attention_kernel.py::test_kernel_equals_xla[tree]",
    ),
    Mutation(
        id="kernel-past-the-vocabulary",
        slug="foundation",
        path="jtok/ops/unembed/pallas_tpu.py",
        before="logits = jnp.where(place < local, logits, -jnp.inf)",
        after="logits = jnp.where(place < local + 1, logits, -jnp.inf)",
        killed_by="tests/ops/test_readout_kernel.py::test_kernel_equals_xla[one node]",
    ),
    Mutation(
        id="kernel-noise-of-another-round",
        slug="foundation",
        path="jtok/ops/unembed/pallas_tpu.py",
        before="(17, 29, 16, 24)",
        after="(17, 29, 16, 23)",
        killed_by="tests/ops/test_readout_kernel.py::test_noise_of_the_kernel_is_that_of_the_position",
    ),
    Mutation(
        id="shard-ties-to-the-later-one",
        slug="foundation",
        path="jtok/ops/unembed/reference.py",
        before='better = part["best"] > joined["best"]',
        after='better = part["best"] >= joined["best"]',
        killed_by="tests/ops/test_readout_kernel.py::test_ties_between_shards_go_to_the_lower_id",
    ),
    Mutation(
        id="moved-chunk-counted-twice",
        slug="foundation",
        path="jtok/ops/unembed/walk.py",
        before="jnp.where(fresh & new, d_logits, 0.0)",
        after="jnp.where(fresh, d_logits, 0.0)",
        killed_by="tests/ops/test_losses.py::test_gradients_of_the_divergence[1.0-None-5-99]",
    ),
    Mutation(
        id="equal-uniform-accepted",
        slug="speculative_verification",
        path="jtok/decode/rejection.py",
        before="right = (bound <= mass) if at_most else (bound < mass)",
        after="right = bound <= mass",
        killed_by="tests/decode/test_rules.py"
        "::test_a_token_of_probability_zero_is_never_accepted",
    ),
    Mutation(
        id="residual-not-taken",
        slug="speculative_verification",
        path="jtok/decode/rejection.py",
        before="left = _residual(walk.law, drawn)",
        after="left = walk.law + 0 * drawn",
        killed_by="tests/decode/test_rules_goldens.py::test_chain_rejection",
    ),
    Mutation(
        id="siblings-drawn-again",
        slug="speculative_verification",
        path="jtok/decode/rejection.py",
        before="drawn = q[:, node] if replacement else _without(q[:, node], gone)",
        after="drawn = q[:, node]",
        killed_by="tests/decode/test_rules_goldens.py::test_several_candidates",
    ),
    Mutation(
        id="typical-by-order-not-likelihood",
        slug="speculative_verification",
        path="jtok/decode/typical.py",
        before="node = jnp.argmax(jnp.where(longest, total, -jnp.inf), axis=-1)",
        after="node = jnp.argmax(longest, axis=-1)",
        killed_by="tests/test_docstrings.py::test_example[jtok.decode.accept_typical]",
    ),
    Mutation(
        id="dynamic-scores-forget-parents",
        slug="speculative_verification",
        path="jtok/decode/dynamic.py",
        before="scores = (above[..., None] + gains).reshape(batch, -1)",
        after="scores = gains.reshape(batch, -1)",
        killed_by="tests/decode/test_rules_goldens.py::test_growth_of_eagle2",
    ),
    Mutation(
        id="draft-cache-one-too-few",
        slug="speculative_verification",
        path="jtok/decode/draft_model.py",
        before="target.commit(cache, order, count), state.length",
        after="target.commit(cache, order, count - 1), state.length",
        killed_by="tests/decode/test_draft_model.py"
        "::test_the_cache_is_that_of_a_fresh_prefill",
    ),
    Mutation(
        id="labels-of-the-past",
        slug="foundation",
        path="jtok/predict/targets.py",
        before="place = np.arange(seq) + distance",
        after="place = np.arange(seq) - distance",
        killed_by="tests/predict/test_targets.py"
        "::test_labels_are_those_that_a_loop_finds",
    ),
    Mutation(
        id="head-state-of-another-node",
        slug="foundation",
        path="jtok/decode/heads.py",
        before="lambda x, kept=kept: x[:, kept]",
        after="lambda x, kept=kept: x[:, np.zeros_like(kept)]",
        killed_by="tests/decode/test_heads.py::test_every_node_continues_its_own_path",
    ),
    Mutation(
        id="closed-gate-multiplies",
        slug="foundation",
        path="jtok/nn/layers.py",
        before="change = jnp.where(gate == 0, 0.0, gate * change)",
        after="change = (gate * change)",
        killed_by="tests/nn/test_layers.py"
        "::test_a_closed_gate_leaves_every_bit_and_an_open_one_none",
    ),
    Mutation(
        id="host-paths-share-no-nodes",
        slug="foundation",
        path="jtok/decode/host.py",
        before="key = (at, int(token))",
        after="key = (len(child), int(token))",
        killed_by="tests/decode/test_host.py"
        "::test_paths_share_nodes_and_what_does_not_fit_is_left_out",
    ),
    Mutation(
        id="loop-reads-too-small-a-part",
        slug="foundation",
        path="jtok/decode/loop.py",
        before="return going & (jnp.max(cached) <= reach)",
        after="return going & (jnp.min(cached) <= reach)",
        killed_by="tests/decode/test_generate.py"
        "::test_reading_only_a_part_of_the_cache_changes_nothing",
    ),
    Mutation(
        id="mask-sees-the-next-token",
        slug="mtp",
        path="jtok/predict/masks.py",
        before="allow = (index[:, None] <= end[..., None]) & open_[:, None]",
        after="allow = (index[:, None] <= end[..., None] + 1) & open_[:, None]",
        killed_by="tests/predict/test_masks.py::"
        "test_attention_is_that_of_the_dense_mask",
    ),
    Mutation(
        id="mask-labels-shifted-again",
        slug="mtp",
        path="jtok/predict/masks.py",
        before="jnp.where(there[..., 1:] & exists, ahead[..., 1:], IGNORE)",
        after="jnp.where(there[..., :-1] & exists, ahead[..., :-1], IGNORE)",
        killed_by="tests/predict/test_masks.py::"
        "test_labels_positions_and_the_token_before",
    ),
    Mutation(
        id="consistency-moves-the-anchor",
        slug="mtp",
        path="jtok/predict/mask_tokens.py",
        before="anchors = jax.lax.stop_gradient(anchors).astype(jnp.float32)",
        after="anchors = anchors.astype(jnp.float32)",
        killed_by="tests/predict/test_mask_goldens.py::"
        "test_the_consistency_of_given_latents",
    ),
    Mutation(
        id="linear-block-after-a-miss",
        slug="mtp",
        path="jtok/decode/mask_tokens.py",
        before="ready = (end == state.anchor) if linear else jnp.ones_like(live)",
        after="ready = jnp.ones_like(live)",
        killed_by="tests/decode/test_mask_tokens.py::test_decoding_is_that_of_the_reference",
    ),
    Mutation(
        id="adapter-merged-without-scale",
        slug="mtp",
        path="jtok/predict/adapters.py",
        before='adapter["lora_b"].astype(jnp.float32) * scale,',
        after='adapter["lora_b"].astype(jnp.float32),',
        killed_by="tests/predict/test_adapters.py::"
        "test_new_adapters_change_nothing_and_others_what_merging_changes",
    ),
    Mutation(
        id="heads-targets-too-near",
        slug="caft",
        path="jtok/predict/auxiliary_loss.py",
        before="own = lambda y: jnp.moveaxis(y[..., 1:], -1, 0)",
        after="own = lambda y: jnp.moveaxis(y[..., :-1], -1, 0)",
        killed_by="tests/predict/test_auxiliary.py"
        "::test_losses_are_those_of_a_loop[default]",
    ),
    Mutation(
        id="heads-decay-from-one",
        slug="caft",
        path="jtok/predict/auxiliary_loss.py",
        before="return first + weight * jnp.sum(weights[1:] * losses[1:])",
        after="return first + weight * jnp.sum(weights[:-1] * losses[1:])",
        killed_by="tests/predict/test_auxiliary_goldens.py"
        "::test_losses_counts_and_schedules[linear]",
    ),
    Mutation(
        id="heads-see-what-comes",
        slug="caft",
        path="jtok/predict/auxiliary.py",
        before="jnp.broadcast_to(jnp.tril(jnp.ones((seq, seq), bool))",
        after="jnp.broadcast_to(jnp.tril(jnp.ones((seq, seq), bool), 1)",
        killed_by="tests/predict/test_auxiliary.py"
        "::test_a_token_changes_nothing_before_it[default]",
    ),
    Mutation(
        id="heads-draft-before-reading",
        slug="caft",
        path="jtok/decode/auxiliary.py",
        before="valid = made.valid & ((state.length > 0)[:, None] | is_root[None])",
        after="valid = made.valid",
        killed_by="tests/decode/test_auxiliary.py"
        "::test_candidates_depend_on_their_depth_alone",
    ),
    Mutation(
        id="heads-cache-from-the-start",
        slug="caft",
        path="jtok/decode/auxiliary.py",
        before="state.length + count, jnp.where(moved",
        after="state.length + width, jnp.where(moved",
        killed_by="tests/decode/test_auxiliary.py"
        "::test_what_heads_say_is_what_they_say_of_the_whole_text[default-llama]",
    ),
    Mutation(
        id="future-sees-other-positions",
        slug="ftp",
        path="jtok/predict/future_block.py",
        before="causal = jnp.asarray(np.tri(slots, seen, seen - slots, dtype=bool))",
        after="causal = jnp.ones((slots, seen), bool)",
        killed_by="tests/predict/test_future.py::test_nothing_depends_on_later_tokens",
    ),
    Mutation(
        id="future-mixes-positions",
        slug="ftp",
        path="jtok/predict/future_block.py",
        before="query = self._heads(self.cross_query(self.cross_norm(x)))",
        after="query = self._heads(self.cross_query(self.cross_norm(x))); "
        "pairs = tuple(jnp.roll(part, 1, 1) for part in pairs)",
        killed_by="tests/predict/test_future.py::test_only_its_own_position_is_seen",
    ),
    Mutation(
        id="future-first-slot-reads-the-target",
        slug="ftp",
        path="jtok/predict/future_slots.py",
        before="inputs = jnp.concatenate([first.astype(rest.dtype), rest], axis=-2)",
        after="inputs = jnp.concatenate([rest, first.astype(rest.dtype)], axis=-2)",
        killed_by="tests/predict/test_future.py::test_logits_and_losses",
    ),
    Mutation(
        id="future-predicts-padding",
        slug="ftp",
        path="jtok/predict/future_loss.py",
        before="labels = jnp.where(real, ids, IGNORE)",
        after="labels = jnp.where(ids >= 0, ids, IGNORE)",
        killed_by="tests/predict/test_future.py::test_logits_and_losses",
    ),
    Mutation(
        id="future-some-positions-unscaled",
        slug="ftp",
        path="jtok/predict/future_loss.py",
        before="return chosen, jnp.maximum(among / count, 1.0)",
        after="return chosen, jnp.maximum(among / count, 1.0) ** 0",
        killed_by="tests/predict/test_future_loss.py::test_some_positions_are_unbiased",
    ),
    Mutation(
        id="future-drafts-from-the-root",
        slug="ftp",
        path="jtok/decode/future.py",
        before="last = jnp.maximum(verdict.count - 1, 0)[:, None]",
        after="last = jnp.zeros_like(verdict.count)[:, None]",
        killed_by="tests/decode/test_future.py"
        "::test_verified_drafts_and_how_many_are_right",
    ),
    Mutation(
        id="future-drafts-without-a-state",
        slug="ftp",
        path="jtok/decode/future.py",
        before="vocab_size=vocab, own=own, valid=state.ready,",
        after="vocab_size=vocab, own=own, valid=None,",
        killed_by="tests/decode/test_future.py::test_greedy_tokens[blockN-0]",
    ),
    Mutation(
        id="fusing-estimate-one-position-early",
        slug="chimera",
        path="jtok/predict/fusing_states.py",
        before="out, _ = run_layer(fusing, x, rows + index + 1, attend)",
        after="out, _ = run_layer(fusing, x, rows + index, attend)",
        killed_by="tests/predict/test_fusing.py"
        "::test_states_and_logits_of_the_released_code[forward_b1]",
    ),
    Mutation(
        id="offset-labels-one-token-early",
        slug="chimera",
        path="jtok/predict/offset_losses.py",
        before="offsets = range(2, steps + 2)",
        after="offsets = range(1, steps + 1)",
        killed_by="tests/predict/test_fusing.py"
        "::test_losses_of_the_released_code[forward_b1]",
    ),
    Mutation(
        id="fusing-trains-the-embedding",
        slug="chimera",
        path="jtok/predict/fusing_states.py",
        before="embed = jax.lax.stop_gradient(fusing.base.embed)",
        after="embed = fusing.base.embed",
        killed_by="tests/predict/test_fusing.py"
        "::test_gradients_of_the_released_code[forward_b1]",
    ),
    Mutation(
        id="fusing-first-trigram-is-a-key",
        slug="chimera",
        path="jtok/predict/fusing_draft.py",
        before="return _attend(config, context, grown, query, index + 1), (key, value)",
        after="return _attend(config, context, grown, query, index), (key, value)",
        killed_by="tests/predict/test_fusing.py"
        "::test_drafting_agrees_with_training_at_every_step[one step]",
    ),
    Mutation(
        id="fusing-next-token-behind-the-padding",
        slug="chimera",
        path="jtok/predict/fusing_states.py",
        before="if mask is not None and compat is None:",
        after="if False:",
        killed_by="tests/predict/test_fusing.py"
        "::test_states_of_a_ragged_batch_are_those_of_its_rows",
    ),
    Mutation(
        id="fusing-moved-block-counts-twice",
        slug="chimera",
        path="jtok/predict/fusing_draft.py",
        before="fresh = (slots >= index * width)[None] &",
        after="fresh = (slots >= 0)[None] &",
        killed_by="tests/predict/test_fusing.py"
        "::test_drafting_agrees_with_training_at_every_step[one step]",
    ),
    Mutation(
        id="medusa-reads-the-first-state",
        slug="chimera",
        path="jtok/decode/fusing.py",
        before="last = jnp.maximum(verdict.count - 1, 0)[:, None, None]",
        after="last = jnp.zeros_like(verdict.count)[:, None, None]",
        killed_by="tests/decode/test_fusing.py"
        "::test_heads_that_know_the_target_are_always_right",
    ),
    Mutation(
        id="sorted-cache-keeps-a-rejected-draft",
        slug="s2d",
        path="jtok/decode/sorted.py",
        before="length=jnp.minimum(cache.length, kept)",
        after="length=jnp.minimum(cache.length, kept + 1)",
        killed_by="tests/decode/test_sorted.py"
        "::test_drafts_and_exits_are_those_without_a_cache",
    ),
    Mutation(
        id="sorted-exit-at-its-threshold",
        slug="s2d",
        path="jtok/predict/sorted.py",
        before="taken = confidence > bound",
        after="taken = confidence >= bound",
        killed_by="tests/predict/test_sorted.py"
        "::test_the_first_exit_that_is_sure_is_taken",
    ),
    Mutation(
        id="sorted-exits-summed",
        slug="s2d",
        path="jtok/predict/sorted.py",
        before="total = total + share * part",
        after="total = total + part",
        killed_by="tests/predict/test_sorted.py::test_weights_are_shares",
    ),
    Mutation(
        id="sorted-length-never-shrinks",
        slug="s2d",
        path="jtok/decode/sorted.py",
        before="state.length, state.length - shrink)",
        after="state.length, state.length)",
        killed_by="tests/decode/test_sorted.py::test_lengths_follow_the_schedule",
    ),
    Mutation(
        id="sorted-tree-misses-a-token",
        slug="s2d",
        path="jtok/decode/sorted_drafts.py",
        before="number, start - 1, read, wanted, plan.block",
        after="number, start - 2, read, wanted, plan.block",
        killed_by="tests/decode/test_sorted.py::test_a_level_leaves_together",
    ),
    Mutation(
        id="masked-logits-shifted-the-other-way",
        slug="diffusion_joint_sampling",
        path="jtok/predict/denoiser.py",
        before="moved = jnp.concatenate([hidden[:, :1], hidden[:, :-1]], axis=1)",
        after="moved = jnp.concatenate([hidden[:, 1:], hidden[:, -1:]], axis=1)",
        killed_by="tests/predict/test_diffusion.py::test_the_shift_is_by_one",
    ),
    Mutation(
        id="mask-is-written",
        slug="diffusion_joint_sampling",
        path="jtok/predict/diffusion.py",
        before="forbid=tuple(forbid) if official else (made.mask_id, *forbid),",
        after="forbid=tuple(forbid),",
        killed_by="tests/predict/test_diffusion.py"
        "::test_single_tokens_have_the_exact_joint_law[entropy]",
    ),
    Mutation(
        id="depths-by-powers-and-not-their-softmax",
        slug="diffusion_joint_sampling",
        path="jtok/predict/joint_training.py",
        before="powers = np.exp(0.5 ** np.arange(max_depth))",
        after="powers = 0.5 ** np.arange(max_depth)",
        killed_by="tests/predict/test_diffusion_goldens.py::test_law_of_the_depth",
    ),
    Mutation(
        id="layer-taught-where-nothing-is-masked",
        slug="diffusion_joint_sampling",
        path="jtok/predict/joint_training.py",
        before="masked = reached == model.mask_id",
        after="masked = states[:, 0] == model.mask_id",
        killed_by="tests/predict/test_diffusion_losses.py"
        "::test_the_loss_is_zero_for_the_model_itself_and_where_nothing_is_left",
    ),
    Mutation(
        id="masked-losses-without-their-rate",
        slug="diffusion_joint_sampling",
        path="jtok/predict/masked_losses.py",
        before="kept = jnp.where(masked, losses, 0.0) / rate[:, None]",
        after="kept = jnp.where(masked, losses, 0.0)",
        killed_by="tests/predict/test_diffusion_losses.py"
        "::test_the_loss_is_an_unbiased_bound",
    ),
    Mutation(
        id="across-reads-other-texts",
        slug="byte_probabilities",
        path="jtok/decode/other_vocabulary.py",
        before="same = 0 if text is None else _shared(known, text[:-1])",
        after="same = 0 if text is None else min(len(known), len(text) - 1)",
        killed_by="tests/decode/test_other_vocabulary.py::test_what_the_writer_remembers_changes_nothing",
    ),
    Mutation(
        id="across-writes-in-place",
        slug="byte_probabilities",
        path="jtok/decode/other_vocabulary.py",
        before="start = kept + count + step",
        after="start = kept + count",
        killed_by="tests/decode/test_other_vocabulary.py::test_what_the_writer_remembers_changes_nothing",
    ),
    Mutation(
        id="across-repeats-the-begun-character",
        slug="byte_probabilities",
        path="jtok/decode/other_vocabulary.py",
        before="text = text[len(begun) :]",
        after="text = text[0:]",
        killed_by="tests/decode/test_other_vocabulary.py::test_a_character_that_the_context_began",
    ),
    Mutation(
        id="across-doubles-the-metaspace",
        slug="byte_probabilities",
        path="jtok/decode/other_vocabulary.py",
        before="both = both[1:]",
        after="both = both[0:]",
        killed_by="tests/decode/test_other_vocabulary.py::test_metaspaces_join",
    ),
    Mutation(
        id="across-drafts-late",
        slug="byte_probabilities",
        path="jtok/decode/other_vocabulary.py",
        before="self._read[row] = np.concatenate([text, made[row, :-1]])",
        after="self._read[row] = np.concatenate([text, made[row]])",
        killed_by="tests/decode/test_other_vocabulary.py::test_what_the_writer_remembers_changes_nothing",
    ),
    Mutation(
        id="merge-first-place-stale",
        slug="tokenadapt",
        path="jtok/text/merging.py",
        before="place == self._first(pair)):",
        after="place >= 0):",
        killed_by="tests/text/test_merging.py"
        "::test_first_is_read_off_the_sequences_as_they_stand",
    ),
    Mutation(
        id="merge-run-counted-as-overlaps",
        slug="tokenadapt",
        path="jtok/text/merging.py",
        before="total += self._weight[place] if parity or not skip else 0",
        after="total += self._weight[place]",
        killed_by="tests/text/test_merging.py::test_a_run_of_equals",
    ),
    Mutation(
        id="supertoken-one-byte-longer-than-official",
        slug="tokenadapt",
        path="jtok/text/supertokens.py",
        before="max_token_length = max(2, max_token_length - 1)",
        after="max_token_length = max(2, max_token_length)",
        killed_by="tests/text/test_supertokens.py"
        "::test_both_trainers_find_the_same_merges[official]",
    ),
    Mutation(
        id="chunk-bulk-runs-into-the-tail",
        slug="tokenadapt",
        path="jtok/text/chunking.py",
        before="return drawn[length - before >= law.longest].tolist()",
        after="return drawn[length - before >= law.shortest].tolist()",
        killed_by="tests/text/test_supertokens.py::test_lengths_tile_the_text",
    ),
    Mutation(
        id="local-without-inner-softmax",
        slug="tokenadapt",
        path="jtok/embed/mixing.py",
        before="likeness = _softmax(cosine.astype(jnp.float32), mask)",
        after="likeness = cosine.astype(jnp.float32)",
        killed_by="tests/embed/test_mixing.py::test_local_estimate_of_the_golden",
    ),
    Mutation(
        id="threshold-ignored",
        slug="tokenadapt",
        path="jtok/embed/mixing.py",
        before="kept = mask if threshold is None else mask & (cosine >= threshold)",
        after="kept = mask",
        killed_by="tests/embed/test_mixing.py"
        "::test_global_estimate_of_the_golden[th0p95]",
    ),
    Mutation(
        id="specials-as-neighbours",
        slug="tokenadapt",
        path="jtok/embed/heuristic.py",
        before="(set() if compat else set(old.special_ids))",
        after="set()",
        killed_by="tests/embed/test_heuristic.py"
        "::test_neighbours_are_neither_specials_nor_pieces_of_characters",
    ),
    Mutation(
        id="vectors-under-the-ids-of-masks",
        slug="mtp",
        path="jtok/models/model.py",
        before="first += len(embed[name])",
        after="first += 0",
        killed_by="tests/decode/test_prompt_vectors.py"
        "::test_vectors_beside_mask_tokens_and_adapters",
    ),
    Mutation(
        id="gates-open-for-vectors",
        slug="mtp",
        path="jtok/models/model.py",
        before='is_mask = (mask >= 0) & (mask < len(params["embed"]["extra"]))',
        after="is_mask = mask >= 0",
        killed_by="tests/decode/test_prompt_vectors.py"
        "::test_vectors_beside_mask_tokens_and_adapters",
    ),
    Mutation(
        id="space-inside-a-merged-token",
        slug="dynamic_tokenization",
        path="jtok/text/dynamic_merging.py",
        before="if not any(byte in _SPACE for byte in token[1:]):",
        after="if not any(byte in _SPACE for byte in token[2:]):",
        killed_by="tests/text/test_dynamic_merging.py::test_single_pairs",
    ),
    Mutation(
        id="encoder-gelu-is-tanh",
        slug="dynamic_tokenization",
        path="jtok/nn/hypernetwork.py",
        before="return jax.nn.gelu(dense(x), approximate=False)",
        after="return jax.nn.gelu(dense(x), approximate=True)",
        killed_by="tests/embed/test_hypernetwork.py::test_rows_are_the_official_ones",
    ),
    Mutation(
        id="fallback-bytes-as-lexical-targets",
        slug="dynamic_tokenization",
        path="jtok/embed/hypernetwork_losses.py",
        before="has_row = (first < source_size) & (first != pad_id)",
        after="has_row = first != pad_id",
        killed_by="tests/embed/test_hypernetwork.py::test_errors_are_the_official_ones",
    ),
    Mutation(
        id="batch-mates-evicted",
        slug="dynamic_tokenization",
        path="jtok/embed/row_table.py",
        before="self.evict(max(0, len(new) - len(self._free)), keep=unique)",
        after="self.evict(max(0, len(new) - len(self._free)))",
        killed_by="tests/embed/test_row_table.py"
        "::test_batches_get_their_own_rows_and_the_oldest_go",
    ),
    Mutation(
        id="prompt-rows-of-padding",
        slug="dynamic_tokenization",
        path="jtok/embed/dynamic_prompts.py",
        before="first = {int(id_): place for place, id_ in "
        "reversed(list(enumerate(ids.flat)))}",
        after="first = {int(id_): place % ids.shape[1] for place, id_ in "
        "enumerate(ids.flat)}",
        killed_by="tests/embed/test_dynamic_prompts.py"
        "::test_the_cached_continuation_is_that_of_the_vectors",
    ),
    Mutation(
        id="padding-has-positions",
        slug="dynamic_tokenization",
        path="jtok/embed/dynamic.py",
        before="first = np.argmax(mask, axis=1)[:, None]",
        after="first = np.zeros_like(np.argmax(mask, axis=1))[:, None]",
        killed_by="tests/embed/test_dynamic.py::test_left_and_right_agree_on_real_tokens",
    ),
    Mutation(
        id="empty-bins-drawn",
        slug="dynamic_tokenization",
        path="jtok/text/merge_budgets.py",
        before="filled = np.unique(bin_of)",
        after="filled = np.arange(bins)",
        killed_by="tests/text/test_merge_budgets.py::test_empty_bins_are_never_drawn",
    ),
    Mutation(
        id="words-joined-across-whitespace",
        slug="learn_your_tokens",
        path="jtok/text/words.py",
        before="if parts and not (word.isspace() or parts[-1].isspace()):",
        after="if parts and not word.isspace():",
        killed_by="tests/text/test_words.py::test_joining_gives_the_text_back",
    ),
    Mutation(
        id="words-see-padding",
        slug="learn_your_tokens",
        path="jtok/embed/word_pooled.py",
        before="return (at < ends)[..., None, :]",
        after="return (at <= ends)[..., None, :]",
        killed_by="tests/embed/test_word_pooled.py::test_padding_units_are_not_seen",
    ),
    Mutation(
        id="words-spelled-from-themselves",
        slug="learn_your_tokens",
        path="jtok/embed/word_pooled.py",
        before="return spell(params, config, states[:, :-1], targets, keys[2])",
        after="return spell(params, config, states[:, 1:], targets, keys[2])",
        killed_by="tests/embed/test_word_pooled.py"
        "::test_nothing_depends_on_what_comes_later",
    ),
    Mutation(
        id="words-have-no-end",
        slug="learn_your_tokens",
        path="jtok/embed/word_losses.py",
        before="counted = jnp.arange(size)[None, None] <= lengths[..., None]",
        after="counted = jnp.arange(size)[None, None] < lengths[..., None]",
        killed_by="tests/embed/test_word_pooled.py"
        "::test_spelled_words_are_a_distribution",
    ),
    Mutation(
        id="packed-words-end-when-full",
        slug="learn_your_tokens",
        path="jtok/embed/word_packed.py",
        before="room = ~last | (lengths < config.units)",
        after="room = ~last | (lengths <= config.units)",
        killed_by="tests/embed/test_word_packed.py::test_losses_and_gradients_agree",
    ),
    Mutation(
        id="segments-see-padding",
        slug="foundation",
        path="jtok/ops/segments.py",
        before="return same & (keys >= 0)[:, None, :]",
        after="return same & (keys >= -1)[:, None, :]",
        killed_by="tests/ops/test_segments.py::test_attention_is_the_loop",
    ),
    Mutation(
        id="lexicon-crosses-documents",
        slug="ernie_gram",
        path="jtok/text/lexicon.py",
        before="inside = document[:count] == document[length - 1 :][:count]",
        after="inside = document[:count] == document[:count]",
        killed_by="tests/text/test_lexicon.py::test_shards_add_up_and_nothing_crosses_documents",
    ),
    Mutation(
        id="lexicon-ties-to-higher-ids",
        slug="ernie_gram",
        path="jtok/text/lexicon.py",
        before="places = np.flatnonzero(kept)",
        after="places = np.flatnonzero(kept)[::-1]",
        killed_by="tests/text/test_lexicon.py::test_ties_go_to_the_lower_ids",
    ),
    Mutation(
        id="matching-across-specials",
        slug="ernie_gram",
        path="jtok/text/matching.py",
        before="new[1:] += is_special[1:] | is_special[:-1]",
        after="new[1:] += is_special[1:] & is_special[:-1]",
        killed_by="tests/text/test_lexicon.py::test_matching_stops_at_special_tokens_and_segments",
    ),
    Mutation(
        id="buckets-of-the-same-place",
        slug="ernie_gram",
        path="jtok/nn/relative.py",
        before='there = offsets > 0 if upper == "later" else offsets < 0',
        after='there = offsets > 0 if upper == "later" else offsets <= 0',
        killed_by="tests/nn/test_relative.py::test_tables_of_the_official_code",
    ),
    Mutation(
        id="query-without-its-own-bias",
        slug="ernie_gram",
        path="jtok/ops/queries.py",
        before="own = own + _by_group(own_bias, kv_heads)",
        after="own = own + 0.0",
        killed_by="tests/ops/test_queries.py::test_equal_to_the_masked_form",
    ),
    Mutation(
        id="unit-gives-its-length-away",
        slug="ernie_gram",
        path="jtok/predict/ngram_masking.py",
        before="kept = ~masked | (slot == 0) | contiguous",
        after="kept = ~masked | (slot >= 0) | contiguous",
        killed_by="tests/predict/test_ngram_masking.py::test_the_length_of_a_masked_unit_is_not_given_away",
    ),
    Mutation(
        id="masks-of-every-example-alike",
        slug="ernie_gram",
        path="jtok/predict/ngram_masking.py",
        before="rng = np.random.default_rng((seed, index))",
        after="rng = np.random.default_rng((seed, 0 * index))",
        killed_by="tests/predict/test_ngram_masking.py::test_examples_do_not_depend_on_their_order",
    ),
    Mutation(
        id="query-one-place-late",
        slug="ernie_gram",
        path="jtok/predict/ngram_encoder.py",
        before="order = places if order is None else order",
        after="order = places + 1 if order is None else order",
        killed_by="tests/predict/test_ngram.py::test_queries_equal_the_masked_form[ernie]",
    ),
    Mutation(
        id="replaced-with-the-other-sign",
        slug="ernie_gram",
        path="jtok/predict/ngram_loss.py",
        before="jax.nn.softplus(jnp.where(original, -wide, wide))",
        after="jax.nn.softplus(jnp.where(original, wide, -wide))",
        killed_by="tests/predict/test_ngram.py::test_losses_of_the_golden",
    ),
    Mutation(
        id="paddle-norms-exchanged",
        slug="ernie_gram",
        path="jtok/models/paddle.py",
        before='{"ln1": "attn_norm", "ln2": "mlp_norm"}',
        after='{"ln2": "attn_norm", "ln1": "mlp_norm"}',
        killed_by="tests/models/test_paddle.py::test_a_plain_call_of_the_official_encoder",
    ),
    Mutation(
        id="rows-by-sequence-only",
        slug="lexinvariant",
        path="jtok/ops/generated_rows.py",
        before="folded = jax.random.fold_in(_typed(key), token)",
        after="folded = jax.random.fold_in(_typed(key), token // 2)",
        killed_by="tests/ops/test_generated_rows.py::test_rows_are_those_of_jax_random",
    ),
    Mutation(
        id="moved-block-counted-twice",
        slug="lexinvariant",
        path="jtok/ops/generated_softmax.py",
        before="fresh = start + index >= fresh_from",
        after="fresh = start + index >= 0 * fresh_from",
        killed_by="tests/ops/test_generated_rows.py"
        "::test_streaming_is_the_dense_softmax",
    ),
    Mutation(
        id="shards-of-the-vocabulary-not-summed",
        slug="lexinvariant",
        path="jtok/ops/generated_softmax.py",
        before="d_hidden = jax.lax.psum(d_hidden, layout.vocab)",
        after="d_hidden = jax.lax.pmax(d_hidden, layout.vocab)",
        killed_by="tests/ops/test_generated_rows.py::test_sharded_is_unsharded",
    ),
    Mutation(
        id="tables-of-every-step-alike",
        slug="lexinvariant",
        path="jtok/embed/lexinvariant.py",
        before="example_keys(key, jnp.asarray(index))",
        after="example_keys(jax.random.key(0), 0 * jnp.asarray(index))",
        killed_by="tests/embed/test_lexinvariant.py"
        "::test_training_never_beats_uniform_on_the_first_symbol",
    ),
    Mutation(
        id="keys-without-a-posterior",
        slug="lexinvariant",
        path="jtok/embed/oracle.py",
        before="        new = logs + under[:, symbol]",
        after="        new = 0 * logs + under[:, symbol]",
        killed_by="tests/embed/test_oracle.py"
        "::test_the_mixture_is_that_of_the_goldens[a]",
    ),
    Mutation(
        id="unseen-symbols-not-shared",
        slug="lexinvariant",
        path="jtok/embed/invariance.py",
        before="count = jnp.maximum(jnp.sum(~seen, axis=-1, keepdims=True), 1)",
        after="return log_probs",
        killed_by="tests/embed/test_lexinvariant.py"
        "::test_first_appearance_gives_exact_invariance",
    ),
    Mutation(
        id="queries-in-the-order-of-the-pairs",
        slug="lexinvariant",
        path="jtok/embed/in_context_tasks.py",
        before="asked = jax.random.permutation(fourth, pairs)",
        after="asked = shown[:pairs]",
        killed_by="tests/embed/test_in_context_tasks.py"
        "::test_other_draws_are_other_tasks",
    ),
    Mutation(
        id="merges-before-they-are-possible",
        slug="byte_probabilities",
        path="jtok/text/_spines.py",
        before="return (*(x for x in ready if x > merge), merge)",
        after="return (merge,)",
        killed_by="tests/text/test_validity.py"
        "::test_pairs_by_their_trees_are_those_that_merging_keeps_apart",
    ),
    Mutation(
        id="apostrophe-before-any-letter",
        slug="byte_probabilities",
        path="jtok/text/_splits.py",
        before='if (state, kind) in (("short e", E), ("short l", EL)):',
        after='if state in ("short e", "short l"):',
        killed_by="tests/text/test_validity.py"
        "::test_the_one_path_that_may_end_is_the_split_of_the_pattern",
    ),
    Mutation(
        id="end-inside-a-letter",
        slug="byte_probabilities",
        path="jtok/text/_piece_grammar.py",
        before="return any(not one.partial for one in opens)",
        after="return bool(opens)",
        killed_by="tests/decode/test_byte_level.py::test_masked_bytes_have_no_mass",
    ),
    Mutation(
        id="covers-stick-out-by-one-token-only",
        slug="byte_probabilities",
        path="jtok/decode/_byte_covers.py",
        before="if size - start <= order.longest:",
        after="if size - start <= 1:",
        killed_by="tests/decode/test_byte_goldens.py::test_bytes_without_a_pattern",
    ),
    Mutation(
        id="renorm-forgets-the-end",
        slug="byte_probabilities",
        path="jtok/decode/_byte_covers.py",
        before="total = mass.sum() + np.exp(specials - top).sum()",
        after="total = mass.sum()",
        killed_by="tests/decode/test_byte_goldens.py::test_bytes_without_a_pattern",
    ),
    Mutation(
        id="healed-token-is-always-whole",
        slug="byte_probabilities",
        path="jtok/decode/_byte_covers.py",
        before="return ([block] if start < end else []), nodes",
        after="return [], nodes",
        killed_by="tests/decode/test_byte_level.py"
        "::test_healing_forces_the_bytes_of_the_last_token",
    ),
    Mutation(
        id="transplant-row-too-many",
        slug="omp_transplant",
        path="jtok/embed/init.py",
        before="good = shared.source_ids < source.input.shape[0]",
        after="good = shared.source_ids <= source.input.shape[0]",
        killed_by="tests/embed/test_omp.py::test_a_source_with_fewer_rows",
    ),
    Mutation(
        id="omp-no-rank",
        slug="omp_transplant",
        path="jtok/embed/pursuit.py",
        before="good = going & (pivot > rank * length)",
        after="good = going & (pivot > 0)",
        killed_by=(
            "tests/embed/test_pursuit.py::"
            "test_an_atom_without_a_direction_of_its_own_is_passed_over"
        ),
    ),
    Mutation(
        id="omp-signed-choice",
        slug="omp_transplant",
        path="jtok/embed/pursuit.py",
        before="jnp.abs(products) * scale[None, :])",
        after="products * scale[None, :])",
        killed_by="tests/embed/test_pipeline_goldens.py::test_orthogonal_pursuit",
    ),
    Mutation(
        id="gram-forgets-directions",
        slug="omp_transplant",
        path="jtok/embed/_gram_pursuit.py",
        before="        done += ((state.basis, state.spread),)",
        after="        done = ((state.basis, state.spread),)",
        killed_by="tests/embed/test_pursuit.py::test_both_ways_and_blocks_choose_alike",
    ),
    Mutation(
        id="weighted-mean-turned",
        slug="omp_transplant",
        path="jtok/embed/subword.py",
        before="rising = late if compat is None else not late",
        after="rising = late",
        killed_by="tests/embed/test_pipeline_goldens.py::test_pieces",
    ),
    Mutation(
        id="procrustes-transposed",
        slug="omp_transplant",
        path="jtok/embed/linear_maps.py",
        before='products = jnp.einsum("pd,pw->dw", one, other, precision=_HIGHEST)',
        after='products = jnp.einsum("pd,pw->dw", one, -other, precision=_HIGHEST)',
        killed_by="tests/embed/test_pipeline_goldens.py::test_linear_maps",
    ),
    Mutation(
        id="padding-rows-large",
        slug="omp_transplant",
        path="jtok/embed/transplant.py",
        before="* float(mean)",
        after="* 40.0",
        killed_by="tests/embed/test_transplant.py::test_padded_rows_never_win",
    ),
    Mutation(
        id="specials-share-a-key",
        slug="omp_transplant",
        path="jtok/text/overlap.py",
        before='own.append(("special", surface))',
        after='own.append(("special", ""))',
        killed_by="tests/text/test_overlap.py::test_additional_specials_stay_apart",
    ),
    Mutation(
        id="written-words-overwrite-one-place",
        slug="learn_your_tokens",
        path="jtok/embed/word_generation.py",
        before="start = (held + index) * prefixes",
        after="start = (held + 0 * index) * prefixes",
        killed_by="tests/embed/test_word_generation.py::test_caches_change_nothing",
    ),
    Mutation(
        id="fitted-rows-uncorrelated",
        slug="omp_transplant",
        path="jtok/embed/simple.py",
        before="return middle[None, :] + drawn @ root.T",
        after="return middle[None, :] + drawn * jnp.diag(root)[None, :]",
        killed_by="tests/embed/test_simple.py"
        "::test_fitted_rows_have_the_mean_and_covariance_of_the_rows",
    ),
    Mutation(
        id="unshuffled-columns-first",
        slug="token_compression_survey",
        path="jtok/ops/grids.py",
        before="else (0, 1, 3, 2, 4, 5)",
        after="else (0, 1, 3, 4, 2, 5)",
        killed_by="tests/ops/test_grids.py::test_unshuffle_of_transformers",
    ),
    Mutation(
        id="bilinear-corners-for-centres",
        slug="token_compression_survey",
        path="jtok/ops/grids.py",
        before="dtype=np.float32) + half) * step - half",
        after="dtype=np.float32) + 0 * half) * step",
        killed_by="tests/ops/test_grids.py::test_pools_of_torch",
    ),
    Mutation(
        id="adaptive-cells-share-no-token",
        slug="token_compression_survey",
        path="jtok/ops/grids.py",
        before="-(-(cell + 1) * side // cells)",
        after="(cell + 1) * side // cells",
        killed_by="tests/ops/test_grids.py::test_pools_of_torch",
    ),
    Mutation(
        id="sound-window-with-padding-is-real",
        slug="token_compression_survey",
        path="jtok/compress/frames.py",
        before="valid=real, whole=True)",
        after="valid=real, whole=False)",
        killed_by="tests/compress/test_fixed_methods.py"
        "::test_the_plan_makes_the_tokens",
    ),
    Mutation(
        id="latents-do-not-see-latents",
        slug="token_compression_survey",
        path="jtok/nn/perceiver.py",
        before="own, constant_values=True)",
        after="own, constant_values=False)",
        killed_by="tests/nn/test_perceiver.py::test_outputs_of_open_flamingo",
    ),
    Mutation(
        id="queries-see-in-order",
        slug="token_compression_survey",
        path="jtok/nn/qformer.py",
        before="(earlier | (at < count)[None])[None]",
        after="earlier[None]",
        killed_by="tests/nn/test_qformer.py::test_who_sees_whom",
    ),
    Mutation(
        id="captions-see-the-answer",
        slug="token_compression_survey",
        path="jtok/compress/qformer_losses.py",
        before='sees="causal", key=key',
        after='sees="both", key=key',
        killed_by="tests/compress/test_qformer_losses.py"
        "::test_captions_are_those_of_all_logits",
    ),
    Mutation(
        id="a-pair-is-its-own-negative",
        slug="token_compression_survey",
        path="jtok/compress/qformer_losses.py",
        before="dtype=bool), 0.0, weight)",
        after="dtype=bool), weight, weight)",
        killed_by="tests/compress/test_qformer_losses.py"
        "::test_others_are_never_oneself_and_likelier_where_similar",
    ),
    Mutation(
        id="tome-reorders-where-none-leaves",
        slug="pitome",
        path="jtok/compress/tome.py",
        before='if order == "official" and removal.most > 0:',
        after='if order == "official":',
        killed_by="tests/compress/test_merging.py"
        "::test_nothing_leaves_where_nothing_shall",
    ),
    Mutation(
        id="pitome-blip-spares-the-first",
        slug="pitome",
        path="jtok/compress/presets.py",
        before="acting = range(num_layers - preset.first)",
        after="acting = range(preset.first, num_layers)",
        killed_by="tests/compress/test_presets.py::test_the_table",
    ),
    Mutation(
        id="tome-integer-inflection-as-a-list",
        slug="pitome",
        path="jtok/compress/schedules.py",
        before="return floats or -1 <= remove[1] <= 1",
        after="return floats or -1 <= remove[1] < 0",
        killed_by="tests/compress/test_merging.py::test_counts_and_margins",
    ),
    Mutation(
        id="towers-mean-of-rows",
        slug="pitome",
        path="jtok/models/tower_heads.py",
        before="~own, tokens.plan.size, 0.0)",
        after="~own, 1.0, 0.0)",
        killed_by="tests/models/test_tower.py::test_means_count_patches_and_not_rows",
    ),
    Mutation(
        id="towers-class-in-row-0",
        slug="pitome",
        path="jtok/models/tower_heads.py",
        before="at = jnp.maximum(tokens.plan.assign[:, index], 0)",
        after="at = jnp.full_like(tokens.plan.assign[:, index], index)",
        killed_by="tests/models/test_tower.py::"
        "test_pairs_of_equal_patches_that_merge_change_nothing[deit-True]",
    ),
    Mutation(
        id="towers-pooling-without-sizes",
        slug="pitome",
        path="jtok/models/tower_heads.py",
        before="scores = scores + size_bias(sizes)[:, :, 0]",
        after="scores = scores + 0 * size_bias(sizes)[:, :, 0]",
        killed_by="tests/models/test_tower.py::"
        "test_pairs_of_equal_patches_that_merge_change_nothing[siglip_vision_model-True]",
    ),
    Mutation(
        id="towers-other-cubic",
        slug="pitome",
        path="jtok/models/tower_positions.py",
        before="_kernel(centre - first - step, -0.75)",
        after="_kernel(centre - first - step, -0.5)",
        killed_by="tests/models/test_tower.py::"
        "test_outputs_of_other_options[vit_with_pooler]",
    ),
    Mutation(
        id="towers-patches-by-row",
        slug="pitome",
        path="jtok/models/tower.py",
        before="x.transpose(0, 1, 3, 4, 2, 5)",
        after="x.transpose(0, 1, 3, 2, 4, 5)",
        killed_by="tests/models/test_tower.py::test_outputs_of_transformers[vit]",
    ),
    Mutation(
        id="clip-looks-ahead",
        slug="pitome",
        path="jtok/models/encoder_layers.py",
        before="allow = allow & (at[:, :, None] >= at[:, None, :])",
        after="allow = allow & (at[:, :, None] >= -1)",
        killed_by="tests/models/test_clip.py::test_a_text_is_read_off_at_its_first_end",
    ),
    Mutation(
        id="clip-end-not-followed",
        slug="pitome",
        path="jtok/models/clip.py",
        before="at = jnp.maximum(row, 0)",
        after="at = jnp.maximum(at, row * 0)",
        killed_by="tests/models/test_clip.py::test_compressors_act_in_either_tower",
    ),
    Mutation(
        id="llava-images-start-anew",
        slug="pitome",
        path="jtok/models/llava.py",
        before="rank = jnp.cumsum(own.reshape(-1)).reshape(own.shape) - 1",
        after="rank = jnp.cumsum(own, axis=1) - 1",
        killed_by="tests/models/test_llava.py::"
        "test_images_stand_where_their_tokens_are_row_by_row",
    ),
    Mutation(
        id="llava-patch-off-by-one",
        slug="pitome",
        path="jtok/models/llava.py",
        before="keep = jnp.maximum(take(plan.keep) - 1, -1)",
        after="keep = jnp.maximum(take(plan.keep), -1)",
        killed_by="tests/models/test_llava.py::"
        "test_a_plan_leads_from_patches_to_vectors",
    ),
    Mutation(
        id="divprune-first-is-farthest-of-all",
        slug="token_compression_survey",
        path="jtok/compress/divprune.py",
        before="return jnp.min(jnp.where(seen, 1.0 - cosine, 2.0), axis=-1)",
        after="return jnp.max(jnp.where(seen, 1.0 - cosine, 0.0), axis=-1)",
        killed_by="tests/compress/test_survey_goldens.py::test_divprune",
    ),
    Mutation(
        id="dycoke-official-reduces-all-windows",
        slug="token_compression_survey",
        path="jtok/compress/dycoke.py",
        before="for frame in range(0, frames - 4, 4):",
        after="for frame in range(0, frames - 2, 4):",
        killed_by="tests/compress/test_survey_methods.py"
        "::test_what_the_code_of_dycoke_does",
    ),
    Mutation(
        id="visionzip-mean-of-target-counts-itself",
        slug="token_compression_survey",
        path="jtok/compress/visionzip.py",
        before="count = jnp.maximum(plan.size - 1, 1.0)[..., None]",
        after="count = jnp.maximum(plan.size, 1.0)[..., None]",
        killed_by="tests/compress/test_survey_goldens.py::test_visionzip",
    ),
    Mutation(
        id="prumerge-takes-itself-as-neighbour",
        slug="token_compression_survey",
        path="jtok/compress/prumerge.py",
        before="jnp.where(real[:, None] & ~itself, cosine, -jnp.inf)",
        after="jnp.where(real[:, None], cosine, -jnp.inf)",
        killed_by="tests/compress/test_survey_goldens.py::test_prumerge",
    ),
    Mutation(
        id="sparsevlm-counts-all-words",
        slug="token_compression_survey",
        path="jtok/compress/sparsevlm.py",
        before="total = jnp.sum(jnp.where(rates[..., None], wide, 0.0), axis=1)",
        after="total = jnp.sum(wide, axis=1)",
        killed_by="tests/compress/test_survey_goldens.py::test_sparsevlm",
    ),
    Mutation(
        id="sparsevlm-heads-by-all-words",
        slug="token_compression_survey",
        path="jtok/compress/sparsevlm_two.py",
        before="rated = jnp.where(raters[:, None, :, None], wide, 0.0)",
        after="rated = wide",
        killed_by="tests/compress/test_sparsevlm_two.py"
        "::test_weights_lose_what_rotation_alone_gives",
    ),
    Mutation(
        id="padding-is-chosen-by-score",
        slug="token_compression_survey",
        path="jtok/compress/selection.py",
        before="return (rank < each[:, None]) & among",
        after="return rank < each[:, None]",
        killed_by="tests/contracts/test_compressors.py"
        "::test_rows_with_fewer_tokens_than_the_budget",
    ),
    Mutation(
        id="a-budget-rounds-up",
        slug="token_compression_survey",
        path="jtok/compress/interface.py",
        before="count = math.floor(self.keep * seq)",
        after="count = math.ceil(self.keep * seq)",
        killed_by="tests/contracts/test_compressors.py"
        "::test_a_budget_is_a_count_or_a_share",
    ),
    Mutation(
        id="density-of-the-wrong-tie",
        slug="token_compression_survey",
        path="jtok/compress/density.py",
        before="index[None, :] < index[:, None]",
        after="index[None, :] > index[:, None]",
        killed_by="tests/compress/test_survey_attention.py"
        "::test_clusters_by_hand_in_batches_of_other_sizes",
    ),
    Mutation(
        id="byproducts-columns-unnormalised",
        slug="token_compression_survey",
        path="jtok/ops/byproducts/reference.py",
        before="share = jnp.broadcast_to(part_weight, total.shape) / total",
        after="share = jnp.broadcast_to(part_weight, total.shape)",
        killed_by="tests/ops/test_byproducts.py::test_everything_at_once",
    ),
    Mutation(
        id="byproducts-blind-query-nan",
        slug="token_compression_survey",
        path="jtok/ops/byproducts/reference.py",
        before="    best = jnp.where(best > -jnp.inf, best, 0.0)",
        after="    pass",
        killed_by="tests/ops/test_byproducts.py::"
        "test_a_query_that_sees_nothing_gives_zeros",
    ),
    Mutation(
        id="byproducts-rows-not-causal",
        slug="token_compression_survey",
        path="jtok/ops/byproducts/reference.py",
        before="reach = at + key.shape[1] - seq",
        after="reach = at + key.shape[1]",
        killed_by="tests/ops/test_byproducts.py::test_everything_at_once",
    ),
    Mutation(
        id="power-rows-unnormalised",
        slug="aim",
        path="jtok/ops/byproducts/reference.py",
        before="mass / total)",
        after="mass)",
        killed_by="tests/ops/test_byproducts.py::"
        "test_power_is_that_of_the_whole_matrix",
    ),
    Mutation(
        id="columns-kernel-starts-late",
        slug="token_compression_survey",
        path="jtok/ops/byproducts/pallas_tpu.py",
        before="first = jnp.maximum(j * shape.keys - shape.shift, 0)",
        after="first = jnp.maximum(j * shape.keys + shape.shift, 0)",
        killed_by="tests/ops/test_byproducts_kernel.py::"
        "test_kernels_equal_xla[two tiles of queries]",
    ),
    Mutation(
        id="energy-kernel-padding-is-near",
        slug="pitome",
        path="jtok/ops/energy/pallas_tpu.py",
        before="value = jnp.where(real[0] > 0, value, 0.0)",
        after="value = jnp.where(real[0] >= 0, value, 0.0)",
        killed_by="tests/ops/test_energy.py::test_kernel_equals_xla_over_tiles",
    ),
    Mutation(
        id="pitome-share-of-all-tokens",
        slug="pitome",
        path="jtok/compress/schedule.py",
        before="gone = removed(seq if whole else free, keep)",
        after="gone = removed(free, keep)",
        killed_by="tests/compress/test_schedule.py::test_counts_of_every_layer",
    ),
    Mutation(
        id="pitome-deit-rules-swapped",
        slug="pitome",
        path="jtok/compress/presets.py",
        before='"deit": _Preset((0.75, 0.75), ("bsm", "all"), {}),',
        after='"deit": _Preset((0.75, 0.75), ("all", "bsm"), {}),',
        killed_by="tests/compress/test_stack_goldens.py::test_vit",
    ),
    Mutation(
        id="pitome-pads-leave-in-official",
        slug="pitome",
        path="jtok/compress/schedule.py",
        before="blind = view.replace(valid=jnp.ones_like(view.valid))",
        after="blind = view.replace(valid=view.valid)",
        killed_by="tests/compress/test_stack_goldens.py"
        "::test_bert_with_padding_as_in_the_code",
    ),
    Mutation(
        id="pitome-pool-counts-rows",
        slug="pitome",
        path="jtok/compress/presets.py",
        before="weight = size.astype(jnp.float32) *",
        after="weight = jnp.ones_like(size, jnp.float32) *",
        killed_by="tests/compress/test_presets.py"
        "::test_pooling_by_size_is_pooling_of_all_tokens",
    ),
    Mutation(
        id="flops-keys-as-wide-as-queries",
        slug="pitome",
        path="jtok/compress/flops.py",
        before="values = config.num_kv_heads * config.head_dim",
        after="values = config.num_heads * config.head_dim",
        killed_by="tests/compress/test_flops.py::test_the_figures_of_aim",
    ),
    Mutation(
        id="lama-norm-over-words",
        slug="lama",
        path="jtok/nn/lama.py",
        before="length = jnp.sum(jnp.square(z), axis=1, keepdims=True)",
        after="length = jnp.sum(jnp.square(z), axis=2, keepdims=True)",
        killed_by="tests/nn/test_lama.py::test_third_party_code",
    ),
    Mutation(
        id="lama-mixes-what-it-weighs",
        slug="lama",
        path="jtok/nn/lama.py",
        before="return attend_heads(scores * scale, values, real)",
        after="return attend_heads(scores * scale, x, real)",
        killed_by="tests/nn/test_lama.py::test_a_naive_double_loop",
    ),
    Mutation(
        id="lama-scale-ignored",
        slug="lama",
        path="jtok/nn/lama.py",
        before='scale = params.get("score_scale", self.score_scale)',
        after="scale = self.score_scale",
        killed_by="tests/nn/test_lama.py::test_the_scale_lifts_the_ceiling",
    ),
    Mutation(
        id="poolers-mean-over-padding",
        slug="lama",
        path="jtok/nn/poolers.py",
        before="count = jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]",
        after="count = jnp.full((real.shape[0], 1), max(real.shape[1], 1))",
        killed_by="tests/contracts/test_poolers.py::test_more_padding_changes_nothing",
    ),
    Mutation(
        id="bi-gru-backward-reads-padding",
        slug="lama",
        path="jtok/nn/gru.py",
        before="return jnp.where(real[:, None], new + update * (state - new), state)",
        after="return new + update * (state - new)",
        killed_by="tests/nn/test_gru.py"
        "::test_both_directions_of_every_row_against_a_loop",
    ),
    Mutation(
        id="bi-gru-reset-before-the-product",
        slug="lama",
        path="jtok/nn/gru.py",
        before="new = jnp.tanh(gates[:, 2 * width :] + reset * own[:, 2 * width :])",
        after="new = jnp.tanh(gates[:, 2 * width :] + own[:, 2 * width :])",
        killed_by="tests/nn/test_gru.py::test_states_of_the_golden",
    ),
    Mutation(
        id="classifier-words-are-mixed",
        slug="lama",
        path="jtok/classify/head.py",
        before='params["pooler"], hidden, mask, scored=scored, context=context',
        after='params["pooler"], hidden, mask, scored=None, context=context',
        killed_by="tests/classify/test_texts.py"
        "::test_outputs_and_gradients_of_the_reference",
    ),
    Mutation(
        id="frozen-encoder-trains",
        slug="lama",
        path="jtok/classify/head.py",
        before="hidden = jax.lax.stop_gradient(hidden)",
        after="hidden = hidden * 1.0",
        killed_by="tests/classify/test_texts.py"
        "::test_a_frozen_encoder_gets_no_gradient",
    ),
    Mutation(
        id="sound-mask-one-frame-late",
        slug="pitome",
        path="jtok/models/sound.py",
        before="heard[:, ::2].astype(bool)",
        after="heard[:, 1::2].astype(bool)",
        killed_by="tests/models/test_sound.py"
        "::test_padding_changes_nothing_whatever_it_holds",
    ),
    Mutation(
        id="sound-padding-enters-the-convolutions",
        slug="pitome",
        path="jtok/models/sound.py",
        before="x = x if heard is None else",
        after="x = x if True else",
        killed_by="tests/models/test_sound.py"
        "::test_padding_changes_nothing_whatever_it_holds",
    ),
    Mutation(
        id="images-odd-black-after-the-picture",
        slug="pitome",
        path="jtok/models/image_pixels.py",
        before='if compat == "pil" else (less, more)',
        after='if compat == "torch" else (less, more)',
        killed_by="tests/models/test_processors.py::test_pictures_of_transformers"
        "[small]",
    ),
    Mutation(
        id="images-not-wide-enough-against-aliasing",
        slug="pitome",
        path="jtok/models/image_resize.py",
        before="max(step, 1.0)",
        after="max(1.0, 1.0)",
        killed_by="tests/models/test_processors.py::test_the_device_resizes_as_pillow",
    ),
    Mutation(
        id="log-mel-of-the-batchs-loudest",
        slug="pitome",
        path="jtok/models/sound_processor.py",
        before="jnp.max(logs, axis=(1, 2), keepdims=True)",
        after="jnp.max(logs, axis=(0, 1, 2), keepdims=True)",
        killed_by="tests/models/test_processors.py"
        "::test_rows_of_sound_do_not_mix_and_thirty_seconds_have_3000_frames",
    ),
    Mutation(
        id="prompts-count-of-another-picture",
        slug="pitome",
        path="jtok/models/prompt_images.py",
        before="done += pictures",
        after="done += 0",
        killed_by="tests/models/test_processors.py"
        "::test_merged_tokens_take_fewer_places",
    ),
)


def occurrences(mutation: Mutation) -> int:
    """How often `before` stands in the file; 1 in a mutation that still applies."""
    path = ROOT / mutation.path
    return (
        path.read_text(encoding="utf-8").count(mutation.before) if path.is_file() else 0
    )


def copy_project(folder: pathlib.Path) -> pathlib.Path:
    """Copies what tests need below `folder`; goldens are linked, not copied."""
    goldens = ROOT / "tests" / "goldens"

    def ignore(parent: str, names: list[str]) -> Iterable[str]:
        skipped = {"__pycache__", "results"} & set(names)
        return skipped | (
            {"goldens"} if pathlib.Path(parent) == ROOT / "tests" else set()
        )

    copy = folder / "project"
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignore)
        elif source.is_file():
            shutil.copy(source, copy / name)
    if goldens.is_dir():
        (copy / "tests" / "goldens").symlink_to(goldens, target_is_directory=True)
    return copy


# Runs in the copy. Says how each test ended: where it failed, and with what.
_RUNNER = """
import json, sys, pytest

class Recorder:
    def __init__(self):
        self.outcomes = []
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if report.outcome == "failed" or call.when == "call":
            kinds = [k.__name__ for k in type(call.excinfo.value).__mro__] if (
                call.excinfo) else []
            self.outcomes.append([item.nodeid, call.when, report.outcome, kinds])
        return report

recorder = Recorder()
args = ["-q", "-x", "--no-header", "-p", "no:cacheprovider", "--durations=0", "-m", ""]
code = pytest.main([*args, *sys.argv[2:]], plugins=[recorder])
import jtok
result = {"code": int(code), "jtok": jtok.__file__, "outcomes": recorder.outcomes}
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
"""


def run_tests(copy: pathlib.Path, tests: Sequence[str]) -> tuple[dict, str]:
    """Runs tests in a copy; returns what the recorder saw and what pytest printed."""
    from jtok.errors import DataNotFoundError
    from jtok.testing import data

    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    env["PYTHONPATH"] = str(copy)  # before the installed jtok
    env["PYTHONDONTWRITEBYTECODE"] = "1"  # two mutants within a second share an mtime
    env.setdefault("JTOK_TEST_COMPILE_CACHE", str(copy.parent / "compiled"))
    with contextlib.suppress(DataNotFoundError):  # no shared folder beside the copy
        env["JTOK_DATA"] = str(data("README.md").parent)
    report = copy.parent / "report.json"
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER, str(report), *tests],
        cwd=copy,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT * max(1, len(tests) // 8),
    )
    printed = done.stdout + done.stderr
    if not report.is_file():
        return {"code": done.returncode, "jtok": "", "outcomes": []}, printed
    return json.loads(report.read_text()), printed


def verdict(report: dict, copy: pathlib.Path) -> str | None:
    """Why a run does not kill its fault, or None where it does."""
    if not report["jtok"].startswith(str(copy)):
        return "the run did not import the copy"
    if not report["outcomes"]:
        return "no test ran"
    for _, when, outcome, kinds in report["outcomes"]:
        if outcome == "failed" and when != "call":
            return f"the test did not get to run: {kinds[0]} in {when}"
        # `Failed` is pytest's own: pytest.fail, or an expected error that did not come.
        if outcome == "failed" and {"AssertionError", "Failed"} & set(kinds):
            return None
        if outcome == "failed":
            return f"the test failed with {kinds[0]}, not with an assertion"
    return "the test passed"


def survives(mutation: Mutation, copy: pathlib.Path) -> str | None:
    """Applies a fault to a copy, runs its test, and takes the fault back.

    Returns:
      Why the fault survived, or None where the test killed it.
    """
    path = copy / mutation.path
    original = path.read_text(encoding="utf-8")
    if original.count(mutation.before) != 1:
        return f"`before` occurs {original.count(mutation.before)} times"
    path.write_text(original.replace(mutation.before, mutation.after), encoding="utf-8")
    try:
        report, printed = run_tests(copy, [mutation.killed_by])
    except subprocess.TimeoutExpired:
        return f"{mutation.killed_by} took over {TIMEOUT} s"
    finally:
        path.write_text(original, encoding="utf-8")
    reason = verdict(report, copy)
    return None if reason is None else f"{reason}\n{printed[-1500:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="id of one mutation")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if options.only in (None, m.id)]
    if not chosen:
        parser.error(
            f"--only {options.only}: known: {', '.join(m.id for m in MUTATIONS)}"
        )
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_project(pathlib.Path(folder).resolve())
        for mutation in chosen:
            reason = survives(mutation, copy)
            survivors += reason is not None
            outcome = "killed" if reason is None else f"SURVIVED: {reason}"
            print(f"{mutation.id}: {outcome}", flush=True)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
