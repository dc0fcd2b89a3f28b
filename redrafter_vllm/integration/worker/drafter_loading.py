# SPDX-License-Identifier: Apache-2.0
"""The drafter as serving uses it: packed, with vLLM's own matrix products, and 8-bit weights as an option.

Quantised products are those of vLLM's compressed-tensors schemes, which choose the kernel for the device. On CUDA they
are weight-only (such as Marlin). vLLM's INT8 products for a CPU also round each activation row to INT8.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype

from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.model.drafter import Drafter, copy_tensors
from redrafter_vllm.model.packed import Linear, PackedDrafter
from redrafter_vllm.model.quantization import CODE_TYPES, quantize_rows


def pack_drafter(drafter: Drafter, drafting: DraftingConfig, vllm_config: VllmConfig) -> PackedDrafter:
    """`drafter`, in the target's type, packed for the device that it is on."""
    weight = drafter.output.weight
    with set_current_vllm_config(vllm_config), set_default_torch_dtype(weight.dtype), weight.device:
        return PackedDrafter(
            drafter, linear_maker(drafting.drafter_quantization), project_embedding=drafting.project_embedding
        )


class LayerProduct:
    """A product by a layer of vLLM and its method, for any leading shape; `size` is the number of outputs.

    The layer gets matrices of at least one row. Not every kernel of vLLM accepts other inputs: those for AMX divide by
    the number of rows, and INT8's refuses 3 dimensions.
    """

    def __init__(self, layer: Any, apply: Callable[[Any, Tensor, Tensor | None], Tensor], size: int) -> None:
        self.layer, self.apply, self.size = layer, apply, size

    def __call__(self, x: Tensor, /) -> Tensor:
        # In the first state all beams are views of one row, for which oneDNN would need half a second.
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        found = self.apply(self.layer, rows, self.layer.bias) if rows.shape[0] else rows.new_empty(0, self.size)
        return found.view(*x.shape[:-1], self.size)

    def tensors(self) -> dict[str, Tensor]:
        found = (*self.layer.named_parameters(), *self.layer.named_buffers())
        return {name: tensor.detach() for name, tensor in found}

    def adopt(self, other: "LayerProduct", /) -> None:
        if current_platform.is_cpu():
            # CPU kernels keep weights in a layout that no tensor has. No graph was recorded there.
            self.layer, self.apply = other.layer, other.apply
        else:
            copy_tensors(self.tensors(), other.tensors())


def linear_maker(quantization: str | None) -> Callable[[Tensor, Tensor | None], Linear]:
    """A function that makes a drafter's products, on the device of its weights; the default dtype must be theirs.

    Args:
        quantization: A value of the option `drafter_quantization`.
    """
    return _unquantized_linear if quantization in (None, "none") else partial(_quantized_linear, quantization)


def _unquantized_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """vLLM's plain product; on a CPU, with the weight in oneDNN's layout."""
    layer, method = _layer(bias), UnquantizedLinearMethod()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    method.process_weights_after_loading(layer)
    return LayerProduct(layer, method.apply, weight.shape[0])


def _quantized_linear(quantization: str, weight: Tensor, bias: Tensor | None) -> Linear:
    size, columns = weight.shape
    layer, scheme = _layer(bias), _scheme(quantization, weight.dtype)
    scheme.create_weights(
        layer=layer,
        input_size=columns,
        input_size_per_partition=columns,
        output_size=size,
        output_partition_sizes=[size],
        params_dtype=weight.dtype,
        weight_loader=_no_loader,
    )
    _fill(layer, *quantize_rows(weight, CODE_TYPES[quantization], _largest_code()))
    scheme.process_weights_after_loading(layer)
    return LayerProduct(layer, scheme.apply_weights, size)


def _layer(bias: Tensor | None) -> Any:
    layer = nn.Module()
    # A kernel may reorder the bias along with the weight.
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone(), requires_grad=False))
    return layer


def _scheme(quantization: str, dtype: torch.dtype) -> Any:
    from compressed_tensors.quantization import (  # type: ignore[import-untyped]
        QuantizationArgs,
        QuantizationStrategy,
        QuantizationType,
    )
    from vllm.model_executor.layers.quantization.compressed_tensors import schemes

    channel = QuantizationStrategy.CHANNEL
    if quantization == "fp8":
        numbers = QuantizationArgs(num_bits=8, type=QuantizationType.FLOAT, strategy=channel)
        return schemes.CompressedTensorsW8A16Fp8(numbers, is_static_input_scheme=False)
    if current_platform.is_cpu():
        # With AMX, vLLM has a special kernel for inputs rounded symmetrically. It refuses fp32, and fp16 ends the
        # process; inputs rounded between their extremes always go to oneDNN, which is as fast and as exact.
        symmetric = dtype == torch.bfloat16
        return schemes.CompressedTensorsW8A8Int8(channel, is_static_input_scheme=False, input_symmetric=symmetric)
    return schemes.CompressedTensorsWNA16(strategy=channel.value, num_bits=8)


def _largest_code() -> int | None:
    """Bound on INT8 codes; None for no bound.

    On x86 without VNNI oneDNN adds two products with a byte in 16 bits, where 2 · 255 · 64 is the largest that fits.
    """
    if not current_platform.is_cpu():
        return None
    capabilities = torch.cpu.get_capabilities()
    has_vnni = capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")
    return 64 if capabilities.get("architecture") == "x86_64" and not has_vnni else None


def _fill(layer: Any, codes: Tensor, scales: Tensor) -> None:
    """Copy codes and scales into the parameters that the scheme has created."""
    if hasattr(layer, "weight_packed"):
        from compressed_tensors.compressors import pack_to_int32  # type: ignore[import-untyped]

        layer.weight_packed.data.copy_(pack_to_int32(codes, 8))
    else:
        layer.weight.data.copy_(codes)
    layer.weight_scale.data.copy_(scales)


def _no_loader(*_: Any, **__: Any) -> None:
    raise AssertionError("the drafter's weights are not loaded by vLLM")
