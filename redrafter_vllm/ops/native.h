// SPDX-License-Identifier: Apache-2.0
// What the C++ kernels of several ops share.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct Bf16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(Bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// The exponential of x <= 0, to two units in the last place: the compiler makes vectors of it, which it cannot of expf.
inline float exp_of(float x) {
  x = x > -87.0f ? x : -87.0f;
  const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float power = std::fma(x, 1.44269504f, rounder) - rounder;
  const float rest = std::fma(power, 2.12194440e-4f, std::fma(power, -0.693359375f, x));  // ln 2 in two parts
  float sum = 1.9875691500e-4f;
  sum = std::fma(sum, rest, 1.3981999507e-3f);
  sum = std::fma(sum, rest, 8.3334519073e-3f);
  sum = std::fma(sum, rest, 4.1665795894e-2f);
  sum = std::fma(sum, rest, 1.6666665459e-1f);
  sum = std::fma(sum, rest, 5.0000001201e-1f);
  sum = std::fma(sum, rest * rest, rest) + 1.0f;
  const int32_t bits = (int32_t(power) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return sum * scale;
}

}  // namespace
