#include "training/adamw.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

namespace sparsedraft {
namespace {

constexpr size_t kPiece = 1 << 16;  // weights that a thread takes at once
constexpr size_t kBlock = 1024;     // of these, gathered at once: what is gathered stays in the first-level cache
constexpr size_t kLanes = 16;

struct Factors {
  float scale, first, second, square, root, eps, rate, shrink;
  explicit Factors(const AdamW& how)
      : scale(static_cast<float>(how.scale)),
        first(static_cast<float>(1 - how.beta1)),
        second(static_cast<float>(how.beta2)),
        square(static_cast<float>(1 - how.beta2)),
        root(static_cast<float>(std::sqrt(1 - std::pow(how.beta2, static_cast<double>(how.step))))),
        eps(static_cast<float>(how.eps)),
        rate(static_cast<float>(how.rate / (1 - std::pow(how.beta1, static_cast<double>(how.step))))),
        shrink(static_cast<float>(1 - how.rate * how.decay)) {}
};

void update(const Factors& f, float* __restrict w, const float* __restrict gradients, float* __restrict m, float* __restrict v,
            size_t n) {
  for (size_t i = 0; i < n; ++i) {
    const float g = gradients[i] * f.scale;
    m[i] += f.first * (g - m[i]);
    v[i] = f.second * v[i] + f.square * g * g;
    w[i] = w[i] * f.shrink - f.rate * m[i] / (std::sqrt(v[i]) / f.root + f.eps);
  }
}

}  // namespace

double sum_of_squares(const float* gradients, const uint8_t* keep, size_t n, Pool& pool) {
  std::vector<double> sums((n + kBlock - 1) / kBlock);
  pool.run(sums.size(), kPiece / kBlock, [&](size_t from, size_t to) {
    for (size_t b = from; b < to; ++b) {
      const float* g = gradients + b * kBlock;
      const uint8_t* k = keep + b * kBlock;
      const size_t size = std::min(kBlock, n - b * kBlock);
      float lanes[kLanes] = {};  // so that several are added at once
      size_t i = 0;
      for (; i + kLanes <= size; i += kLanes)
        for (size_t l = 0; l < kLanes; ++l) {
          const float kept = k[i + l] ? g[i + l] : 0.0f;
          lanes[l] += kept * kept;
        }
      for (; i < size; ++i) lanes[0] += k[i] ? g[i] * g[i] : 0.0f;
      for (const float lane : lanes) sums[b] += lane;
    }
  });
  double sum = 0;
  for (const double each : sums) sum += each;
  return sum;
}

void step_kept(float* weights, const float* gradients, const uint8_t* keep, size_t n, float* first, float* second, const AdamW& how,
               Pool& pool) {
  const Factors factors(how);
  std::vector<size_t> before((n + kPiece - 1) / kPiece + 1, 0);  // kept weights before each piece
  const auto pieces = [&](const std::function<void(size_t, size_t, size_t)>& work) {
    pool.run(before.size() - 1, 1, [&](size_t from, size_t to) {
      for (size_t p = from; p < to; ++p) work(p, p * kPiece, std::min(n, (p + 1) * kPiece));
    });
  };
  pieces([&](size_t piece, size_t begin, size_t end) {
    size_t count = 0;
    for (size_t i = begin; i < end; ++i) count += keep[i];
    before[piece + 1] = count;
  });
  for (size_t p = 1; p < before.size(); ++p) before[p] += before[p - 1];
  pieces([&](size_t piece, size_t begin, size_t end) {
    uint32_t place[kBlock];
    float w[kBlock], g[kBlock];
    for (size_t at = before[piece]; begin < end; begin += kBlock) {
      const auto size = static_cast<uint32_t>(std::min(kBlock, end - begin));
      size_t count = 0;
      for (uint32_t i = 0; i < size; ++i) {
        place[count] = i;
        count += keep[begin + i];
      }
      for (size_t i = 0; i < count; ++i) w[i] = weights[begin + place[i]], g[i] = gradients[begin + place[i]];
      update(factors, w, g, first + at, second + at, count);
      for (size_t i = 0; i < count; ++i) weights[begin + place[i]] = w[i];
      at += count;
    }
  });
}

}  // namespace sparsedraft
