// SPDX-License-Identifier: Apache-2.0
// Estimates of nodes on a CPU; `native.py` calls it, `reference.py` says the same in plain torch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace {

constexpr float NOWHERE = -std::numeric_limits<float>::infinity();

// Filled by `native.py`: the coefficients, and by row what was estimated of its tree.
struct Estimates {
  const float* slope;  // [1]
  const float* intercepts;  // [kinds]
  float* offsets;  // [rows]
  int64_t* kinds;  // [rows, nodes]
  float* log_odds;  // [rows, nodes]
  float* log_survival;  // [rows, nodes]
  float* sums;  // [rows, NUM_SUMS, num_kinds]
  int64_t num_kinds, nodes, copies;
  float max_log_odds, rate, decay, most_saved;
};

constexpr int NUM_SUMS = 6;

int64_t kind_of(const Estimates& own, int64_t step, int64_t beam, int64_t width) {
  if (own.copies && beam == width - 1) return own.num_kinds - 1;
  return std::min(step, own.num_kinds - 1 - own.copies);
}

float log_sigmoid(float x) { return std::min(x, 0.0f) - std::log1p(std::exp(-std::fabs(x))); }

// Of a token of log-probability `log_p`, or NaN below an impossible one.
float log_odds_of(float log_p, float most) {
  if (std::isnan(log_p)) return -most;
  log_p = std::min(log_p, 0.0f);
  const float odds = log_p - std::log(-std::expm1(log_p));
  return std::min(std::max(odds, -most), most);
}

}  // namespace

extern "C" {

void rank_beams(const Estimates* given, const float* log_probs, const int64_t* parents, const int64_t* rows,
                float* log_odds, float* log_survival, int64_t batch, int64_t steps, int64_t width) {
  const Estimates& own = *given;
#pragma omp parallel for schedule(static) if (batch > 4)
  for (int64_t request = 0; request < batch; ++request) {
    const float offset = own.decay * own.offsets[rows[request]];
    for (int64_t step = 0; step < steps; ++step)
      for (int64_t beam = 0; beam < width; ++beam) {
        const int64_t at = (request * steps + step) * width + beam;
        const int64_t above = step ? (request * steps + step - 1) * width + parents[at] : -1;
        log_odds[at] = log_odds_of(log_probs[at] - (step ? log_probs[above] : 0.0f), own.max_log_odds);
        const float slope = own.copies && beam == width - 1 ? 1.0f : *own.slope;
        const float bias = own.intercepts[kind_of(own, step, beam, width)] + offset;
        const float alone = log_probs[at] == NOWHERE ? NOWHERE : log_sigmoid(slope * log_odds[at] + bias);
        log_survival[at] = alone + (step ? log_survival[above] : 0.0f);
      }
  }
}

void keep_tree(const Estimates* given, const float* drawn, const int64_t* beams, const float* log_survival,
               const int64_t* num_nodes, const int64_t* node_budget, const int64_t* rows, float* confidences,
               int64_t batch, int64_t steps, int64_t width) {
  const Estimates& own = *given;
  for (int64_t request = 0; request < batch; ++request) {
    const int64_t row = rows[request], first = request * own.nodes;
    const int64_t count = std::min(num_nodes[request], node_budget[request]);
    own.offsets[row] *= own.decay;
    float tokens = 1, before = own.most_saved;
    for (int64_t node = 0; node < own.nodes; ++node) {
      const int64_t beam = beams[first + node], place = row * own.nodes + node;
      const int64_t kind = kind_of(own, beam / width, beam % width, width);
      own.kinds[place] = kind;
      own.log_odds[place] = own.copies && kind == own.num_kinds - 1 ? 0.0f : drawn[request * steps * width + beam];
      own.log_survival[place] = log_survival[first + node];
      const float survival = node < count ? std::exp(log_survival[first + node]) : 0.0f;
      tokens += survival;
      const float saved = survival / (tokens * (tokens - survival)), ratio = saved / before;
      confidences[first + node] = std::isnan(ratio) ? 0.0f : std::min(ratio, 1.0f);
      before = saved;
    }
  }
}

void grade_nodes(const Estimates* given, const int64_t* rows, const int64_t* parents, const bool* valid,
                 const int64_t* path, bool* accepted, int64_t batch, int64_t depth) {
  const Estimates& own = *given;
  for (int64_t request = 0; request < batch; ++request) {
    const int64_t row = rows[request], first = request * own.nodes, stored = row * own.nodes;
    std::fill(accepted, accepted + own.nodes, false);
    for (int64_t place = 0; place < depth; ++place)
      if (const int64_t node = path[request * depth + place]; node >= 0) accepted[node] = true;
    float* sums = own.sums + row * NUM_SUMS * own.num_kinds;
    float surprise = 0;
    for (int64_t node = 0; node < own.nodes; ++node) {
      const int64_t parent = parents[first + node];
      if (!valid[first + node] || (parent >= 0 && !accepted[parent])) continue;
      const float above = parent >= 0 ? own.log_survival[stored + parent] : 0.0f;
      const float expected = std::exp(own.log_survival[stored + node] - above);
      const float probability = std::isnan(expected) ? 0.0f : expected;
      const float weight = probability * (1 - probability), residual = float(accepted[node]) - probability;
      const float x = own.log_odds[stored + node];
      const float terms[NUM_SUMS] = {weight * x * x, weight * x, weight, residual * x, residual, 1.0f};
      for (int sum = 0; sum < NUM_SUMS; ++sum) sums[sum * own.num_kinds + own.kinds[stored + node]] += terms[sum];
      surprise += residual;
    }
    own.offsets[row] += own.rate * surprise;
  }
}

}  // extern "C"
