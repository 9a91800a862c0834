#include "engine/rotary.hpp"

#include <cmath>

namespace sparsedraft {

void RotaryTable::compute(const Config& config, const std::vector<Token>& tokens) {
  half_ = config.head_dim / 2;
  tokens_ = tokens.size();
  cos_.resize(config.inv_freq.size() * tokens_ * half_);
  sin_.resize(cos_.size());
  for (size_t kind = 0; kind < config.inv_freq.size(); ++kind)
    for (size_t t = 0; t < tokens_; ++t)
      for (size_t i = 0; i < half_; ++i) {
        const float angle = static_cast<float>(tokens[t].position) * config.inv_freq[kind][i];
        const size_t at = (kind * tokens_ + t) * half_ + i;
        cos_[at] = std::cos(angle) * config.rope_scaling[kind];
        sin_[at] = std::sin(angle) * config.rope_scaling[kind];
      }
}

void RotaryTable::rotate(float* head, int kind, size_t token) const {
  const size_t at = (kind * tokens_ + token) * half_;
  const float* cosine = cos_.data() + at;
  const float* sine = sin_.data() + at;
  for (size_t i = 0; i < half_; ++i) {
    const float a = head[i];
    const float b = head[i + half_];
    head[i] = a * cosine[i] - b * sine[i];
    head[i + half_] = b * cosine[i] + a * sine[i];
  }
}

}  // namespace sparsedraft
