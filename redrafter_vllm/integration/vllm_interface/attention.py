# SPDX-License-Identifier: Apache-2.0
"""Names of vLLM that tree attention uses, and those by which vLLM chooses its backend."""

from redrafter_vllm.integration.vllm_interface.entry import Use, VllmName

_ATTENTION = "vllm.v1.attention.backend"
_BACKENDS = "vllm.v1.attention.backends"

NAMES = (
    VllmName(
        "vllm.platforms.cpu:CpuPlatform.get_attn_backend_cls",
        Use.REBOUND,
        "cls selected_backend attn_selector_config num_heads",
    ),
    VllmName(
        "vllm.platforms.cuda:CudaPlatformBase.get_attn_backend_cls",
        Use.REBOUND,
        "cls selected_backend attn_selector_config num_heads",
    ),
    VllmName(f"{_ATTENTION}:AttentionBackend.get_name", Use.OVERRIDDEN),
    VllmName(f"{_ATTENTION}:AttentionBackend.get_impl_cls", Use.OVERRIDDEN),
    VllmName(f"{_ATTENTION}:AttentionBackend.get_builder_cls", Use.OVERRIDDEN),
    VllmName(f"{_ATTENTION}:AttentionBackend.get_supported_kernel_block_sizes", Use.OVERRIDDEN, "kv_cache_spec"),
    VllmName(
        f"{_ATTENTION}:AttentionMetadataBuilder.__init__",
        Use.OVERRIDDEN,
        "self kv_cache_spec layer_names vllm_config device",
    ),
    VllmName(
        f"{_ATTENTION}:AttentionMetadataBuilder.build",
        Use.OVERRIDDEN,
        "self common_prefix_len common_attn_metadata fast_build",
    ),
    VllmName(
        f"{_ATTENTION}:AttentionMetadataBuilder.get_varlen_cudagraph_max_query_len",
        Use.OVERRIDDEN,
        "cls vllm_config kv_cache_spec",
    ),
    VllmName(f"{_ATTENTION}:AttentionBackend.supports_device_cpu_query_lens_mismatch", Use.OVERRIDDEN, "cls"),
    VllmName(
        f"{_ATTENTION}:AttentionImpl.__init__",
        Use.OVERRIDDEN,
        "self num_heads head_size scale num_kv_heads alibi_slopes sliding_window kv_cache_dtype logits_soft_cap "
        "attn_type kv_sharing_target_layer_name",
    ),
    VllmName(
        f"{_ATTENTION}:AttentionImpl.forward",
        Use.OVERRIDDEN,
        "self layer query key value kv_cache attn_metadata output output_scale output_block_scale",
    ),
    VllmName("vllm.utils.torch_utils:canonicalize_singleton_dim_strides", Use.CALLED, "t"),
    VllmName("vllm.utils.import_utils:resolve_obj_by_qualname", Use.CALLED, "qualname"),
    VllmName("vllm.v1.kv_cache_interface:is_quantized_kv_cache", Use.CALLED, "kv_cache_dtype"),
    VllmName("vllm.v1.attention.backends.registry:register_backend", Use.CALLED, "backend class_path"),
    VllmName("vllm.platforms.cpu:CpuPlatform", Use.USED),
    VllmName("vllm.platforms:current_platform", Use.USED),
    VllmName(
        f"{_ATTENTION}:AttentionBackend",
        Use.USED,
        attributes="forward_includes_kv_cache_update supported_dtypes",
    ),
    VllmName(f"{_ATTENTION}:AttentionImpl", Use.USED),
    VllmName(f"{_ATTENTION}:AttentionLayer", Use.USED),
    VllmName(f"{_ATTENTION}:AttentionMetadata", Use.USED),
    VllmName(f"{_ATTENTION}:AttentionMetadataBuilder", Use.USED),
    VllmName(f"{_ATTENTION}:AttentionType", Use.USED, attributes="DECODER"),
    VllmName(
        f"{_ATTENTION}:CommonAttentionMetadata",
        Use.USED,
        attributes="num_reqs num_actual_tokens query_start_loc query_start_loc_cpu max_query_len max_seq_len seq_lens "
        "seq_lens_cpu_upper_bound block_table_tensor slot_mapping causal positions is_prefilling req_idx replace "
        "_num_computed_tokens_cache _token_to_req_indices_cache",
    ),
    VllmName(f"{_ATTENTION}:AttentionCGSupport", Use.USED, attributes="UNIFORM_BATCH"),
    VllmName(f"{_ATTENTION}:MultipleOf", Use.USED),
    VllmName(
        f"{_BACKENDS}.flash_attn:FlashAttentionBackend",
        Use.USED,
        attributes="supports_head_size supports_combination",
    ),
    VllmName(f"{_BACKENDS}.flash_attn:FlashAttentionImpl", Use.USED, attributes="supports_quant_query_input"),
    VllmName(f"{_BACKENDS}.flash_attn:FlashAttentionMetadataBuilder", Use.USED),
    VllmName(
        f"{_BACKENDS}.flash_attn:FlashAttentionMetadata",
        Use.USED,
        attributes="seq_lens max_seq_len scheduler_metadata max_num_splits",
    ),
    VllmName(f"{_BACKENDS}.cpu_attn:CPUAttentionBackend", Use.USED),
    VllmName(f"{_BACKENDS}.cpu_attn:CPUAttentionBackendImpl", Use.USED, attributes="do_kv_cache_update"),
    VllmName(
        f"{_BACKENDS}.cpu_attn:CPUAttentionMetadataBuilder",
        Use.USED,
        attributes="isa block_size head_dim _set_isa_to_layers",
    ),
    VllmName(f"{_BACKENDS}.triton_attn:TritonAttentionBackend", Use.USED, attributes="supports_head_size"),
    VllmName(f"{_BACKENDS}.triton_attn:TritonAttentionImpl", Use.USED, attributes="do_kv_cache_update"),
    VllmName(f"{_BACKENDS}.triton_attn:TritonAttentionMetadataBuilder", Use.USED),
    VllmName(
        "vllm.v1.attention.backends.registry:AttentionBackendEnum",
        Use.USED,
        attributes="CUSTOM is_overridden get_path",
    ),
    VllmName("vllm.v1.kv_cache_interface:AttentionSpec", Use.USED, attributes="block_size"),
    VllmName("vllm.v1.kv_cache_interface:KVCacheConfig", Use.USED, attributes="kv_cache_groups"),
)
