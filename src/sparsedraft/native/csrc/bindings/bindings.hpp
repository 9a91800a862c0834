// bindings/: the Python module sparsedraft.native._native. READ THIS FIRST.
//
// Arrays come in and go out as raw buffers; names of types and layouts are strings. Nothing is computed here.
//
// Read in this order:
//   bindings.hpp       types that the files share (this file)
//   module.cpp         the module: threads, then the parts below
//   bind_matrix.cpp    a matrix from values, and from the fields that a file keeps
//   bind_model.cpp     a model from its config, its matrices and its vectors
//   bind_session.cpp   sequences of a model: logits, drafts, roll-backs
//   bind_kernels.cpp   kernels one by one, for tests and benchmarks
//   bind_training.cpp  the optimizer of fine-tuning
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>

#include "layout/matrix.hpp"

namespace sparsedraft {

namespace nb = nanobind;
using namespace nb::literals;

using Raw = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;  // of any type: 16-bit values come as int16
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Halves = nb::ndarray<const uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;  // float16, bit by bit
using FloatRows = nb::ndarray<nb::numpy, float, nb::ndim<2>>;  // what functions return

inline FloatRows owned(std::unique_ptr<float[]> data, size_t rows, size_t columns) {
  float* p = data.release();
  nb::capsule owner(p, [](void* q) noexcept { delete[] static_cast<float*>(q); });
  return FloatRows(p, {rows, columns}, owner);
}

inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// The type named f32, f16, bf16, i8 or i4; std::invalid_argument for another name.
Values values_named(const std::string& name);
// std::invalid_argument unless `array` is a matrix whose elements have the size of `type`.
void check_type(const Raw& array, Values type);

void bind_matrix(nb::module_& m);
void bind_model(nb::module_& m);
void bind_session(nb::module_& m);
void bind_kernels(nb::module_& m);
void bind_training(nb::module_& m);

}  // namespace sparsedraft
