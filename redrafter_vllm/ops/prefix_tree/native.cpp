// SPDX-License-Identifier: Apache-2.0
// Prefix trees and their ancestor masks on a CPU; `native.py` calls it, `reference.py` says the same in plain torch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

extern "C" {

void prefix_tree(const int64_t* tokens, const int64_t* parents, const float* scores, const int64_t* beam_limit,
                 int64_t* node_tokens, int64_t* node_parents, int64_t* depths, float* node_scores, int64_t* node_beams,
                 int64_t* num_nodes, int64_t batch, int64_t length, int64_t width, int64_t max_nodes) {
  const float lowest = std::numeric_limits<float>::lowest(), nowhere = -std::numeric_limits<float>::infinity();
  const int64_t num_beams = length * width;
#pragma omp parallel for if (batch > 16)
  for (int64_t request = 0; request < batch; ++request) {
    const int64_t first = request * num_beams;
    // Whether a beam is among the last step's best or a prefix of one.
    std::vector<char> is_wanted(num_beams, 1);
    if (beam_limit != nullptr && beam_limit[request] < width) {
      std::fill(is_wanted.begin(), is_wanted.end(), 0);
      for (int64_t beam = 0; beam < beam_limit[request]; ++beam) is_wanted[num_beams - width + beam] = 1;
      for (int64_t flat = num_beams - 1; flat >= width; --flat)
        if (is_wanted[flat]) is_wanted[(flat / width - 1) * width + parents[first + flat]] = 1;
    }
    // A score is lowered where it is above its parent's or undefined, so that a parent never ranks lower.
    std::vector<float> falling(num_beams);
    std::vector<int64_t> order;
    for (int64_t flat = 0; flat < num_beams; ++flat) {
      const float own = scores[first + flat];
      const int64_t step = flat / width;
      const float above = step == 0 ? -lowest : falling[(step - 1) * width + parents[first + flat]];
      falling[flat] = std::min(std::isnan(own) ? lowest : own, above);
      if (is_wanted[flat] && falling[flat] > nowhere) order.push_back(flat);
    }
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return falling[a] > falling[b]; });
    std::vector<int64_t> place(num_beams, 0);
    for (size_t node = 0; node < order.size(); ++node) place[order[node]] = int64_t(node);

    const int64_t count = std::min<int64_t>(int64_t(order.size()), max_nodes), to = request * max_nodes;
    for (int64_t node = 0; node < max_nodes; ++node) {
      const bool is_node = node < count;
      const int64_t flat = is_node ? order[node] : 0, step = flat / width;
      node_tokens[to + node] = is_node ? tokens[first + flat] : 0;
      node_parents[to + node] = is_node && step > 0 ? place[(step - 1) * width + parents[first + flat]] : -1;
      depths[to + node] = is_node ? step + 1 : 0;
      node_scores[to + node] = is_node ? falling[flat] : nowhere;
      node_beams[to + node] = flat;
    }
    num_nodes[request] = count;
  }
}

// `mask` is all 0 before.
void ancestor_mask(const int64_t* parents, const int64_t* num_nodes, bool* mask, int64_t batch, int64_t capacity) {
  for (int64_t request = 0; request < batch; ++request) {
    const int64_t* parent = parents + request * capacity;
    const int64_t count = std::min(num_nodes[request], capacity);
    for (int64_t node = 0; node < count; ++node) {
      bool* row = mask + (request * capacity + node) * capacity;
      // A path ends at the root or at padding; as it has no more nodes than there are, a circle ends, too.
      for (int64_t here = node, climbed = 0; here >= 0 && here < count && climbed < count; here = parent[here], ++climbed)
        row[here] = true;
    }
  }
}

}  // extern "C"
