// SPDX-License-Identifier: Apache-2.0
// Stores keys and values in vLLM's CPU cache; `native.py` calls it, `reference.py` says the same in plain torch.

#include <cstdint>

#include "native.h"

extern "C" {

// Filled by `native.py`; strides count elements.
struct Step {
  const void* key;  // [tokens, kv_heads, head_size]
  const void* value;  // the same
  void* cache;  // [blocks, kv_heads, keys [head_size, block_size] and values [block_size, head_size]]
  const int64_t* slots;  // [tokens]
  int64_t key_token_stride, key_head_stride, value_token_stride, value_head_stride;
  int64_t cache_block_stride, cache_head_stride;
  int64_t num_tokens, num_kv_heads, head_size, block_size;
};

}  // extern "C"

namespace {

constexpr int64_t DIMS = 32;  // of a head, stored by one thread
constexpr int64_t TOKENS = 32;  // stored together: their dimensions are read while they are in the first cache

template <typename T>
void store(const Step& step) {
  const int64_t chunks = (step.head_size + DIMS - 1) / DIMS, blocks = (step.num_tokens + TOKENS - 1) / TOKENS;
  // No two threads write to one cache line of keys, whatever tokens share it.
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < step.num_kv_heads * chunks; ++task) {
    const int64_t head = task / chunks, first = task % chunks * DIMS, end = std::min(first + DIMS, step.head_size);
    const T* keys = static_cast<const T*>(step.key) + head * step.key_head_stride;
    const T* values = static_cast<const T*>(step.value) + head * step.value_head_stride;
    T* cache = static_cast<T*>(step.cache) + head * step.cache_head_stride;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t last = std::min((block + 1) * TOKENS, step.num_tokens);
      const T* from[TOKENS];
      T* to[TOKENS];
      int64_t count = 0;
      for (int64_t token = block * TOKENS; token < last; ++token) {
        const int64_t slot = step.slots[token];
        if (slot < 0) continue;  // vLLM marks tokens without a slot by -1
        T* page = cache + slot / step.block_size * step.cache_block_stride;
        from[count] = keys + token * step.key_token_stride;
        to[count++] = page + slot % step.block_size;
        T* value = page + step.head_size * step.block_size + slot % step.block_size * step.head_size;
        std::copy(values + token * step.value_token_stride + first, values + token * step.value_token_stride + end,
                  value + first);
      }
      for (int64_t dim = first; dim < end; ++dim)
        for (int64_t index = 0; index < count; ++index) to[index][dim * step.block_size] = from[index][dim];
    }
  }
}

}  // namespace

extern "C" {

void packed_store_2(const Step* step) { store<uint16_t>(*step); }

void packed_store_4(const Step* step) { store<uint32_t>(*step); }

}  // extern "C"
