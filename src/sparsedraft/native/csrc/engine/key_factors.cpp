#include "engine/key_factors.hpp"

#include <algorithm>
#include <cmath>

namespace sparsedraft {
namespace {

constexpr int kProbes = 64;  // random inputs: a mean square of so many is a fifth off

// 1 or -1, the same on every machine: the top bit of a linear congruential generator (Knuth's MMIX constants).
class Signs {
 public:
  float next() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return state_ >> 63 ? 1.0f : -1.0f;
  }

 private:
  uint64_t state_ = 0;
};

// Mean squares of Wk x + bk over random inputs of the input norm's sizes.
std::vector<float> mean_squares(const Layer& layer, const Config& c, const Kernels& kernels, Pool& pool) {
  const size_t rows = c.kv_heads * c.head_dim, stride = padded(rows, kRows4);
  ActivationBuffer probes;
  probes.resize(c.hidden, kProbes);
  Signs signs;
  for (int t = 0; t < kProbes; ++t)
    for (size_t j = 0; j < c.hidden; ++j)
      probes.row(t)[j] = signs.next() * (layer.input_norm[j] + (c.norm_one_more ? 1.0f : 0.0f));
  std::vector<float> keys(stride * kProbes);
  multiply_rounded(kernels, pool, probes, {{layer.k.get(), keys.data(), stride}});
  std::vector<float> out(rows, 0.0f);
  for (size_t i = 0; i < rows; ++i) {
    for (int t = 0; t < kProbes; ++t) out[i] += keys[t * stride + i] * keys[t * stride + i] / kProbes;
    if (!layer.k_bias.empty()) out[i] += layer.k_bias[i] * layer.k_bias[i];
  }
  return out;
}

}  // namespace

std::vector<float> key_factors(const Layer& layer, const Config& c, const Kernels& kernels, Pool& pool) {
  const size_t dim = c.head_dim, half = dim / 2;
  std::vector<float> factors;
  if (layer.k_norm.empty()) {
    factors = mean_squares(layer, c, kernels, pool);
    for (float& f : factors) f = std::sqrt(f);
  } else {
    for (size_t h = 0; h < c.kv_heads; ++h)
      for (const float w : layer.k_norm) factors.push_back(std::abs(w + (c.norm_one_more ? 1.0f : 0.0f)));
  }
  for (float* head = factors.data(); head != factors.data() + factors.size(); head += dim) {
    const float most = *std::max_element(head, head + dim);
    const bool sound = most > 0 && std::isfinite(most);  // else keys are as they are
    for (size_t i = 0; i < half; ++i) {
      const float pair = sound ? std::max(head[i], head[i + half]) / most : 1.0f;
      head[i] = head[i + half] = std::max(pair, kLeastKeyFactor);
    }
  }
  return factors;
}

}  // namespace sparsedraft
