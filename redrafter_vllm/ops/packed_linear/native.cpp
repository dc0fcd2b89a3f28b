// SPDX-License-Identifier: Apache-2.0
// Products with packed bfloat16 weights; `native.py` calls it, `reference.py` says the same in plain torch.

#include <immintrin.h>
#include <omp.h>

#include <utility>

#include "native.h"

#ifndef __AVX512BF16__
#error "the compiler knows no bfloat16 instructions of this processor"
#endif

namespace {

constexpr int LANES = 16;  // outputs of one vector
constexpr int PANEL = 2 * LANES;  // outputs whose weights lie together
constexpr int PAIR = PANEL * 2;  // numbers of a panel for two inputs: two cache lines
constexpr int MOST_ROWS = 14;  // whose sums fit the registers, 2 vectors each
constexpr int AHEAD = 8192;  // bytes between what is multiplied and what is fetched

struct Operands {
  const uint16_t* x;  // [rows, 2 * pairs]
  int64_t x_stride;
  const uint16_t* packed;  // [panels, pairs, 32, 2]
  const uint16_t* bias;  // [size] or null
  uint16_t* result;  // [rows, size]
  int64_t pairs, size;
};

// ROWS rows times VECTORS * 16 outputs from `output` on. Weights from `fetched` on are requested from memory meanwhile:
// two lines after every `every` pairs. All sums are in registers, and those of a row are the same for any ROWS.
template <int ROWS, int VECTORS>
void multiply(const Operands& given, int64_t row, int64_t output, const char* fetched, int64_t every) {
  const uint16_t* x = given.x + row * given.x_stride;
  const uint16_t* weights = given.packed + output / PANEL * given.pairs * PAIR + output % PANEL * 2;
  __m512 sums[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = _mm512_setzero_ps();
  for (int64_t first = 0; first < given.pairs; first += every) {
    _mm_prefetch(fetched, _MM_HINT_T0);
    _mm_prefetch(fetched + 64, _MM_HINT_T0);
    fetched += PAIR * sizeof(uint16_t);
    const int64_t end = std::min(first + every, given.pairs);
    for (int64_t pair = first; pair < end; ++pair) {
      __m512bh w[VECTORS];
      for (int v = 0; v < VECTORS; ++v)
        w[v] = (__m512bh)_mm512_loadu_si512(weights + pair * PAIR + v * 2 * LANES);
      for (int r = 0; r < ROWS; ++r) {
        int32_t two;
        std::memcpy(&two, x + r * given.x_stride + 2 * pair, sizeof two);
        const __m512bh both = (__m512bh)_mm512_set1_epi32(two);
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], w[v], both);
      }
    }
  }
  for (int v = 0; v < VECTORS; ++v) {
    const int64_t from = output + v * LANES, count = std::min<int64_t>(LANES, given.size - from);
    if (count <= 0) break;
    const __mmask16 used = __mmask16((1u << count) - 1);
    const __m512i bias = given.bias ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(used, given.bias + from))
                                    : _mm512_setzero_si512();
    const __m512 added = _mm512_castsi512_ps(_mm512_slli_epi32(bias, 16));
    for (int r = 0; r < ROWS; ++r) {
      const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(sums[r][v], added));
      _mm256_mask_storeu_epi16(given.result + (row + r) * given.size + from, used, rounded);
    }
  }
}

using Multiply = void (*)(const Operands&, int64_t, int64_t, const char*, int64_t);

template <int VECTORS, int... ROWS>
Multiply chosen(int64_t rows, std::integer_sequence<int, ROWS...>) {
  static constexpr Multiply by_rows[] = {multiply<ROWS + 1, VECTORS>...};
  return by_rows[rows - 1];
}

}  // namespace

extern "C" {

void packed_linear(const uint16_t* x, const uint16_t* packed, const uint16_t* bias, uint16_t* result, int64_t rows,
                   int64_t x_stride, int64_t pairs, int64_t size) {
  const Operands given{x, x_stride, packed, bias, result, pairs, size};
  const int64_t vectors = (size + LANES - 1) / LANES, tiles = (rows + MOST_ROWS - 1) / MOST_ROWS;
  const auto counts = std::make_integer_sequence<int, MOST_ROWS>();
#pragma omp parallel
  {
    // Threads share the outputs by vectors; one that begins or ends within a panel takes the half of it.
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t end = vectors * (thread + 1) / threads;
    for (int64_t vector = vectors * thread / threads; vector < end;) {
      const bool is_whole = vector % 2 == 0 && vector + 1 < end;
      const char* panel = reinterpret_cast<const char*>(packed + vector / 2 * pairs * PAIR);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = rows * tile / tiles, count = rows * (tile + 1) / tiles - first;
        // One tile reads from memory, some way ahead. Of several only the first would: the next panel is fetched by all.
        const char* fetched = panel + AHEAD;
        if (tiles > 1) fetched = panel + (pairs + tile * ((pairs + tiles - 1) / tiles)) * PAIR * sizeof(uint16_t);
        const Multiply multiply = is_whole ? chosen<2>(count, counts) : chosen<1>(count, counts);
        multiply(given, first, vector * LANES, fetched, tiles);
      }
      vector += is_whole ? 2 : 1;
    }
  }
}

}  // extern "C"
