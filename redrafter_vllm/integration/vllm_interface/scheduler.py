# SPDX-License-Identifier: Apache-2.0
"""Names of vLLM that its engine core uses: the scheduler, its requests and statistics."""

from redrafter_vllm.integration.vllm_interface.entry import Use, VllmName

NAMES = (
    VllmName("vllm.v1.core.sched.scheduler:Scheduler.update_draft_token_ids", Use.OVERRIDDEN, "self draft_token_ids"),
    VllmName(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler._update_after_schedule",
        Use.OVERRIDDEN,
        "self scheduler_output",
    ),
    VllmName(
        "vllm.v1.core.sched.scheduler:Scheduler._update_request_with_output",
        Use.OVERRIDDEN,
        "self request new_token_ids is_stale",
    ),
    VllmName(
        "vllm.v1.core.sched.scheduler:Scheduler._update_request_as_session", Use.OVERRIDDEN, "self session update"
    ),
    VllmName("vllm.v1.core.sched.scheduler:Scheduler._handle_stopped_request", Use.OVERRIDDEN, "self request"),
    VllmName(
        "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
        Use.OVERRIDDEN,
        "self scheduler_output model_runner_output",
    ),
    VllmName(
        "vllm.v1.core.sched.scheduler:Scheduler.make_spec_decoding_stats",
        Use.OVERRIDDEN,
        "self spec_decoding_stats num_draft_tokens num_accepted_tokens num_invalid_spec_tokens request_id",
    ),
    VllmName(
        "vllm.v1.core.sched.scheduler:Scheduler.make_stats",
        Use.OVERRIDDEN,
        "self spec_decoding_stats kv_connector_stats cudagraph_stats perf_stats ec_connector_stats",
    ),
    VllmName("vllm.v1.core.kv_cache_manager:KVCacheManager.cache_blocks", Use.CALLED, "request num_computed_tokens"),
    VllmName(
        "vllm.v1.core.sched.scheduler:Scheduler",
        Use.USED,
        attributes="vllm_config requests log_stats num_spec_tokens waiting kv_holding_waiting kv_cache_manager "
        "max_model_len _enqueue_waiting_request",
    ),
    VllmName("vllm.v1.core.sched.async_scheduler:AsyncScheduler", Use.USED),
    VllmName(
        "vllm.v1.core.sched.output:SchedulerOutput",
        Use.USED,
        attributes="num_scheduled_tokens scheduled_spec_decode_tokens num_invalid_spec_tokens",
    ),
    VllmName("vllm.v1.core.sched.output:NewRequestData", Use.USED, attributes="sampling_params"),
    VllmName(
        "vllm.v1.request:Request",
        Use.USED,
        attributes="request_id sampling_params spec_token_ids num_computed_tokens num_tokens num_output_placeholders "
        "num_in_flight_tokens is_finished use_structured_output spec_decode_metrics",
    ),
    VllmName("vllm.v1.request:StreamingUpdate", Use.USED, attributes="prompt_token_ids sampling_params"),
    VllmName("vllm.v1.engine:EngineCoreOutput", Use.USED, attributes="request_id new_token_ids"),
    VllmName("vllm.v1.engine:EngineCoreOutputs", Use.USED, attributes="outputs"),
    VllmName("vllm.v1.metrics.stats:SchedulerStats", Use.USED, attributes="spec_decoding_stats"),
    VllmName(
        "vllm.v1.metrics.stats:RequestSpecDecodeMetrics",
        Use.USED,
        attributes="histogram per_step_accepted per_step_drafted",
    ),
    VllmName("vllm.v1.outputs:DraftTokenIds", Use.USED, attributes="req_ids"),
    VllmName("vllm.v1.outputs:ModelRunnerOutput", Use.USED, attributes="req_ids"),
    VllmName(
        "vllm.v1.spec_decode.metrics:SpecDecodingStats",
        Use.USED,
        attributes="new num_spec_tokens num_drafts num_draft_tokens num_accepted_tokens num_accepted_tokens_per_pos "
        "num_draft_tokens_per_pos",
    ),
)
