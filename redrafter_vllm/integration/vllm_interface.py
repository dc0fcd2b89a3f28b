# SPDX-License-Identifier: Apache-2.0
"""Everything of vLLM's insides that this package leans on, as one list.

Rebindings take the parameters that they check from here; `python -m tools.check_vllm_interface` holds the list against the
sources of any vLLM version. The reasons are in docs/design/vllm_interface.md, which names every entry.
"""

from dataclasses import dataclass
from enum import StrEnum


class InterfaceChangedError(RuntimeError):
    """A name that the package leans on is gone from the installed vLLM, or is not what it was."""


class Use(StrEnum):
    """What an interface's parameters mean."""

    REBOUND = "rebound"  # exactly these, in this order: ours stands in vLLM's place
    OVERRIDDEN = "overridden"  # the same, of a method that a class of ours implements
    CALLED = "called"  # we pass these, those behind `*` by name; anything else must have a default
    USED = "used"  # no parameters: a class or value, and the attributes that we read


@dataclass(frozen=True)
class Interface:
    """One name of vLLM's.

    Attributes:
        target: `module:name` or `module:Class.method`.
        use: What for.
        parameters: Names separated by spaces.
        attributes: Of a class or its instances, separated by spaces.
    """

    target: str
    use: Use
    parameters: str = ""
    attributes: str = ""

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def path(self) -> str:
        """Name within the module."""
        return self.target.partition(":")[2]


_GPU = "vllm.v1.worker.gpu"
_STATE = f"{_GPU}.model_states.default:DefaultModelState"
_SPECULATOR = f"{_GPU}.spec_decode.speculator:BaseSpeculator"
_ATTENTION = "vllm.v1.attention.backend"
_BACKENDS = "vllm.v1.attention.backends"
_OPENAI = "vllm.entrypoints.openai"

_REBOUND = (
    Interface(
        "vllm.engine.arg_utils:EngineArgs.create_speculative_config",
        Use.REBOUND,
        "self target_model_config target_parallel_config",
    ),
    Interface("vllm.engine.arg_utils:EngineArgs.add_cli_args", Use.REBOUND, "parser"),
    Interface(f"{_GPU}.model_runner:init_speculator", Use.REBOUND, "vllm_config device req_states"),
    Interface(f"{_GPU}.model_runner:init_model_state", Use.REBOUND, "vllm_config model encoder_cache device"),
    Interface(
        "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin._set_active_loras",
        Use.REBOUND,
        "self prompt_lora_mapping token_lora_mapping lora_requests mapping_type",
    ),
    Interface(
        "vllm.platforms.cpu:CpuPlatform.get_attn_backend_cls",
        Use.REBOUND,
        "cls selected_backend attn_selector_config num_heads",
    ),
    Interface(
        "vllm.platforms.cuda:CudaPlatformBase.get_attn_backend_cls",
        Use.REBOUND,
        "cls selected_backend attn_selector_config num_heads",
    ),
    Interface("vllm.sampling_params:SamplingParams._validate_spec_decode", Use.REBOUND, "self speculative_config"),
    Interface(
        f"{_OPENAI}.chat_completion.protocol:ChatCompletionRequest.to_sampling_params",
        Use.REBOUND,
        "self max_tokens default_sampling_params",
    ),
    Interface(
        f"{_OPENAI}.completion.protocol:CompletionRequest.to_sampling_params",
        Use.REBOUND,
        "self max_tokens default_sampling_params",
    ),
    Interface(
        f"{_OPENAI}.responses.protocol:ResponsesRequest.to_sampling_params",
        Use.REBOUND,
        "self default_max_tokens default_sampling_params",
    ),
    Interface(
        f"{_GPU}.sample.prompt_logprob:PromptLogprobsWorker.compute_prompt_logprobs",
        Use.REBOUND,
        "self logits_fn hidden_states input_batch all_token_ids num_computed_tokens prompt_lens",
    ),
    Interface("vllm.v1.core.sched.scheduler:Scheduler.update_draft_token_ids", Use.REBOUND, "self draft_token_ids"),
    Interface(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler._update_after_schedule",
        Use.REBOUND,
        "self scheduler_output",
    ),
    Interface(
        "vllm.v1.core.sched.scheduler:Scheduler._update_request_with_output",
        Use.REBOUND,
        "self request new_token_ids is_stale",
    ),
    Interface("vllm.v1.core.sched.scheduler:Scheduler._update_request_as_session", Use.REBOUND, "self session update"),
    Interface("vllm.v1.core.sched.scheduler:Scheduler._handle_stopped_request", Use.REBOUND, "self request"),
    Interface(
        "vllm.v1.engine.async_llm:AsyncLLM._add_request",
        Use.REBOUND,
        "self request prompt parent_req index queue",
    ),
    Interface(
        "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
        Use.REBOUND,
        "self scheduler_output model_runner_output",
    ),
    Interface(
        "vllm.v1.core.sched.scheduler:Scheduler.make_spec_decoding_stats",
        Use.REBOUND,
        "self spec_decoding_stats num_draft_tokens num_accepted_tokens num_invalid_spec_tokens request_id",
    ),
    Interface(
        "vllm.v1.engine.utils:wait_for_engine_startup",
        Use.REBOUND,
        "handshake_socket core_engines parallel_config coordinated_dp cache_config launch",
    ),
    Interface(
        "vllm.v1.engine.output_processor:OutputProcessor.process_outputs",
        Use.REBOUND,
        "self engine_core_outputs engine_core_timestamp iteration_stats weight_version",
    ),
    Interface(
        "vllm.v1.engine.output_processor:OutputProcessor.update_scheduler_stats",
        Use.REBOUND,
        "self scheduler_stats",
    ),
    Interface(f"{_GPU}.async_utils:AsyncOutput.get_output", Use.REBOUND, "self"),
    Interface(
        "vllm.v1.spec_decode.metrics:SpecDecodingProm.__init__",
        Use.REBOUND,
        "self speculative_config labelnames per_engine_labelvalues is_diffusion",
    ),
    Interface(
        "vllm.v1.spec_decode.metrics:SpecDecodingProm.observe", Use.REBOUND, "self spec_decoding_stats engine_idx"
    ),
    Interface(f"{_GPU}.model_runner:GPUModelRunner.get_draft_model", Use.REBOUND, "self"),
    Interface("vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin.reset_lora_state", Use.REBOUND, "self"),
    Interface("vllm.v1.worker.gpu_worker:Worker.start_draft_weight_update", Use.REBOUND, "self"),
    Interface("vllm.v1.worker.gpu_worker:Worker.finish_weight_update", Use.REBOUND, "self"),
)

_OVERRIDDEN = (
    Interface(f"{_STATE}.__init__", Use.OVERRIDDEN, "self vllm_config model encoder_cache device"),
    Interface(f"{_STATE}.add_request", Use.OVERRIDDEN, "self req_index new_req_data"),
    Interface(f"{_STATE}.initialize_kv_cache", Use.OVERRIDDEN, "self kv_cache_config block_tables"),
    Interface(
        f"{_STATE}.prepare_attn",
        Use.OVERRIDDEN,
        "self input_batch cudagraph_mode block_tables slot_mappings attn_groups kv_cache_config for_capture ubatch_idx "
        "model_specific_attn_metadata",
    ),
    Interface(
        f"{_STATE}.preprocess_state",
        Use.OVERRIDDEN,
        "self input_batch block_tables kv_cache_config num_computed_tokens",
    ),
    Interface(f"{_STATE}.custom_sampler", Use.OVERRIDDEN, "self sampler"),
    Interface(f"{_STATE}.postprocess_state", Use.OVERRIDDEN, "self idx_mapping num_sampled num_computed_tokens"),
    Interface(
        f"{_GPU}.model_states.interface:ModelSpecificAttnMetadata.get_extra_attn_kwargs",
        Use.OVERRIDDEN,
        "self attn_metadata_builder num_reqs",
    ),
    Interface(f"{_SPECULATOR}.init_cudagraph_manager", Use.OVERRIDDEN, "self cudagraph_mode"),
    Interface(f"{_SPECULATOR}.capture", Use.OVERRIDDEN, "self"),
    Interface(
        f"{_SPECULATOR}.propose",
        Use.OVERRIDDEN,
        "self input_batch attn_metadata slot_mappings last_hidden_states aux_hidden_states num_sampled num_rejected "
        "last_sampled next_prefill_tokens temperature seeds dp_sync_state dummy_run skip_attn_for_dummy_run mm_inputs "
        "is_profile num_speculative_tokens",
    ),
    # Ours stands in for the rejection sampler without being one.
    Interface(
        f"{_GPU}.spec_decode.rejection_sampler:RejectionSampler.__call__",
        Use.OVERRIDDEN,
        "self logits input_batch draft_logits invalid_drafts",
    ),
    Interface(f"{_ATTENTION}:AttentionBackend.get_name", Use.OVERRIDDEN),
    Interface(f"{_ATTENTION}:AttentionBackend.get_impl_cls", Use.OVERRIDDEN),
    Interface(f"{_ATTENTION}:AttentionBackend.get_builder_cls", Use.OVERRIDDEN),
    Interface(f"{_ATTENTION}:AttentionBackend.get_supported_kernel_block_sizes", Use.OVERRIDDEN, "kv_cache_spec"),
    Interface(f"{_ATTENTION}:AttentionBackend.supported_kv_cache_layouts", Use.OVERRIDDEN, "cls"),
    Interface(
        f"{_ATTENTION}:AttentionMetadataBuilder.__init__",
        Use.OVERRIDDEN,
        "self kv_cache_spec layer_names vllm_config device",
    ),
    Interface(
        f"{_ATTENTION}:AttentionMetadataBuilder.build",
        Use.OVERRIDDEN,
        "self common_prefix_len common_attn_metadata fast_build",
    ),
    Interface(
        f"{_ATTENTION}:AttentionImpl.__init__",
        Use.OVERRIDDEN,
        "self num_heads head_size scale num_kv_heads alibi_slopes sliding_window kv_cache_dtype logits_soft_cap "
        "attn_type kv_sharing_target_layer_name",
    ),
    Interface(
        f"{_ATTENTION}:AttentionImpl.forward",
        Use.OVERRIDDEN,
        "self layer query key value kv_cache attn_metadata output output_scale output_block_scale",
    ),
)

_CALLED = (
    Interface(
        f"{_GPU}.sample.sampler:Sampler.sample",
        Use.CALLED,
        "logits expanded_idx_mapping idx_mapping idx_mapping_np pos input_ids expanded_local_pos "
        "seq_lens_upper_bound_np * return_logprobs",
    ),
    Interface(f"{_GPU}.sample.sampler:Sampler.get_logprobs_dims", Use.CALLED, "idx_mapping_np"),
    Interface(
        f"{_GPU}.sample.logprob:compute_topk_scores",
        Use.CALLED,
        "logits num_logprobs sampled_token_ids cu_num_logits * logprob_token_ids_state expanded_idx_mapping "
        "max_per_req_token_ids logits_mode",
    ),
    Interface(
        f"{_GPU}.input_batch:get_num_sampled_and_rejected",
        Use.CALLED,
        "num_sampled seq_lens cu_num_logits idx_mapping prefill_len",
    ),
    Interface(f"{_GPU}.metrics.logits:get_num_nans", Use.CALLED, "logits"),
    Interface(f"{_GPU}.spec_decode.rejection_sampler:get_max_chunk_logits", Use.CALLED, "vocab_size"),
    Interface(f"{_GPU}.async_utils:async_copy_to_np", Use.CALLED, "x"),
    Interface("vllm.v1.metrics.utils:create_metric_per_engine", Use.CALLED, "metric per_engine_labelvalues"),
    Interface("vllm.utils.torch_utils:canonicalize_singleton_dim_strides", Use.CALLED, "t"),
    Interface("vllm.utils.import_utils:resolve_obj_by_qualname", Use.CALLED, "qualname"),
    Interface("vllm.v1.kv_cache_interface:is_quantized_kv_cache", Use.CALLED, "kv_cache_dtype"),
    Interface("vllm.v1.attention.backends.registry:register_backend", Use.CALLED, "backend class_path"),
    Interface("vllm.config.utils:config", Use.CALLED, "cls"),
    Interface("vllm.config:set_current_vllm_config", Use.CALLED, "vllm_config"),
    Interface("vllm.utils.torch_utils:set_default_torch_dtype", Use.CALLED, "dtype"),
    Interface("vllm.logger:init_logger", Use.CALLED, "name"),
)

_USED = (
    Interface("vllm:__version__", Use.USED),
    Interface("vllm.envs:VLLM_USE_V2_MODEL_RUNNER", Use.USED),
    Interface("vllm.triton_utils:HAS_TRITON", Use.USED),
    Interface(
        "vllm.engine.arg_utils:EngineArgs",
        Use.USED,
        attributes="speculative_config spec_method spec_model spec_tokens attention_backend attention_config "
        "kv_transfer_config kv_offloading_size max_num_batched_tokens max_num_scheduled_tokens "
        "long_prefill_token_threshold",
    ),
    Interface(
        "vllm.config:SpeculativeConfig",
        Use.USED,
        attributes="method model num_speculative_tokens num_speculative_tokens_per_batch_size target_model_config "
        "target_parallel_config draft_model_config draft_parallel_config",
    ),
    Interface(
        "vllm.config:VllmConfig",
        Use.USED,
        attributes="speculative_config model_config scheduler_config compilation_config parallel_config",
    ),
    Interface("vllm.config.vllm:NgramGPUTypes", Use.USED),
    Interface("vllm.config.compilation:CUDAGraphMode", Use.USED),
    Interface("vllm.config.compilation:CompilationConfig", Use.USED, attributes="static_forward_context"),
    Interface("vllm.config.scheduler:SchedulerConfig", Use.USED, attributes="max_num_seqs async_scheduling"),
    Interface(
        "vllm.config.model:ModelConfig",
        Use.USED,
        attributes="model dtype runner_type is_encoder_decoder is_attention_free is_hybrid is_multimodal_model use_mla "
        "hf_text_config logits_processors get_vocab_size get_hidden_size get_sliding_window is_moe",
    ),
    Interface(
        "vllm.config.parallel:ParallelConfig",
        Use.USED,
        attributes="pipeline_parallel_size data_parallel_size decode_context_parallel_size use_ubatching "
        "prefill_context_parallel_size enable_batch_sharded_sampling distributed_executor_backend",
    ),
    Interface("vllm.config.model:PROCESSED_LOGPROBS_MODES", Use.USED),
    Interface("vllm.exceptions:VLLMValidationError", Use.USED, attributes="parameter"),
    Interface(
        "vllm.sampling_params:SamplingParams",
        Use.USED,
        attributes="extra_args bad_words_token_ids structured_outputs thinking_token_budget num_logprobs "
        "prompt_logprobs",
    ),
    Interface(f"{_OPENAI}.chat_completion.protocol:ChatCompletionRequest", Use.USED),
    Interface(f"{_OPENAI}.completion.protocol:CompletionRequest", Use.USED),
    Interface(f"{_OPENAI}.responses.protocol:ResponsesRequest", Use.USED),
    Interface("vllm.platforms.cpu:CpuPlatform", Use.USED),
    Interface("vllm.distributed.parallel_state:get_tp_group", Use.CALLED),
    Interface("vllm.distributed.parallel_state:get_pp_group", Use.CALLED),
    Interface("vllm.distributed.parallel_state:GroupCoordinator.all_gather", Use.CALLED, "input_ * dim"),
    Interface("vllm.distributed.parallel_state:GroupCoordinator.all_reduce", Use.CALLED, "input_"),
    Interface("vllm.distributed.parallel_state:GroupCoordinator.send_object", Use.CALLED, "obj * dst"),
    Interface("vllm.distributed.parallel_state:GroupCoordinator.recv_object", Use.CALLED, "* src"),
    Interface("vllm.distributed.parallel_state:GroupCoordinator.send", Use.CALLED, "tensor * dst"),
    Interface("vllm.distributed.parallel_state:GroupCoordinator.recv", Use.CALLED, "size dtype * src"),
    Interface(
        "vllm.distributed.parallel_state:GroupCoordinator",
        Use.USED,
        attributes="rank_in_group world_size is_first_rank is_last_rank cpu_group",
    ),
    Interface(
        "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding",
        Use.USED,
        attributes="shard_indices",
    ),
    Interface("vllm.model_executor.layers.vocab_parallel_embedding:ParallelLMHead", Use.USED),
    Interface("vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod", Use.USED),
    Interface(
        "vllm.v1.core.sched.scheduler:Scheduler",
        Use.USED,
        attributes="vllm_config requests log_stats num_spec_tokens waiting kv_holding_waiting kv_cache_manager "
        "max_model_len _enqueue_waiting_request",
    ),
    Interface("vllm.v1.core.sched.async_scheduler:AsyncScheduler", Use.USED),
    Interface(
        "vllm.v1.core.sched.output:SchedulerOutput",
        Use.USED,
        attributes="num_scheduled_tokens scheduled_spec_decode_tokens num_invalid_spec_tokens",
    ),
    Interface("vllm.v1.core.sched.output:NewRequestData", Use.USED, attributes="sampling_params"),
    Interface(
        "vllm.v1.request:Request",
        Use.USED,
        attributes="request_id sampling_params spec_token_ids num_computed_tokens num_tokens num_output_placeholders "
        "num_in_flight_tokens is_finished use_structured_output spec_decode_metrics",
    ),
    Interface("vllm.v1.request:StreamingUpdate", Use.USED, attributes="prompt_token_ids sampling_params"),
    Interface("vllm.v1.engine.async_llm:AsyncLLM", Use.USED, attributes="vllm_config model_config output_processor"),
    Interface(
        "vllm.v1.engine:EngineCoreRequest", Use.USED, attributes="request_id resumable prompt_token_ids sampling_params"
    ),
    Interface("vllm.v1.engine.output_processor:OutputProcessor", Use.USED, attributes="request_states"),
    Interface(
        "vllm.v1.engine.output_processor:RequestState",
        Use.USED,
        attributes="input_chunk_queue prompt_len detokenizer logprobs_processor",
    ),
    Interface("vllm.v1.engine.logprobs:LogprobsProcessor", Use.USED, attributes="num_logprobs num_prompt_logprobs"),
    Interface("vllm.v1.engine.output_processor:StreamingUpdate", Use.USED, attributes="prompt_token_ids"),
    Interface("vllm.v1.engine.detokenizer:IncrementalDetokenizer.num_output_tokens", Use.CALLED),
    Interface("vllm.v1.core.kv_cache_manager:KVCacheManager.cache_blocks", Use.CALLED, "request num_computed_tokens"),
    Interface("vllm.v1.engine:EngineCoreOutput", Use.USED, attributes="request_id new_token_ids"),
    Interface("vllm.v1.engine:EngineCoreOutputs", Use.USED, attributes="outputs"),
    Interface("vllm.v1.metrics.stats:SchedulerStats", Use.USED, attributes="spec_decoding_stats"),
    Interface(
        "vllm.v1.metrics.stats:RequestSpecDecodeMetrics",
        Use.USED,
        attributes="histogram per_step_accepted per_step_drafted",
    ),
    Interface("vllm.v1.outputs:DraftTokenIds", Use.USED, attributes="req_ids"),
    Interface("vllm.v1.outputs:ModelRunnerOutput", Use.USED, attributes="req_ids"),
    Interface("vllm.v1.outputs:LogprobsTensors", Use.USED),
    Interface(
        "vllm.v1.spec_decode.metrics:SpecDecodingStats",
        Use.USED,
        attributes="new num_spec_tokens num_drafts num_draft_tokens num_accepted_tokens num_accepted_tokens_per_pos "
        "num_draft_tokens_per_pos",
    ),
    Interface("vllm.v1.spec_decode.metrics:SpecDecodingProm", Use.USED, attributes="_counter_cls"),
    Interface(f"{_GPU}.async_utils:AsyncOutput", Use.USED, attributes="sampler_output"),
    Interface(f"{_GPU}.block_table:BlockTables", Use.USED),
    Interface(
        f"{_GPU}.input_batch:InputBatch",
        Use.USED,
        attributes="num_reqs idx_mapping idx_mapping_np expanded_idx_mapping expanded_local_pos num_draft_tokens "
        "num_draft_tokens_per_req seq_lens seq_lens_cpu_upper_bound input_ids positions logits_indices cu_num_logits "
        "cu_num_logits_np",
    ),
    Interface(
        f"{_GPU}.cudagraph_utils:BatchExecutionDescriptor",
        Use.USED,
        attributes="cg_mode num_tokens",
    ),
    Interface(
        f"{_GPU}.cudagraph_utils:CudaGraphManager",
        Use.USED,
        attributes="__init__ capture dispatch run_fullgraph",
    ),
    Interface(f"{_GPU}.mm.encoder_cache:EncoderCache", Use.USED),
    Interface(f"{_GPU}.model_states.default:DefaultModelState", Use.USED, attributes="vllm_config"),
    Interface(f"{_GPU}.model_states.interface:ModelSpecificAttnMetadata", Use.USED),
    Interface(
        f"{_GPU}.sample.output:SamplerOutput",
        Use.USED,
        attributes="sampled_token_ids logprobs_tensors num_nans num_sampled num_rejected",
    ),
    Interface(
        f"{_GPU}.sample.sampler:Sampler",
        Use.USED,
        attributes="compute_nans logprobs_mode logprob_token_ids_state req_states logits_processors trace_replay_state "
        "return_sampling_mask",
    ),
    Interface(f"{_GPU}.sample.logit_bias:LogitBiasState", Use.USED),
    Interface(
        f"{_GPU}.sample.penalties:PenaltiesState",
        Use.USED,
        attributes="use_penalty repetition_penalty frequency_penalty presence_penalty prompt_bin_mask "
        "output_bin_counts",
    ),
    Interface(
        f"{_GPU}.sample.bad_words:BadWordsState",
        Use.USED,
        attributes="req_states bad_word_token_ids bad_word_offsets num_bad_words",
    ),
    Interface(
        f"{_GPU}.sample.logits_processor:LogitsContext",
        Use.USED,
        attributes="idx_mapping_np expanded_idx_mapping",
    ),
    Interface(
        f"{_GPU}.sample.logits_processor:LogitsProcessor",
        Use.USED,
        attributes="add_request apply_staged_writes apply",
    ),
    Interface(f"{_SPECULATOR}", Use.USED),
    # What the runner reads of a speculator without asking what it is.
    Interface(
        f"{_GPU}.spec_decode.speculator:DraftModelSpeculator",
        Use.USED,
        attributes="supports_mm_inputs draft_logits",
    ),
    Interface(f"{_GPU}.states:RequestState", Use.USED, attributes="prefill_len"),
    Interface("vllm.platforms:current_platform", Use.USED),
    Interface("vllm.model_executor.layers.linear:UnquantizedLinearMethod", Use.USED),
    Interface("vllm.model_executor.layers.quantization.compressed_tensors:schemes", Use.USED),
    Interface("vllm.v1.worker.utils:AttentionGroup", Use.USED),
    # It gets the method `reload_drafter`.
    Interface(
        "vllm.v1.worker.gpu_worker:Worker",
        Use.USED,
        attributes="model_runner get_model get_draft_model _weight_update_is_draft",
    ),
    Interface(
        f"{_ATTENTION}:AttentionBackend",
        Use.USED,
        attributes="forward_includes_kv_cache_update supported_dtypes",
    ),
    Interface(f"{_ATTENTION}:AttentionImpl", Use.USED),
    Interface(f"{_ATTENTION}:AttentionLayer", Use.USED),
    Interface(f"{_ATTENTION}:AttentionMetadata", Use.USED),
    Interface(f"{_ATTENTION}:AttentionMetadataBuilder", Use.USED),
    Interface(f"{_ATTENTION}:AttentionType", Use.USED, attributes="DECODER"),
    Interface(
        f"{_ATTENTION}:CommonAttentionMetadata",
        Use.USED,
        attributes="num_reqs num_actual_tokens query_start_loc query_start_loc_cpu max_query_len max_seq_len seq_lens "
        "seq_lens_cpu_upper_bound block_table_tensor slot_mapping causal positions is_prefilling req_idx replace "
        "_num_computed_tokens_cache _token_to_req_indices_cache",
    ),
    Interface(f"{_ATTENTION}:AttentionCGSupport", Use.USED, attributes="UNIFORM_BATCH"),
    Interface(f"{_ATTENTION}:MultipleOf", Use.USED),
    Interface(
        f"{_BACKENDS}.flash_attn:FlashAttentionBackend",
        Use.USED,
        attributes="supports_head_size supports_combination",
    ),
    Interface(f"{_BACKENDS}.flash_attn:FlashAttentionImpl", Use.USED, attributes="supports_quant_query_input"),
    Interface(f"{_BACKENDS}.flash_attn:FlashAttentionMetadataBuilder", Use.USED),
    Interface(
        f"{_BACKENDS}.flash_attn:FlashAttentionMetadata",
        Use.USED,
        attributes="seq_lens max_seq_len scheduler_metadata max_num_splits",
    ),
    Interface(f"{_BACKENDS}.triton_attn:TritonAttentionBackend", Use.USED, attributes="supports_head_size"),
    Interface(f"{_BACKENDS}.triton_attn:TritonAttentionImpl", Use.USED, attributes="do_kv_cache_update"),
    Interface(f"{_BACKENDS}.triton_attn:TritonAttentionMetadataBuilder", Use.USED),
    Interface(
        "vllm.v1.attention.backends.registry:AttentionBackendEnum",
        Use.USED,
        attributes="CUSTOM is_overridden get_path",
    ),
    Interface("vllm.v1.kv_cache_interface:AttentionSpec", Use.USED, attributes="block_size"),
    Interface("vllm.v1.kv_cache_interface:KVCacheConfig", Use.USED, attributes="kv_cache_groups"),
    Interface("vllm.v1.kv_cache_interface:KVCacheLayout", Use.USED, attributes="LBHNC"),
)

INTERFACES: tuple[Interface, ...] = (*_REBOUND, *_OVERRIDDEN, *_CALLED, *_USED)


def rebound(target: str) -> Interface:
    """The entry of a rebinding; KeyError when it is not in the list."""
    return {interface.target: interface for interface in _REBOUND}[target]
