# SPDX-License-Identifier: Apache-2.0
"""Names of vLLM that its front end uses: command line, API server, exported metrics; and those of its configuration."""

from redrafter_vllm.integration.vllm_interface.entry import Use, VllmName

_OPENAI = "vllm.entrypoints.openai"

NAMES = (
    VllmName(
        "vllm.engine.arg_utils:EngineArgs.create_speculative_config",
        Use.REBOUND,
        "self target_model_config target_parallel_config",
    ),
    VllmName("vllm.engine.arg_utils:EngineArgs.add_cli_args", Use.REBOUND, "parser"),
    VllmName("vllm.sampling_params:SamplingParams._validate_spec_decode", Use.REBOUND, "self speculative_config"),
    VllmName(
        f"{_OPENAI}.chat_completion.protocol:ChatCompletionRequest.to_sampling_params",
        Use.REBOUND,
        "self max_tokens default_sampling_params",
    ),
    VllmName(
        f"{_OPENAI}.completion.protocol:CompletionRequest.to_sampling_params",
        Use.REBOUND,
        "self max_tokens default_sampling_params",
    ),
    VllmName(
        f"{_OPENAI}.responses.protocol:ResponsesRequest.to_sampling_params",
        Use.REBOUND,
        "self default_max_tokens default_sampling_params",
    ),
    VllmName(
        "vllm.v1.engine.async_llm:AsyncLLM._add_request",
        Use.REBOUND,
        "self request prompt parent_req index queue",
    ),
    VllmName(
        "vllm.v1.engine.utils:wait_for_engine_startup",
        Use.REBOUND,
        "handshake_socket core_engines parallel_config coordinated_dp cache_config launch",
    ),
    VllmName(
        "vllm.v1.engine.output_processor:OutputProcessor.process_outputs",
        Use.REBOUND,
        "self engine_core_outputs engine_core_timestamp iteration_stats weight_version",
    ),
    VllmName(
        "vllm.v1.engine.output_processor:OutputProcessor.update_scheduler_stats",
        Use.REBOUND,
        "self scheduler_stats",
    ),
    VllmName(
        "vllm.v1.spec_decode.metrics:SpecDecodingProm.__init__",
        Use.REBOUND,
        "self speculative_config labelnames per_engine_labelvalues is_diffusion",
    ),
    VllmName(
        "vllm.v1.spec_decode.metrics:SpecDecodingProm.observe", Use.REBOUND, "self spec_decoding_stats engine_idx"
    ),
    VllmName("vllm.v1.spec_decode.metrics:SpecDecodingLogging.observe", Use.REBOUND, "self spec_decoding_stats"),
    VllmName("vllm.v1.metrics.utils:create_metric_per_engine", Use.CALLED, "metric per_engine_labelvalues"),
    VllmName("vllm.config:SpeculativeConfig.compute_hash", Use.OVERRIDDEN, "self"),
    VllmName("vllm.config.utils:config", Use.CALLED, "cls"),
    VllmName("vllm.logger:init_logger", Use.CALLED, "name"),
    VllmName("vllm.v1.engine.detokenizer:IncrementalDetokenizer.num_output_tokens", Use.CALLED),
    VllmName("vllm:__version__", Use.USED),
    VllmName("vllm.envs:VLLM_USE_V2_MODEL_RUNNER", Use.USED),
    VllmName("vllm.triton_utils:HAS_TRITON", Use.USED),
    VllmName("vllm.utils.argparse_utils:FlexibleArgumentParser", Use.USED),
    VllmName(
        "vllm.engine.arg_utils:EngineArgs",
        Use.USED,
        attributes="speculative_config spec_method spec_model spec_tokens attention_backend attention_config "
        "kv_transfer_config kv_offloading_size max_num_batched_tokens max_num_scheduled_tokens "
        "long_prefill_token_threshold scheduler_cls",
    ),
    VllmName(
        "vllm.config:SpeculativeConfig",
        Use.USED,
        attributes="method model num_speculative_tokens num_speculative_tokens_per_batch_size target_model_config "
        "target_parallel_config draft_model_config draft_parallel_config",
    ),
    VllmName(
        "vllm.config:VllmConfig",
        Use.USED,
        attributes="speculative_config model_config scheduler_config compilation_config parallel_config",
    ),
    VllmName("vllm.config.vllm:NgramGPUTypes", Use.USED),
    VllmName("vllm.config.scheduler:SchedulerConfig", Use.USED, attributes="max_num_seqs async_scheduling"),
    VllmName(
        "vllm.config.model:ModelConfig",
        Use.USED,
        attributes="model dtype runner_type is_encoder_decoder is_attention_free is_hybrid is_multimodal_model use_mla "
        "hf_text_config logits_processors get_vocab_size get_hidden_size get_sliding_window is_moe",
    ),
    VllmName(
        "vllm.config.parallel:ParallelConfig",
        Use.USED,
        attributes="worker_cls pipeline_parallel_size data_parallel_size data_parallel_index "
        "decode_context_parallel_size use_ubatching prefill_context_parallel_size "
        "enable_batch_sharded_sampling distributed_executor_backend",
    ),
    VllmName("vllm.exceptions:VLLMValidationError", Use.USED, attributes="parameter"),
    VllmName(
        "vllm.sampling_params:SamplingParams",
        Use.USED,
        attributes="extra_args bad_words_token_ids structured_outputs thinking_token_budget num_logprobs "
        "prompt_logprobs",
    ),
    VllmName(f"{_OPENAI}.chat_completion.protocol:ChatCompletionRequest", Use.USED),
    VllmName(f"{_OPENAI}.completion.protocol:CompletionRequest", Use.USED),
    VllmName(f"{_OPENAI}.responses.protocol:ResponsesRequest", Use.USED),
    VllmName("vllm.v1.engine.async_llm:AsyncLLM", Use.USED, attributes="vllm_config model_config output_processor"),
    VllmName(
        "vllm.v1.engine:EngineCoreRequest", Use.USED, attributes="request_id resumable prompt_token_ids sampling_params"
    ),
    VllmName("vllm.v1.engine.output_processor:OutputProcessor", Use.USED, attributes="request_states"),
    VllmName(
        "vllm.v1.engine.output_processor:RequestState",
        Use.USED,
        attributes="input_chunk_queue prompt_len detokenizer logprobs_processor",
    ),
    VllmName("vllm.v1.engine.logprobs:LogprobsProcessor", Use.USED, attributes="num_logprobs num_prompt_logprobs"),
    VllmName("vllm.v1.engine.output_processor:StreamingUpdate", Use.USED, attributes="prompt_token_ids"),
    VllmName("vllm.v1.spec_decode.metrics:SpecDecodingProm", Use.USED, attributes="_counter_cls"),
)
