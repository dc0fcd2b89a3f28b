// SPDX-License-Identifier: Apache-2.0
// A beam step on a CPU; `native.py` calls it, `reference.py` says the same in plain torch.

#include "native.h"

namespace {

constexpr int MAX_WIDTH = 64;
constexpr int64_t BLOCK = 64;  // columns looked at together

// The highest of the values that were offered, in descending order; of equal ones those that came first.
struct Top {
  float values[MAX_WIDTH];
  int64_t places[MAX_WIDTH];
  int64_t size, count = 0;

  explicit Top(int64_t size) : size(size) {}

  bool takes(float value) const { return count < size || value > values[size - 1]; }

  void offer(float value, int64_t place) {
    if (!takes(value)) return;
    int64_t at = count < size ? count++ : size - 1;
    for (; at > 0 && values[at - 1] < value; --at) {
      values[at] = values[at - 1];
      places[at] = places[at - 1];
    }
    values[at] = value;
    places[at] = place;
  }
};

// The best columns of one beam, with their log-probabilities.
template <typename T>
Top best_columns(const T* logits, int64_t vocab, int64_t width) {
  Top top(width);
  for (int64_t first = 0; first < vocab; first += BLOCK) {
    const int64_t count = std::min(BLOCK, vocab - first);
    float highest = to_float(logits[first]);
#pragma omp simd reduction(max : highest)
    for (int64_t at = 1; at < count; ++at) highest = std::max(highest, to_float(logits[first + at]));
    if (!top.takes(highest)) continue;
    for (int64_t at = 0; at < count; ++at) top.offer(to_float(logits[first + at]), first + at);
  }
  const float highest = top.values[0];
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t column = 0; column < vocab; ++column) total += exp_of(to_float(logits[column]) - highest);
  const float log_total = std::log(total);
  for (int64_t rank = 0; rank < width; ++rank) top.values[rank] = (top.values[rank] - highest) - log_total;
  return top;
}

template <typename T>
void beam_step(const T* logits, int64_t request_stride, int64_t beam_stride, const float* scores,
               const int64_t* id_offsets, float* new_scores, int64_t* parents, int64_t* tokens, int64_t batch,
               int64_t width, int64_t vocab) {
  const int64_t live = scores == nullptr ? 1 : width;  // beams that differ
#pragma omp parallel for schedule(dynamic)
  for (int64_t request = 0; request < batch; ++request) {
    Top chosen(width);
    int64_t columns[MAX_WIDTH * MAX_WIDTH];
    for (int64_t beam = 0; beam < live; ++beam) {
      const Top top = best_columns(logits + request * request_stride + beam * beam_stride, vocab, width);
      const float score = scores == nullptr ? 0.0f : scores[request * width + beam];
      for (int64_t rank = 0; rank < width; ++rank) {
        columns[beam * width + rank] = top.places[rank];
        chosen.offer(score + top.values[rank], beam * width + rank);
      }
    }
    for (int64_t rank = 0; rank < width; ++rank) {
      const int64_t at = request * width + rank, column = columns[chosen.places[rank]];
      new_scores[at] = chosen.values[rank];
      parents[at] = chosen.places[rank] / width;
      tokens[at] = column + (id_offsets == nullptr ? 0 : id_offsets[column]);
    }
  }
}

}  // namespace

extern "C" {

void beam_step_float32(const float* logits, int64_t request_stride, int64_t beam_stride, const float* scores,
                       const int64_t* id_offsets, float* new_scores, int64_t* parents, int64_t* tokens, int64_t batch,
                       int64_t width, int64_t vocab) {
  beam_step(logits, request_stride, beam_stride, scores, id_offsets, new_scores, parents, tokens, batch, width, vocab);
}

void beam_step_bfloat16(const Bf16* logits, int64_t request_stride, int64_t beam_stride, const float* scores,
                        const int64_t* id_offsets, float* new_scores, int64_t* parents, int64_t* tokens, int64_t batch,
                        int64_t width, int64_t vocab) {
  beam_step(logits, request_stride, beam_stride, scores, id_offsets, new_scores, parents, tokens, batch, width, vocab);
}

}  // extern "C"
