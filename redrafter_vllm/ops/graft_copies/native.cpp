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
                  int64_t text_stride, const int32_t* lengths, const int64_t* rows, int64_t* grafted_tokens,
                  int64_t* grafted_parents, float* grafted_log_probs, int64_t num_rows, int64_t batch, int64_t steps,
                  int64_t width, int64_t shortest, int64_t longest) {
#pragma omp parallel for schedule(dynamic) if (batch > 4)
  for (int64_t request = 0; request < batch; ++request) {
    const int64_t row = rows[request];
    const int32_t* text = texts + (row < num_rows ? row : 0) * text_stride;
    const Copy copy = find(text, row < num_rows ? lengths[row] : 0, longest);
    const bool has_copy = copy.matched >= shortest;
    // By how much each beam of the step before was raised, and the beam that stands for the copy so far.
    std::vector<float> raised(width, 0.0f), raised_before(width, 0.0f);
    int64_t stands = 0;
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t from = (request * steps + step) * width, to = (request * steps + step) * (width + 1);
      const int64_t token = has_copy ? text[copy.first + step % copy.period] : 0;
      const float log_prob = std::log(static_cast<float>(copy.matched - 1) / static_cast<float>(copy.matched + step));
      int64_t beam_of_copy = -1;
      for (int64_t beam = 0; beam < width; ++beam) {
        const int64_t parent = parents[from + beam];
        const float own = log_probs[from + beam];
        float score = step == 0 ? own : own + raised_before[parent];
        if (has_copy && tokens[from + beam] == token && (step == 0 || parent == stands)) {
          beam_of_copy = beam;
          score = std::fmax(score, log_prob);
        }
        raised[beam] = score - own;
        grafted_tokens[to + beam] = tokens[from + beam];
        grafted_parents[to + beam] = parent;
        grafted_log_probs[to + beam] = score;
      }
      const bool is_alone = has_copy && beam_of_copy < 0;
      grafted_tokens[to + width] = token;
      grafted_parents[to + width] = stands;
      grafted_log_probs[to + width] = is_alone ? log_prob : -std::numeric_limits<float>::infinity();
      stands = beam_of_copy < 0 ? width : beam_of_copy;
      raised.swap(raised_before);
    }
  }
}

}  // extern "C"
