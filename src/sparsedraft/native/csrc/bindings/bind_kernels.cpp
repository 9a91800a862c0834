// Kernels one by one: see bindings.hpp.
#include <algorithm>
#include <chrono>
#include <map>

#include "bindings/bindings.hpp"
#include "engine/linear.hpp"

namespace sparsedraft {
namespace {

using Name = std::optional<std::string>;
const Kernels& named(const Name& name) { return kernels(name ? name->c_str() : nullptr); }

// y = W x for each matrix: [tokens, rows].
std::vector<FloatRows> multiply(const std::vector<std::shared_ptr<Matrix>>& matrices, const Floats& x, Pool& pool, const Name& name) {
  require(x.ndim() == 2, "x must be [tokens, columns]");
  const Kernels& k = named(name);
  const size_t tokens = x.shape(0), columns = x.shape(1);
  std::vector<FloatRows> out;
  for (const auto& m : matrices) {
    require(m && m->columns == columns, "x must have as many columns as the matrix");
    const size_t stride = padded(m->rows, kRows4);
    std::vector<float> y(stride * tokens);
    {
      nb::gil_scoped_release release;
      ActivationBuffer buffer;
      buffer.resize(columns, static_cast<int>(tokens));
      for (size_t t = 0; t < tokens; ++t) std::copy_n(x.data() + t * columns, columns, buffer.row(static_cast<int>(t)));
      multiply_all(k, pool, buffer, {{m.get(), y.data(), stride}});
    }
    auto data = std::make_unique<float[]>(m->rows * tokens);
    for (size_t t = 0; t < tokens; ++t) std::copy_n(y.data() + t * stride, m->rows, data.get() + t * m->rows);
    out.push_back(owned(std::move(data), tokens, m->rows));
  }
  return out;
}

// y = W x of several matrices side by side: x [tokens, columns] and y [tokens, all rows] at these addresses, rows behind each other.
// For callers whose arrays are not numpy's, and cost more to wrap than to multiply.
void multiply_at(const std::vector<std::shared_ptr<Matrix>>& matrices, uintptr_t x, size_t tokens, uintptr_t y, Pool& pool) {
  require(!matrices.empty() && x && y, "there must be matrices, x and y");
  thread_local ActivationBuffer buffer;
  thread_local std::vector<float> out;
  const size_t columns = matrices[0]->columns;
  size_t rows = 0, strides = 0;
  for (const auto& m : matrices) {
    require(m->columns == columns, "x must have as many columns as each matrix");
    rows += m->rows;
    strides += padded(m->rows, kRows4);
  }
  nb::gil_scoped_release release;
  buffer.resize(columns, static_cast<int>(tokens));
  for (size_t t = 0; t < tokens; ++t)
    std::copy_n(reinterpret_cast<const float*>(x) + t * columns, columns, buffer.row(static_cast<int>(t)));
  if (out.size() < strides * tokens) out.resize(strides * tokens);
  std::vector<Product> products;
  for (size_t at = 0, i = 0; i < matrices.size(); at += padded(matrices[i++]->rows, kRows4) * tokens)
    products.emplace_back(matrices[i].get(), out.data() + at, padded(matrices[i]->rows, kRows4));
  multiply_all(named({}), pool, buffer, products);
  for (size_t t = 0; t < tokens; ++t) {
    float* to = reinterpret_cast<float*>(y) + t * rows;
    for (const Product& p : products) to = std::copy_n(p.out + t * p.stride, p.matrix->rows, to);
  }
}

// Seconds of multiplying all matrices once with `tokens` tokens (their values do not matter), `repeat` times.
std::vector<double> time_multiply(const std::vector<std::shared_ptr<Matrix>>& matrices, int tokens, int repeat, Pool& pool, const Name& name) {
  const Kernels& k = named(name);
  std::map<size_t, ActivationBuffer> inputs;  // by columns
  size_t widest = 0;
  for (const auto& m : matrices) {
    widest = std::max(widest, padded(m->rows, kRows4));
    ActivationBuffer& x = inputs[m->columns];
    x.resize(m->columns, tokens);
    for (int t = 0; t < tokens; ++t)
      for (size_t c = 0; c < m->columns; ++c) x.row(t)[c] = static_cast<float>((t * x.stride() + c) % 17) - 8.0f;
  }
  std::vector<float> y(widest * tokens);
  nb::gil_scoped_release release;
  std::vector<double> seconds;
  for (int i = 0; i < repeat; ++i) {
    const auto start = std::chrono::steady_clock::now();
    for (const auto& m : matrices) multiply_all(k, pool, inputs[m->columns], {{m.get(), y.data(), padded(m->rows, kRows4)}});
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return seconds;
}

// Attention of queries [queries, dim] to keys and values [count, dim], of which query r sees those from begin[r] to end[r], at least
// one; neither falls from one query to the next: [queries, dim]. `bits`: of the integers that keys and values are rounded to.
FloatRows attend(const Floats& queries, const Floats& keys, const Floats& values, float scale, const std::vector<int32_t>& begin,
                 const std::vector<int32_t>& end, const Name& name, int bits) {
  require(bits == 16 || bits == 8, "keys and values have 16 or 8 bits");
  require(queries.ndim() == 2 && keys.ndim() == 2 && keys.shape(1) == queries.shape(1), "keys must be [count, dim]");
  require(values.ndim() == 2 && values.shape(0) == keys.shape(0) && values.shape(1) == keys.shape(1), "values must be [count, dim]");
  const size_t rows = queries.shape(0), count = keys.shape(0), dim = keys.shape(1);
  require(rows && rows <= kMostQueries && begin.size() == rows && end.size() == rows, "there must be 1 to 64 queries, and what each sees");
  for (size_t r = 0; r < rows; ++r)
    require(begin[r] >= 0 && begin[r] < end[r] && static_cast<size_t>(end[r]) <= count &&
                (!r || (begin[r] >= begin[r - 1] && end[r] >= end[r - 1])), "what a query sees must be there, and not fall");
  const KeyBlockShape shape(dim, bits);
  LineBytes wide(KeyBlockShape(dim).bytes()), blocks(padded(count, kKeyBlock) / kKeyBlock * shape.bytes());
  for (size_t t = 0; t < count; ++t) store_token(shape, keys.data() + t * dim, values.data() + t * dim, blocks.data(), t);
  std::vector<int16_t> words(rows * 2 * shape.pairs);
  std::vector<float> scales(rows), found(rows * shape.width);
  for (size_t r = 0; r < rows; ++r)
    scales[r] = to_key_words(queries.data() + r * dim, dim, words.data() + r * 2 * shape.pairs) * (scale * kLog2E);
  named(name).attend({&shape, blocks.data(), nullptr, count, bits == 8 ? wide.data() : nullptr}, {words.data(), 2 * shape.pairs, scales.data(), begin.data(), end.data(),
                     static_cast<int>(rows)}, found.data());
  auto out = std::make_unique<float[]>(rows * dim);
  for (size_t r = 0; r < rows; ++r) std::copy_n(found.data() + r * shape.width, dim, out.get() + r * dim);
  return owned(std::move(out), rows, dim);
}

FloatRows rms_norm(const Floats& x, const Floats& weight, float eps, bool one_more, const Name& name) {
  require(x.size() && x.size() == weight.size(), "there must be as many weights as values");
  auto out = std::make_unique<float[]>(x.size());
  named(name).rms_norm(x.data(), weight.data(), eps, one_more, out.get(), x.size());
  return owned(std::move(out), 1, x.size());
}

FloatRows gated(const Floats& gate, const Floats& up, bool gelu, const Name& name) {
  require(gate.size() == up.size(), "gate and up must have the same size");
  auto out = std::make_unique<float[]>(gate.size());
  std::copy_n(gate.data(), gate.size(), out.get());
  named(name).gated(out.get(), up.data(), gate.size(), gelu);
  return owned(std::move(out), 1, gate.size());
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.def("kernels", [](const Name& name) { return std::string(named(name).name); }, "name"_a = nb::none());
  m.def("names", [] {
    std::vector<std::string> names;
    for (const Kernels* k : available()) names.emplace_back(k->name);
    return names;
  });
  m.def("multiply", &multiply, "matrices"_a, "x"_a, "pool"_a, "kernels"_a = nb::none());
  m.def("multiply_at", &multiply_at, "matrices"_a, "x"_a, "tokens"_a, "y"_a, "pool"_a);
  m.def("time_multiply", &time_multiply, "matrices"_a, "tokens"_a, "repeat"_a, "pool"_a, "kernels"_a = nb::none());
  m.def("attend", &attend, "queries"_a, "keys"_a, "values"_a, "scale"_a, "begin"_a, "end"_a, "kernels"_a = nb::none(),
        "bits"_a = 16);
  m.def("rms_norm", &rms_norm, "x"_a, "weight"_a, "eps"_a, "one_more"_a = false, "kernels"_a = nb::none());
  m.def("gated", &gated, "gate"_a, "up"_a, "gelu"_a = false, "kernels"_a = nb::none());
}

}  // namespace sparsedraft
