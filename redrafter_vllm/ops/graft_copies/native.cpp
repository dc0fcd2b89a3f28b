// SPDX-License-Identifier: Apache-2.0
// Copies of the text beside a search's beams on a CPU; `native.py` calls it, `reference.py` says the same in plain torch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

struct Copy {
  int64_t matched, first, period;  // equal tokens; the place of the first copied token; tokens until they begin again
};

// Of the places before the last token the latest of those where most of the last tokens are the same.
Copy find(const int32_t* text, int64_t length, int64_t longest) {
  const int64_t end = length - 1;
  Copy best{0, 0, 1};
  for (int64_t place = end - 1; place >= 0 && best.matched < longest; --place) {
    const int64_t most = std::min(longest, place + 1);
    int64_t matched = 0;
    while (matched < most && text[place - matched] == text[end - matched]) ++matched;
    if (matched > best.matched) best = {matched, place + 1, end - place};
  }
  return best;
}

}  // namespace

extern "C" {

void graft_copies(const int64_t* tokens, const int64_t* parents, const float* log_probs, const int32_t* texts,
                  int64_t text_stride, const int32_t* lengths, const int64_t* rows, const int64_t* beam_limit,
                  int64_t* grafted_tokens, int64_t* grafted_parents, float* grafted_log_probs, int64_t num_rows,
                  int64_t batch, int64_t steps, int64_t width, int64_t length, int64_t shortest, int64_t longest) {
  const float nowhere = -std::numeric_limits<float>::infinity();
#pragma omp parallel for schedule(dynamic) if (batch > 4)
  for (int64_t request = 0; request < batch; ++request) {
    const int64_t row = rows[request];
    const bool may_copy = row < num_rows && (beam_limit == nullptr || beam_limit[request] > width);
    const int32_t* text = texts + (may_copy ? row : 0) * text_stride;
    const Copy copy = find(text, may_copy ? lengths[row] : 0, longest);
    const bool has_copy = copy.matched >= shortest;
    // By how much each beam of the step before was raised, and the beam that is the copy so far.
    std::vector<float> raised(width, 0.0f), raised_before(width, 0.0f);
    int64_t same = -1;
    for (int64_t step = 0; step < length; ++step) {
      const int64_t from = (request * steps + step) * width, to = (request * length + step) * (width + 1);
      const int64_t token = has_copy ? text[copy.first + step % copy.period] : 0;
      float log_prob = std::log(static_cast<float>(copy.matched - 1) / static_cast<float>(copy.matched + step));
      const int64_t same_before = same;
      same = -1;
      for (int64_t beam = 0; beam < width; ++beam) {
        const bool is_drafted = step < steps;
        const int64_t own_token = is_drafted ? tokens[from + beam] : 0;
        const int64_t parent = is_drafted ? parents[from + beam] : beam;
        const float own = is_drafted ? log_probs[from + beam] : nowhere;
        const float score = step == 0 ? own : own + raised_before[parent];
        const bool exists = own != nowhere, is_below_copy = exists && (step == 0 || parent == same_before);
        const bool is_copy = has_copy && is_below_copy && own_token == token;
        if (is_copy) {
          same = beam;
          log_prob = std::fmax(log_prob, score);
        }
        raised[beam] = exists ? (is_copy ? log_prob : score) - own : 0.0f;
        grafted_tokens[to + beam] = own_token;
        grafted_parents[to + beam] = step > 0 && is_below_copy ? width : parent;
        grafted_log_probs[to + beam] = is_copy ? nowhere : score;
      }
      grafted_tokens[to + width] = token;
      grafted_parents[to + width] = width;
      grafted_log_probs[to + width] = has_copy ? log_prob : nowhere;
      raised.swap(raised_before);
    }
  }
}

}  // extern "C"
