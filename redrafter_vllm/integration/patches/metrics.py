# SPDX-License-Identifier: Apache-2.0
"""Names of vLLM by which counts of drafting leave the worker and reach the front end's counters."""

from redrafter_vllm.integration.frontend import prometheus, stop_strings
from redrafter_vllm.integration.patches.rebind import rebind_listed
from redrafter_vllm.integration.worker.report import report_from_worker


def install() -> None:
    """Can go when a speculator can pass its own statistics to the scheduler, and these reach the stat loggers."""
    rebind_listed("vllm.v1.worker.gpu.async_utils:AsyncOutput.get_output", report_from_worker)
    # Stop strings are found where text is made, after the engine has counted. Can go when vLLM counts after that.
    processor = "vllm.v1.engine.output_processor:OutputProcessor"
    rebind_listed(f"{processor}.process_outputs", stop_strings.note_stop_strings)
    rebind_listed(f"{processor}.update_scheduler_stats", stop_strings.count_stop_strings)
    counters = "vllm.v1.spec_decode.metrics:SpecDecodingProm"
    rebind_listed(f"{counters}.__init__", prometheus.create_counters)
    rebind_listed(f"{counters}.observe", prometheus.observe_counters)
