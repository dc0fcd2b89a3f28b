// SPDX-License-Identifier: Apache-2.0
// KV compaction on a CPU; `native.py` calls it, `reference.py` says the same in plain torch.

#include <cstdint>
#include <cstring>

extern "C" {

// Filled by `native.py`; strides and sizes count bytes.
struct Cache {
  char* data;  // [blocks, heads, block_size, width]
  int64_t heads, block_size, width, element, block_stride, head_stride, slot_stride, element_stride;
};

void kv_compact(const Cache* caches, int64_t num_caches, const int64_t* path, int64_t path_stride,
                const int64_t* root_token, const int64_t* slots, int64_t num_requests, int64_t depth) {
#pragma omp parallel for schedule(static)
  for (int64_t index = 0; index < num_caches; ++index) {
    const Cache& cache = caches[index];
    const bool is_dense = cache.element_stride == cache.element;
    const auto place = [&](int64_t slot) {
      return cache.data + slot / cache.block_size * cache.block_stride + slot % cache.block_size * cache.slot_stride;
    };
    for (int64_t request = 0; request < num_requests; ++request) {
      const int64_t* first = slots + root_token[request] + 1;
      const int64_t* nodes = path + request * path_stride;
      // A node's number is at least its step, so no entry is overwritten before it has been read.
      for (int64_t step = 0; step < depth && nodes[step] >= 0; ++step) {
        const int64_t source = first[nodes[step]], target = first[step];
        if (source == target || source < 0 || target < 0) continue;  // vLLM marks tokens without a slot by -1
        const char* from = place(source);
        char* to = place(target);
        for (int64_t head = 0; head < cache.heads; ++head, from += cache.head_stride, to += cache.head_stride) {
          if (is_dense)
            std::memcpy(to, from, cache.width);
          else
            for (int64_t at = 0; at < cache.width / cache.element * cache.element_stride; at += cache.element_stride)
              std::memcpy(to + at, from + at, cache.element);
        }
      }
    }
  }
}

}  // extern "C"
