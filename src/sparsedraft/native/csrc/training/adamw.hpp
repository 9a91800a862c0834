// training/: one step of AdamW on the weights that a mask keeps, in one pass over weights, gradients and mask.
//
// Moments are stored for kept weights alone, in the order of the weights. torch needs a list of their places, copies of their
// weights and gradients, and a pass over memory for each of these.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/pool.hpp"

namespace sparsedraft {

struct AdamW {
  double rate, beta1, beta2, eps, decay;
  int64_t step;  // from 1
  double scale;  // of the gradients
};

// Of the gradients [n] that `keep` [n] (0 or 1) keeps.
double sum_of_squares(const float* gradients, const uint8_t* keep, size_t n, Pool& pool);

// Updates the kept ones of `weights` [n] and their moments, as torch.optim.AdamW does; the others are not written.
void step_kept(float* weights, const float* gradients, const uint8_t* keep, size_t n, float* first, float* second, const AdamW& how,
               Pool& pool);

}  // namespace sparsedraft
