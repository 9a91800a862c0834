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

// Attention of one query [dim] to keys and values [count, dim]: [1, dim].
FloatRows attend(const Floats& query, const Floats& keys, const Floats& values, float scale, const Name& name) {
  require(query.ndim() == 1 && keys.ndim() == 2 && keys.shape(0) && keys.shape(1) == query.size(), "keys must be [count, dim]");
  require(values.ndim() == 2 && values.shape(0) == keys.shape(0) && values.shape(1) == query.size(), "values must be [count, dim]");
  std::vector<float> scores(keys.shape(0));
  auto out = std::make_unique<float[]>(query.size());
  named(name).attend(query.data(), keys.data(), values.data(), query.size(), scores.size(), scale, nullptr, scores.data(), out.get());
  return owned(std::move(out), 1, query.size());
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
  m.def("time_multiply", &time_multiply, "matrices"_a, "tokens"_a, "repeat"_a, "pool"_a, "kernels"_a = nb::none());
  m.def("attend", &attend, "query"_a, "keys"_a, "values"_a, "scale"_a, "kernels"_a = nb::none());
  m.def("rms_norm", &rms_norm, "x"_a, "weight"_a, "eps"_a, "one_more"_a = false, "kernels"_a = nb::none());
  m.def("gated", &gated, "gate"_a, "up"_a, "gelu"_a = false, "kernels"_a = nb::none());
}

}  // namespace sparsedraft
