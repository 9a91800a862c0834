// What the files of the Python module share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>

namespace sparsedraft {

using Floats = nanobind::ndarray<const float, nanobind::c_contig, nanobind::device::cpu>;
using Out = nanobind::ndarray<nanobind::numpy, float, nanobind::ndim<2>>;

inline Out owned(std::unique_ptr<float[]> data, size_t rows, size_t columns) {
  float* p = data.release();
  nanobind::capsule owner(p, [](void* q) noexcept { delete[] static_cast<float*>(q); });
  return Out(p, {rows, columns}, owner);
}

// The kernels one by one, for tests and benchmarks: which there are, products, and what attention and norms compute.
void bind_kernels(nanobind::module_& m);

}  // namespace sparsedraft
