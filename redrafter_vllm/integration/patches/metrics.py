# SPDX-License-Identifier: Apache-2.0
"""Names of vLLM's front end by which counts of drafting reach its counters."""

from redrafter_vllm.integration.frontend import prometheus, stop_strings
from redrafter_vllm.integration.patches.rebind import rebind_listed


def install() -> None:
    # Stop strings are found where text is made, after the engine has counted. Can go when vLLM counts after that.
    processor = "vllm.v1.engine.output_processor:OutputProcessor"
    rebind_listed(f"{processor}.process_outputs", stop_strings.note_stop_strings)
    rebind_listed(f"{processor}.update_scheduler_stats", stop_strings.count_stop_strings)
    # Can go when a method can add counters to vLLM's.
    counters = "vllm.v1.spec_decode.metrics:SpecDecodingProm"
    rebind_listed(f"{counters}.__init__", prometheus.create_counters)
    rebind_listed(f"{counters}.observe", prometheus.observe_counters)
    # Can go when vLLM logs nothing of an interval without verifications.
    rebind_listed("vllm.v1.spec_decode.metrics:SpecDecodingLogging.observe", prometheus.log_verifications)
