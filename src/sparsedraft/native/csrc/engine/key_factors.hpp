// How large each dimension of a layer's keys is, for caches of 8 bits.
//
// A key is kept with one scale, so a few large dimensions (Qwen2's keys have biases of hundreds) would leave no bits to the others.
// Keys are therefore divided by the size of their dimensions, and queries multiplied with it: their products stay the same. Both
// dimensions of a rotary pair have the larger size of the two, so that dividing and turning commute.
#pragma once

#include <vector>

#include "engine/linear.hpp"
#include "engine/model.hpp"

namespace sparsedraft {

// [key heads, head_dim]: the root mean square of a dimension over normed inputs, sqrt(bias^2 + sum over j of (W[i, j] norm[j])^2),
// estimated by products with inputs of random signs; with a norm of keys, its weight. In units of a head's largest, and, as rows may
// be all zeros, at least kLeastKeyFactor.
std::vector<float> key_factors(const Layer& layer, const Config& config, const Kernels& kernels, Pool& pool);

constexpr float kLeastKeyFactor = 1e-3f;

}  // namespace sparsedraft
