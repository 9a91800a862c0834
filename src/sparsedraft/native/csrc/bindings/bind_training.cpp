// The optimizer: see bindings.hpp. Arrays are torch's, and come as addresses.
#include "bindings/bindings.hpp"
#include "training/adamw.hpp"

namespace sparsedraft {
namespace {

template <class T>
T* at(uintptr_t address) {
  require(address, "an array has no address");
  return reinterpret_cast<T*>(address);
}

}  // namespace

void bind_training(nb::module_& m) {
  m.def(
      "sum_of_squares",
      [](uintptr_t gradients, uintptr_t keep, size_t n, Pool& pool) {
        return sum_of_squares(at<const float>(gradients), at<const uint8_t>(keep), n, pool);
      },
      "gradients"_a, "keep"_a, "n"_a, "pool"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "step_kept",
      [](uintptr_t weights, uintptr_t gradients, uintptr_t keep, size_t n, uintptr_t first, uintptr_t second, double rate,
         double beta1, double beta2, double eps, double decay, int64_t step, double scale, Pool& pool) {
        require(step >= 1, "steps are counted from 1");
        step_kept(at<float>(weights), at<const float>(gradients), at<const uint8_t>(keep), n, at<float>(first), at<float>(second),
                  {rate, beta1, beta2, eps, decay, step, scale}, pool);
      },
      "weights"_a, "gradients"_a, "keep"_a, "n"_a, "first"_a, "second"_a, "rate"_a, "beta1"_a, "beta2"_a, "eps"_a, "decay"_a,
      "step"_a, "scale"_a, "pool"_a, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace sparsedraft
