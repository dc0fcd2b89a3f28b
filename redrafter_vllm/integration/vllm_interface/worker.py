# SPDX-License-Identifier: Apache-2.0
"""Names of vLLM that its workers use, except those of attention."""

from redrafter_vllm.integration.vllm_interface.entry import Use, VllmName

_GPU = "vllm.v1.worker.gpu"
_STATE = f"{_GPU}.model_states.default:DefaultModelState"
_RUNNER = f"{_GPU}.model_runner:GPUModelRunner"
_LORA_MIXIN = "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin"
_SPECULATOR = f"{_GPU}.spec_decode.speculator:BaseSpeculator"
_MANAGER = f"{_GPU}.spec_decode.adaptive_verification:AdaptiveVerificationManager"

NAMES = (
    VllmName(f"{_GPU}.model_runner:init_speculator", Use.REBOUND, "vllm_config device req_states"),
    VllmName("vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm", Use.REBOUND, "layer remove_weight"),
    VllmName(f"{_RUNNER}.load_model", Use.OVERRIDDEN, "self load_dummy_weights *args model **kwargs"),
    VllmName(f"{_RUNNER}.get_draft_model", Use.OVERRIDDEN, "self"),
    VllmName(f"{_RUNNER}.sample_tokens", Use.OVERRIDDEN, "self grammar_output"),
    VllmName(f"{_LORA_MIXIN}.reset_lora_state", Use.OVERRIDDEN, "self"),
    VllmName(
        f"{_LORA_MIXIN}._set_active_loras",
        Use.OVERRIDDEN,
        "self prompt_lora_mapping token_lora_mapping lora_requests mapping_type",
    ),
    VllmName(
        f"{_GPU}.sample.prompt_logprob:PromptLogprobsWorker.compute_prompt_logprobs",
        Use.OVERRIDDEN,
        "self logits_fn hidden_states input_batch all_token_ids num_computed_tokens prompt_lens",
    ),
    VllmName("vllm.v1.worker.gpu_worker:Worker._make_model_runner", Use.OVERRIDDEN, "self"),
    VllmName("vllm.v1.worker.gpu_worker:Worker.start_draft_weight_update", Use.OVERRIDDEN, "self"),
    VllmName("vllm.v1.worker.gpu_worker:Worker.finish_weight_update", Use.OVERRIDDEN, "self"),
    VllmName("vllm.v1.worker.cpu_worker:CPUWorker.init_device", Use.OVERRIDDEN, "self"),
    VllmName("vllm.v1.worker.cpu_worker:CPUWorker.compile_or_warm_up_model", Use.OVERRIDDEN, "self"),
    VllmName(f"{_STATE}.__init__", Use.OVERRIDDEN, "self vllm_config model encoder_cache device"),
    VllmName(f"{_STATE}.add_request", Use.OVERRIDDEN, "self req_index new_req_data"),
    VllmName(f"{_STATE}.initialize_kv_cache", Use.OVERRIDDEN, "self kv_cache_config block_tables"),
    VllmName(
        f"{_STATE}.prepare_attn",
        Use.OVERRIDDEN,
        "self input_batch cudagraph_mode block_tables slot_mappings attn_groups kv_cache_config for_capture ubatch_idx "
        "model_specific_attn_metadata",
    ),
    VllmName(
        f"{_STATE}.preprocess_state",
        Use.OVERRIDDEN,
        "self input_batch block_tables kv_cache_config num_computed_tokens",
    ),
    VllmName(f"{_STATE}.custom_sampler", Use.OVERRIDDEN, "self sampler"),
    VllmName(f"{_STATE}.postprocess_state", Use.OVERRIDDEN, "self idx_mapping num_sampled num_computed_tokens"),
    VllmName(
        f"{_GPU}.model_states.interface:ModelSpecificAttnMetadata.get_extra_attn_kwargs",
        Use.OVERRIDDEN,
        "self attn_metadata_builder num_reqs",
    ),
    VllmName(f"{_SPECULATOR}.init_cudagraph_manager", Use.OVERRIDDEN, "self cudagraph_mode"),
    VllmName(f"{_SPECULATOR}.capture", Use.OVERRIDDEN, "self"),
    VllmName(
        f"{_SPECULATOR}.propose",
        Use.OVERRIDDEN,
        "self input_batch attn_metadata slot_mappings last_hidden_states aux_hidden_states num_sampled num_rejected "
        "last_sampled next_prefill_tokens temperature seeds dp_sync_state dummy_run skip_attn_for_dummy_run mm_inputs "
        "is_profile num_speculative_tokens",
    ),
    VllmName(f"{_GPU}.cudagraph_utils:CudaGraphManager._capture_stream", Use.OVERRIDDEN, "self desc"),
    VllmName(f"{_GPU}.cudagraph_utils:CudaGraphManager.release_graphs", Use.OVERRIDDEN, "self"),
    VllmName(f"{_MANAGER}.set_initial_cost_curves", Use.OVERRIDDEN, "self samples"),
    VllmName(f"{_MANAGER}.set_cost_curves", Use.OVERRIDDEN, "self draft_curve verify_curve"),
    VllmName(f"{_MANAGER}.add_request", Use.OVERRIDDEN, "self req_idx"),
    VllmName(f"{_MANAGER}.get_num_tokens", Use.OVERRIDDEN, "self num_tokens_per_req draft_tokens"),
    VllmName(f"{_MANAGER}.record_confidences", Use.OVERRIDDEN, "self confidence_probs input_batch"),
    # Our sampler replaces the rejection sampler without deriving from it.
    VllmName(
        f"{_GPU}.spec_decode.rejection_sampler:RejectionSampler.__call__",
        Use.OVERRIDDEN,
        "self logits input_batch draft_logits invalid_drafts",
    ),
    VllmName(
        f"{_GPU}.sample.sampler:Sampler.sample",
        Use.CALLED,
        "logits expanded_idx_mapping idx_mapping idx_mapping_np pos input_ids expanded_local_pos "
        "seq_lens_upper_bound_np * return_logprobs",
    ),
    VllmName(f"{_GPU}.sample.sampler:Sampler.get_logprobs_dims", Use.CALLED, "idx_mapping_np"),
    VllmName(
        f"{_GPU}.sample.logprob:compute_topk_scores",
        Use.CALLED,
        "logits num_logprobs sampled_token_ids cu_num_logits * logprob_token_ids_state expanded_idx_mapping "
        "max_per_req_token_ids logits_mode",
    ),
    VllmName(
        f"{_GPU}.input_batch:get_num_sampled_and_rejected",
        Use.CALLED,
        "num_sampled seq_lens cu_num_logits idx_mapping prefill_len",
    ),
    VllmName(f"{_GPU}.model_runner:sort_batch_req_ids", Use.CALLED, "num_tokens_per_req draft_tokens decode_query_len"),
    VllmName(f"{_GPU}.metrics.logits:get_num_nans", Use.CALLED, "logits"),
    VllmName(
        f"{_GPU}.spec_decode.adaptive_verification:_assign_draft_token_budget",
        Use.CALLED,
        "confidence_probs idx_mapping capacities draft_budget num_steps",
    ),
    VllmName(f"{_MANAGER}.__init__", Use.CALLED, "req_states query_start_loc num_bonus_tokens max_total_logits"),
    VllmName(f"{_GPU}.attn_utils:get_query_lens_mismatch_unsupported_backend", Use.CALLED, "attn_groups"),
    VllmName(
        f"{_GPU}.attn_utils:get_varlen_cudagraph_unsupported_backend",
        Use.CALLED,
        "attn_groups vllm_config max_query_len",
    ),
    VllmName(f"{_GPU}.spec_decode.rejection_sampler:get_max_chunk_logits", Use.CALLED, "vocab_size"),
    VllmName(f"{_GPU}.async_utils:async_copy_to_np", Use.CALLED, "x"),
    VllmName(f"{_GPU}.async_utils:stream", Use.CALLED, "to_stream from_stream"),
    VllmName("vllm.config:set_current_vllm_config", Use.CALLED, "vllm_config"),
    VllmName("vllm.config:get_current_vllm_config_or_none", Use.CALLED, ""),
    VllmName("vllm.utils.torch_utils:set_default_torch_dtype", Use.CALLED, "dtype"),
    VllmName("vllm.utils.torch_utils:set_random_seed", Use.CALLED, "seed data_parallel_index"),
    VllmName("vllm.distributed.parallel_state:get_tp_group", Use.CALLED),
    VllmName("vllm.distributed.parallel_state:get_pp_group", Use.CALLED),
    VllmName("vllm.distributed.parallel_state:GroupCoordinator.all_gather", Use.CALLED, "input_ * dim"),
    VllmName("vllm.distributed.parallel_state:GroupCoordinator.all_reduce", Use.CALLED, "input_"),
    VllmName("vllm.distributed.parallel_state:GroupCoordinator.send_object", Use.CALLED, "obj * dst"),
    VllmName("vllm.distributed.parallel_state:GroupCoordinator.recv_object", Use.CALLED, "* src"),
    VllmName("vllm.distributed.parallel_state:GroupCoordinator.send", Use.CALLED, "tensor * dst"),
    VllmName("vllm.distributed.parallel_state:GroupCoordinator.recv", Use.CALLED, "size dtype * src"),
    VllmName("vllm.config.compilation:CUDAGraphMode", Use.USED),
    VllmName(
        "vllm.config.compilation:CompilationConfig",
        Use.USED,
        attributes="static_forward_context cudagraph_mode cudagraph_capture_sizes",
    ),
    VllmName("vllm.config.model:PROCESSED_LOGPROBS_MODES", Use.USED),
    VllmName(
        "vllm.distributed.parallel_state:GroupCoordinator",
        Use.USED,
        attributes="rank_in_group world_size is_first_rank is_last_rank cpu_group",
    ),
    VllmName(
        "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding",
        Use.USED,
        attributes="shard_indices",
    ),
    VllmName("vllm.model_executor.layers.vocab_parallel_embedding:ParallelLMHead", Use.USED),
    VllmName("vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod", Use.USED),
    VllmName("vllm.v1.outputs:LogprobsTensors", Use.USED, attributes="cu_num_generated_tokens_tensor"),
    VllmName("vllm.v1.utils:CpuGpuBuffer", Use.USED, attributes="np gpu copy_to_cpu"),
    VllmName(f"{_GPU}.async_utils:AsyncOutput", Use.USED, attributes="sampler_output model_runner_output"),
    VllmName(f"{_GPU}.async_utils:StepTimingSample", Use.USED),
    VllmName(f"{_GPU}.block_table:BlockTables", Use.USED),
    VllmName(
        f"{_GPU}.input_batch:InputBatch",
        Use.USED,
        attributes="num_reqs idx_mapping idx_mapping_np expanded_idx_mapping expanded_local_pos num_draft_tokens "
        "num_tokens has_prefill seq_lens seq_lens_cpu_upper_bound input_ids positions logits_indices cu_num_logits "
        "cu_num_logits_np num_scheduled_tokens",
    ),
    VllmName(
        f"{_GPU}.cudagraph_utils:BatchExecutionDescriptor",
        Use.USED,
        attributes="cg_mode num_tokens",
    ),
    VllmName(
        f"{_GPU}.cudagraph_utils:CudaGraphManager",
        Use.USED,
        attributes="__init__ capture dispatch run_fullgraph",
    ),
    VllmName(f"{_GPU}.input_batch:InputBuffers", Use.USED, attributes="query_start_loc"),
    VllmName(f"{_GPU}.mm.encoder_cache:EncoderCache", Use.USED),
    VllmName(
        f"{_GPU}.model_states.default:DefaultModelState",
        Use.USED,
        attributes="vllm_config num_new_sampled_tokens_per_step",
    ),
    VllmName(f"{_GPU}.model_states.interface:ModelSpecificAttnMetadata", Use.USED),
    VllmName(
        f"{_GPU}.sample.output:SamplerOutput",
        Use.USED,
        attributes="sampled_token_ids logprobs_tensors num_nans num_sampled num_rejected",
    ),
    VllmName(
        f"{_GPU}.sample.sampler:Sampler",
        Use.USED,
        attributes="compute_nans logprobs_mode logprob_token_ids_state req_states logits_processors trace_replay_state "
        "return_sampling_mask",
    ),
    VllmName(f"{_GPU}.sample.logit_bias:LogitBiasState", Use.USED),
    VllmName(
        f"{_GPU}.sample.penalties:PenaltiesState",
        Use.USED,
        attributes="use_penalty repetition_penalty frequency_penalty presence_penalty prompt_bin_mask "
        "output_bin_counts",
    ),
    VllmName(
        f"{_GPU}.sample.bad_words:BadWordsState",
        Use.USED,
        attributes="req_states bad_word_token_ids bad_word_offsets num_bad_words",
    ),
    VllmName(
        f"{_GPU}.sample.logits_processor:LogitsContext",
        Use.USED,
        attributes="idx_mapping_np expanded_idx_mapping",
    ),
    VllmName(
        f"{_GPU}.sample.logits_processor:LogitsProcessor",
        Use.USED,
        attributes="add_request apply_staged_writes apply",
    ),
    VllmName(f"{_SPECULATOR}", Use.USED),
    # What the runner reads of a speculator without asking what it is.
    VllmName(
        f"{_GPU}.spec_decode.speculator:DraftModelSpeculator",
        Use.USED,
        attributes="supports_mm_inputs draft_logits draft_token_confidence_probs",
    ),
    # The budget that the last two methods of a step read, and the estimates on both sides.
    VllmName(
        f"{_MANAGER}",
        Use.USED,
        attributes="req_states num_speculative_steps cost_tables batches_to_profile "
        "compact_batch reallocate_drafts _batch_budget _confidence_probs _stale_confidences _stale_idx "
        "_pending_resets _max_total_logits _copy_stream",
    ),
    VllmName(
        f"{_GPU}.states:RequestState",
        Use.USED,
        attributes="prefill_len req_id_to_index num_computed_tokens_np all_token_ids total_len prompt_len",
    ),
    VllmName("vllm.model_executor.layers.linear:UnquantizedLinearMethod", Use.USED),
    VllmName("vllm.model_executor.layers.quantization.compressed_tensors:schemes", Use.USED),
    VllmName("vllm.v1.worker.utils:AttentionGroup", Use.USED),
    VllmName(
        "vllm.v1.worker.gpu_worker:Worker",
        Use.USED,
        attributes="vllm_config model_config parallel_config device model_runner get_model get_draft_model "
        "use_v2_model_runner _weight_update_is_draft",
    ),
    VllmName("vllm.v1.worker.cpu_worker:CPUWorker", Use.USED),
    VllmName("vllm.v1.worker.cpu.model_runner:CPUModelRunner", Use.USED),
    VllmName(
        _RUNNER,
        Use.USED,
        attributes="speculator model_state is_last_pp_rank prompt_logprobs_worker max_num_reqs device model_config "
        "adaptive_verification attn_groups req_states input_buffers vocab_size vllm_config",
    ),
    VllmName(f"{_GPU}.model_states:resolve_model_state_cls", Use.USED),
    VllmName(f"{_GPU}.sample.prompt_logprob:PromptLogprobsWorker", Use.USED),
)
