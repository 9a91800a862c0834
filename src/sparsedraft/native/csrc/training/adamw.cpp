#include "training/adamw.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

namespace sparsedraft {
namespace {

constexpr size_t kPiece = 1 << 16;  // weights that a thread takes at once
constexpr size_t kBlock = 1024;     // of these, gathered at once: what is gathered stays in the first-level cache

struct Factors {
  float first, second, square, root, eps, rate, shrink;
  explicit Factors(const AdamW& how)
      : first(static_cast<float>(1 - how.beta1)),
        second(static_cast<float>(how.beta2)),
        square(static_cast<float>(1 - how.beta2)),
        root(static_cast<float>(std::sqrt(1 - std::pow(how.beta2, static_cast<double>(how.step))))),
        eps(static_cast<float>(how.eps)),
        rate(static_cast<float>(how.rate / (1 - std::pow(how.beta1, static_cast<double>(how.step))))),
        shrink(static_cast<float>(1 - how.rate * how.decay)) {}
};

void update(const Factors& f, float* __restrict w, const float* __restrict g, float* __restrict m, float* __restrict v, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    m[i] += f.first * (g[i] - m[i]);
    v[i] = f.second * v[i] + f.square * g[i] * g[i];
    w[i] = w[i] * f.shrink - f.rate * m[i] / (std::sqrt(v[i]) / f.root + f.eps);
  }
}

}  // namespace

void mask_gradients(float* gradients, const uint8_t* keep, size_t n, Pool& pool) {
  pool.run(n, kPiece, [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) gradients[i] = keep[i] ? gradients[i] : 0.0f;
  });
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
