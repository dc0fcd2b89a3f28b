// SPDX-License-Identifier: Apache-2.0
// Tree attention over vLLM's CPU cache; `native.py` calls it, `reference.py` says the same in plain torch.
//
// A row's result depends on its own query and visible keys alone, to the last bit: every sum over keys adds them one
// by one in the order of their slots, where a hidden key adds an exact zero, and every dot product adds dimension by
// dimension. So it does not matter how many rows share a step, or in which slots the hidden keys lie. Where a product
// is added, `fma` says so: left to the compiler (-ffp-contract), it would depend on the loop.

#include <vector>

#include "native.h"

namespace {

constexpr int DIMS = 32;  // of a value, added at once

inline void store(float x, float* place) { *place = x; }

inline void store(float x, Bf16* place) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t to_even = 0x7FFF + ((bits >> 16) & 1);
  place->bits = x == x ? uint16_t((bits + to_even) >> 16) : 0x7FC0;
}

}  // namespace

extern "C" {

// Filled by `native.py`; strides count elements.
struct Step {
  void* out;  // [tokens, heads, head_size]
  const void* query;  // [tokens, heads, head_size]
  const void* cache;  // [blocks, kv_heads, keys [head_size, block_size] and values [block_size, head_size]]
  const int32_t* block_table;  // [requests, pages]
  const int32_t* query_start;  // [requests + 1]
  const int32_t* seq_lens;  // [requests]
  const uint8_t* ancestors;  // [requests, nodes, nodes]
  const int32_t* num_drafts;  // [requests]
  int64_t out_token_stride, out_head_stride, query_token_stride, query_head_stride;
  int64_t cache_block_stride, cache_head_stride, table_stride, ancestors_stride, ancestors_row_stride;
  int64_t num_requests, num_heads, num_kv_heads, head_size, block_size;
  double scale;
};

}  // extern "C"

namespace {

// Rows of one request that share a key head: query token times query head of the group.
struct Tile {
  int32_t request, kv_head, first, count;
};

template <typename T, int ROWS, int LANES>
void attend(const Step& step, const Tile& tile, std::vector<float>& scratch) {
  const int64_t group = step.num_heads / step.num_kv_heads, size = step.head_size, block_size = step.block_size;
  const int64_t start = step.query_start[tile.request];
  const int64_t query_len = step.query_start[tile.request + 1] - start;
  const int64_t seq_len = step.seq_lens[tile.request], num_drafts = step.num_drafts[tile.request];
  const int64_t first_draft_key = seq_len - num_drafts, first_draft = query_len - num_drafts;
  const int32_t* pages = step.block_table + tile.request * step.table_stride;
  const T* head_cache = static_cast<const T*>(step.cache) + tile.kv_head * step.cache_head_stride;
  const auto page = [&](int64_t slot) { return head_cache + pages[slot / block_size] * step.cache_block_stride; };

  int64_t end = 0;  // of the keys that any of the rows sees
  int64_t causal_end[ROWS];  // of each row's keys that need no mask
  for (int row = 0; row < ROWS; ++row) {
    const int64_t token = (tile.first + std::min(row, tile.count - 1)) / group;
    causal_end[row] = std::min(seq_len - query_len + token + 1, first_draft_key);
    end = std::max(end, token >= first_draft ? seq_len : causal_end[row]);
  }
  const int64_t width = (end + LANES - 1) / LANES * LANES;
  if (int64_t(scratch.size()) < ROWS * (width + size)) scratch.resize(ROWS * (width + size));
  float* scores = scratch.data();  // [ROWS, width]
  float* queries = scores + ROWS * width;  // [ROWS, size]

  for (int row = 0; row < ROWS; ++row) {
    const int64_t at = tile.first + std::min(row, tile.count - 1);
    const T* query = static_cast<const T*>(step.query) + (start + at / group) * step.query_token_stride +
                     (tile.kv_head * group + at % group) * step.query_head_stride;
    for (int64_t d = 0; d < size; ++d) queries[row * size + d] = to_float(query[d]) * float(step.scale);
  }

  for (int64_t slot = 0; slot < end; slot += LANES) {
    const T* keys = page(slot) + slot % block_size;
    float sums[ROWS][LANES] = {};
    for (int64_t d = 0; d < size; ++d) {
      float key[LANES];
      for (int lane = 0; lane < LANES; ++lane) key[lane] = to_float(keys[d * block_size + lane]);
      for (int row = 0; row < ROWS; ++row) {
        const float query = queries[row * size + d];
        for (int lane = 0; lane < LANES; ++lane) sums[row][lane] = std::fma(query, key[lane], sums[row][lane]);
      }
    }
    for (int row = 0; row < ROWS; ++row) std::memcpy(scores + row * width + slot, sums[row], sizeof sums[row]);
  }

  for (int row = 0; row < ROWS; ++row) {
    const int64_t token = (tile.first + std::min(row, tile.count - 1)) / group;
    const uint8_t* on_path = nullptr;  // of the row's draft; other rows see no draft
    if (token >= first_draft)
      on_path = step.ancestors + tile.request * step.ancestors_stride + (token - first_draft) * step.ancestors_row_stride;
    const auto is_visible = [&](int64_t slot) { return on_path != nullptr && on_path[slot - first_draft_key] != 0; };
    float* own = scores + row * width;
    float highest = own[0];
#pragma omp simd reduction(max : highest)
    for (int64_t slot = 1; slot < causal_end[row]; ++slot) highest = std::max(highest, own[slot]);
    for (int64_t slot = first_draft_key; slot < end; ++slot)
      if (is_visible(slot)) highest = std::max(highest, own[slot]);
    for (int64_t slot = 0; slot < causal_end[row]; ++slot) own[slot] = exp_of(own[slot] - highest);
    for (int64_t slot = causal_end[row]; slot < end; ++slot)
      own[slot] = slot >= first_draft_key && is_visible(slot) ? exp_of(own[slot] - highest) : 0.0f;
  }

  float totals[ROWS] = {};
  for (int64_t slot = 0; slot < end; ++slot)
    for (int row = 0; row < ROWS; ++row) totals[row] += scores[row * width + slot];

  for (int64_t first = 0; first < size; first += DIMS) {
    const int64_t dims = std::min<int64_t>(DIMS, size - first);
    float sums[ROWS][DIMS] = {};
    const auto add = [&](int64_t slot, const T* values, int64_t dims) {
      float value[DIMS] = {};
      for (int64_t d = 0; d < dims; ++d) value[d] = to_float(values[d]);
      for (int row = 0; row < ROWS; ++row) {
        const float weight = scores[row * width + slot];
        for (int d = 0; d < DIMS; ++d) sums[row][d] = std::fma(weight, value[d], sums[row][d]);
      }
    };
    for (int64_t from = 0; from < end; from += block_size) {
      const T* values = page(from) + size * block_size + first;
      const int64_t to = std::min(from + block_size, end);
      if (dims == DIMS)
        for (int64_t slot = from; slot < to; ++slot) add(slot, values + (slot - from) * size, DIMS);
      else
        for (int64_t slot = from; slot < to; ++slot) add(slot, values + (slot - from) * size, dims);
    }
    for (int row = 0; row < tile.count; ++row) {
      const int64_t at = tile.first + row;
      T* out = static_cast<T*>(step.out) + (start + at / group) * step.out_token_stride +
               (tile.kv_head * group + at % group) * step.out_head_stride + first;
      for (int64_t d = 0; d < dims; ++d) store(sums[row][d] / totals[row], out + d);
    }
  }
}

template <typename T>
void attend_tile(const Step& step, const Tile& tile, std::vector<float>& scratch) {
  const bool is_small = tile.count <= 4;
  if (step.block_size % 32 == 0)
    is_small ? attend<T, 4, 32>(step, tile, scratch) : attend<T, 8, 32>(step, tile, scratch);
  else
    is_small ? attend<T, 4, 16>(step, tile, scratch) : attend<T, 8, 16>(step, tile, scratch);
}

template <typename T>
void tree_attention(const Step& step) {
  constexpr int64_t ROWS = 8;
  static thread_local std::vector<Tile> tiles;
  tiles.clear();
  const int64_t group = step.num_heads / step.num_kv_heads;
  for (int64_t request = 0; request < step.num_requests; ++request) {
    const int64_t rows = (step.query_start[request + 1] - step.query_start[request]) * group;
    for (int64_t kv_head = 0; kv_head < step.num_kv_heads; ++kv_head)
      for (int64_t first = 0; first < rows; first += ROWS)
        tiles.push_back({int32_t(request), int32_t(kv_head), int32_t(first), int32_t(std::min(ROWS, rows - first))});
  }
  const Tile* all = tiles.data();
  const int64_t count = tiles.size();
#pragma omp parallel
  {
    static thread_local std::vector<float> scratch;
#pragma omp for schedule(dynamic)
    for (int64_t index = 0; index < count; ++index) attend_tile<T>(step, all[index], scratch);
  }
}

}  // namespace

extern "C" {

void tree_attention_float32(const Step* step) { tree_attention<float>(*step); }

void tree_attention_bfloat16(const Step* step) { tree_attention<Bf16>(*step); }

}  // extern "C"
