// SPDX-License-Identifier: Apache-2.0
// The walk through a draft tree on a CPU; `native.py` calls it, `reference.py` says the same in plain torch.

#include <algorithm>
#include <cstdint>

extern "C" void tree_verify(const int64_t* sampled, const int64_t* first_row, const int64_t* tokens,
                            const int64_t* parents, const uint8_t* valid, int64_t* emitted, int64_t* path,
                            int32_t* num_emitted, int64_t* leaf, int64_t batch, int64_t num_nodes, int64_t max_depth) {
  for (int64_t request = 0; request < batch; ++request) {
    const int64_t* rows = sampled + first_row[request];
    const int64_t first = request * num_nodes;
    int64_t* own_emitted = emitted + request * (1 + num_nodes);
    int64_t* own_path = path + request * max_depth;
    std::fill_n(own_emitted, 1 + num_nodes, 0);
    std::fill_n(own_path, max_depth, -1);
    int64_t node = -1, count = 0;
    own_emitted[0] = rows[0];
    while (count < std::min(max_depth, num_nodes)) {
      const int64_t token = rows[node + 1];
      int64_t child = node + 1;  // a parent precedes its children
      while (child < num_nodes && !(valid[first + child] && parents[first + child] == node && tokens[first + child] == token))
        ++child;
      if (child == num_nodes) break;
      node = child;
      own_path[count++] = node;
      own_emitted[count] = rows[node + 1];
    }
    num_emitted[request] = int32_t(count + 1);
    leaf[request] = node + 1;
  }
}
