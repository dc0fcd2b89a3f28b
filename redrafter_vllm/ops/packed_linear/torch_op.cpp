// SPDX-License-Identifier: Apache-2.0
// The kernel as an operator of torch, `redrafter::packed_linear`, which `__init__.py` declares. A call from a compiled
// graph costs less than half of one that goes through Python, and a step has a hundred.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "native.cpp"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const uint16_t* bits(const Tensor& x) { return static_cast<const uint16_t*>(x.data_ptr()); }

Tensor packed_linear_op(const Tensor& given, const Tensor& packed, const std::optional<Tensor>& bias, int64_t size) {
  const int64_t inputs = given.size(given.dim() - 1), pairs = packed.size(1);
  STD_TORCH_CHECK(given.scalar_type() == ScalarType::BFloat16 && packed.scalar_type() == ScalarType::BFloat16 &&
                      packed.is_contiguous(), "packed_linear takes bfloat16 and weights as `pack` returns them");
  STD_TORCH_CHECK(inputs == 2 * pairs && inputs > 0 && size <= PANEL * packed.size(0), "packed_linear: the sizes do not agree");
  STD_TORCH_CHECK(!bias || (bias->scalar_type() == ScalarType::BFloat16 && bias->numel() == size &&
                            bias->is_contiguous()), "packed_linear: the bias has another type or size");
  const Tensor x = given.dim() == 2 && given.stride(1) == 1
                       ? given
                       : torch::stable::contiguous(torch::stable::reshape(given, {given.numel() / inputs, inputs}));
  std::vector<int64_t> shape(given.sizes().begin(), given.sizes().end());
  shape.back() = size;
  Tensor result = torch::stable::new_empty(given, shape);
  packed_linear(bits(x), bits(packed), bias ? bits(*bias) : nullptr, static_cast<uint16_t*>(result.data_ptr()),
                x.size(0), x.stride(0), pairs, size);
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(redrafter, CPU, library) { library.impl("packed_linear", TORCH_BOX(&packed_linear_op)); }

}  // namespace
