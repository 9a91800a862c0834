// The Python module sparsedraft.runtime._native: raw buffers in, raw buffers out.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "engine.hpp"
#include "kept.hpp"
#include "relay.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace sparsedraft;

namespace {

using Raw = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr const char* kValues[] = {"f32", "f16", "bf16", "i8"};                           // in the order of Values
constexpr const char* kLayouts[] = {"dense", "2:4", "N:8", "bitmask", "window"};  // in the order of Layout

Values values_named(const std::string& name) {
  for (int i = 0; i < 4; ++i)
    if (name == kValues[i]) return static_cast<Values>(i);
  throw std::invalid_argument("values are f32, f16, bf16 or i8, not " + name);
}

Layout layout_named(const std::string& name) {
  for (int i = 0; i < 5; ++i)
    if (name == kLayouts[i]) return static_cast<Layout>(i);
  throw std::invalid_argument("no layout is named " + name);
}

// 16-bit values come as int16, whatever they mean: numpy has no bfloat16.
void check_type(const Raw& array, Values type) {
  if (array.ndim() != 2 || array.itemsize() != size_of(type)) throw std::invalid_argument("values must be a matrix of the type that is named");
}

std::shared_ptr<Matrix> make_matrix(const Raw& values, const std::string& type, const std::string& layout, int n, std::optional<Floats> scale) {
  const Values v = values_named(type);
  check_type(values, v);
  if (scale && scale->size() != values.shape(0)) throw std::invalid_argument("there must be one scale for each row");
  const void* data = values.data();
  const float* scales = scale ? scale->data() : nullptr;
  const size_t rows = values.shape(0), columns = values.shape(1);
  nb::gil_scoped_release release;
  return std::make_shared<Matrix>(relay(data, v, rows, columns, layout_named(layout), n, scales));
}

// What a matrix is made of, to be kept and mapped again: see matrix_of. The stream's memory is the matrix's own.
nb::dict parts_of(const std::shared_ptr<Matrix>& m) {
  nb::dict d;
  d["rows"] = m->rows, d["columns"] = m->columns, d["layout"] = kLayouts[static_cast<int>(m->layout)];
  d["values"] = kValues[static_cast<int>(m->values)];
  d["n"] = m->n, d["tiles"] = m->tiles, d["order"] = m->order, d["scale"] = m->scale;
  d["stream"] = nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(m->stream.data(), {m->stream.size()}, nb::cast(m));
  return d;
}

// The other way round. `stream` is read where it lies, on a cache line's beginning; ValueError for what relay never made.
std::shared_ptr<Matrix> matrix_of(const nb::dict& d, const nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>& stream) {
  auto m = std::make_shared<Matrix>();
  m->rows = nb::cast<size_t>(d["rows"]), m->columns = nb::cast<size_t>(d["columns"]);
  m->layout = layout_named(nb::cast<std::string>(d["layout"])), m->values = values_named(nb::cast<std::string>(d["values"]));
  m->n = nb::cast<int>(d["n"]);
  m->tiles = nb::cast<std::vector<size_t>>(d["tiles"]), m->order = nb::cast<std::vector<int32_t>>(d["order"]);
  m->scale = nb::cast<std::vector<float>>(d["scale"]);
  if (reinterpret_cast<uintptr_t>(stream.data()) % 64) throw std::invalid_argument("a stream must begin on a cache line");
  m->stream = Bytes(stream.data(), stream.size());
  nb::gil_scoped_release release;
  check(*m);
  return m;
}

std::vector<float> floats(nb::handle h) {
  if (h.is_none()) return {};
  const auto a = nb::cast<Floats>(h);
  return {a.data(), a.data() + a.size()};
}

template <class T>
T field(const nb::dict& d, const char* key) {
  return nb::cast<T>(d[key]);
}

std::shared_ptr<Model> make_model(const nb::dict& config, const Raw& embedding, const std::string& embedding_type, std::optional<Floats> embedding_scale,
                                  const nb::list& layers, const Floats& final_norm, std::shared_ptr<Matrix> head) {
  auto model = std::make_shared<Model>();
  Config& c = model->config;
  c.hidden = field<size_t>(config, "hidden"), c.heads = field<size_t>(config, "heads"), c.kv_heads = field<size_t>(config, "kv_heads");
  c.head_dim = field<size_t>(config, "head_dim"), c.intermediate = field<size_t>(config, "intermediate");
  c.max_length = field<size_t>(config, "max_length");
  c.eps = field<float>(config, "eps"), c.attention_scale = field<float>(config, "attention_scale");
  c.embedding_scale = field<float>(config, "embedding_scale"), c.softcap = field<float>(config, "softcap");
  c.gelu = field<bool>(config, "gelu"), c.norm_one_more = field<bool>(config, "norm_one_more");
  for (nb::handle h : nb::cast<nb::list>(config["inv_freq"])) c.inv_freq.push_back(floats(h));
  c.rope_scaling = field<std::vector<float>>(config, "rope_scaling");
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
  };
  require(c.heads && c.kv_heads && c.heads % c.kv_heads == 0, "heads must be a multiple of the key-value heads");
  require(c.head_dim && c.head_dim % 2 == 0, "head_dim must be even");
  require(!c.inv_freq.empty() && c.inv_freq.size() == c.rope_scaling.size(), "each rotary embedding needs its scaling");
  for (const auto& f : c.inv_freq) require(f.size() == c.head_dim / 2, "inv_freq must be [head_dim / 2]");
  Table& table = model->embedding;
  table.values = values_named(embedding_type);
  check_type(embedding, table.values);
  table.rows = embedding.shape(0), table.columns = embedding.shape(1);
  require(table.columns == c.hidden, "the embedding must have the hidden size");
  if (embedding_scale) table.scale = {embedding_scale->data(), embedding_scale->data() + embedding_scale->size()};
  require(table.values != Values::i8 || table.scale.size() == table.rows, "an embedding of int8 needs a scale for each row");
  table.bytes = Bytes(static_cast<const uint8_t*>(embedding.data()), embedding.nbytes());  // kept alive by the module's function
  c.vocabulary = table.rows;
  const auto norm = [&](const nb::dict& d, const char* key, size_t size, bool optional) {
    std::vector<float> found = floats(d[key]);
    require(found.size() == size || (optional && found.empty()), key);
    return found;
  };
  for (nb::handle h : layers) {
    const auto d = nb::cast<nb::dict>(h);
    Layer l;
    const size_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    const auto matrix = [&](const char* key, size_t rows, size_t columns) {
      auto m = nb::cast<std::shared_ptr<Matrix>>(d[key]);
      require(m && m->rows == rows && m->columns == columns, key);
      return std::shared_ptr<const Matrix>(m);
    };
    l.q = matrix("q", q, c.hidden), l.k = matrix("k", kv, c.hidden), l.v = matrix("v", kv, c.hidden), l.o = matrix("o", c.hidden, q);
    l.gate = matrix("gate", c.intermediate, c.hidden), l.up = matrix("up", c.intermediate, c.hidden);
    l.down = matrix("down", c.hidden, c.intermediate);
    l.q_bias = norm(d, "q_bias", q, true), l.k_bias = norm(d, "k_bias", kv, true), l.v_bias = norm(d, "v_bias", kv, true);
    l.o_bias = norm(d, "o_bias", c.hidden, true);
    l.input_norm = norm(d, "input_norm", c.hidden, false), l.attention_norm = norm(d, "attention_norm", c.hidden, false);
    l.after_attention = norm(d, "after_attention", c.hidden, true), l.after_mlp = norm(d, "after_mlp", c.hidden, true);
    l.q_norm = norm(d, "q_norm", c.head_dim, true), l.k_norm = norm(d, "k_norm", c.head_dim, true);
    l.window = field<int>(d, "window"), l.rope = field<int>(d, "rope");
    require(l.rope >= 0 && static_cast<size_t>(l.rope) < c.inv_freq.size(), "rope");
    model->layers.push_back(std::move(l));
  }
  model->final_norm = {final_norm.data(), final_norm.data() + final_norm.size()};
  require(model->final_norm.size() == c.hidden, "the final norm must have the hidden size");
  require(head && head->columns == c.hidden, "the head must have the hidden size");
  model->head = head;
  return model;
}

// An engine and its sequences belong to one thread at a time; a second one is told so instead of corrupting them.
class Guarded {
 public:
  Guarded(std::shared_ptr<Model> model, std::shared_ptr<Pool> pool, int rows, std::optional<std::string> name)
      : model_(model), engine_(model, std::move(pool), kernels(name ? name->c_str() : nullptr)) {
    if (rows < 1 || rows > 4096) throw std::invalid_argument("rows must be from 1 to 4096");
    for (int i = 0; i < rows; ++i) rows_.push_back(std::make_unique<Sequence>(*model));
  }

  // ids [row][tokens] (a row may get none), wanted [row]: the logits of all rows, one behind the other.
  Out forward(std::vector<std::vector<int64_t>> ids, const std::vector<int>& wanted, std::optional<std::vector<int32_t>> parents) {
    const Use use(busy_);
    if (ids.size() != rows_.size() || wanted.size() != rows_.size() || (parents && rows_.size() != 1))
      throw std::invalid_argument("there must be ids and wanted logits for each row, and trees for one");
    std::vector<Chunk> chunks;
    int total = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i].empty() && !wanted[i] && ids.size() > 1) continue;
      total += wanted[i];
      chunks.push_back({rows_[i].get(), std::move(ids[i]), wanted[i], false, {}});
    }
    if (parents) chunks[0].tree = true, chunks[0].parents = std::move(*parents);
    const size_t rows = engine_.model().head->rows, stride = engine_.logits_stride();
    std::unique_ptr<float[]> data;
    {
      nb::gil_scoped_release release;
      data.reset(new float[rows * total]);  // before anything changes: memory may not suffice
      const float* logits = chunks.empty() ? nullptr : engine_.forward(chunks);
      for (int t = 0; t < total; ++t) std::copy_n(logits + t * stride, rows, data.get() + t * rows);
    }
    return owned(std::move(data), total, rows);
  }
  void rollback(const std::vector<size_t>& lengths) {
    const Use use(busy_);
    if (lengths.size() != rows_.size()) throw std::invalid_argument("there must be a length for each row");
    for (size_t i = 0; i < lengths.size(); ++i) rows_[i]->rollback(lengths[i]);
  }
  void keep(size_t length, const std::vector<int32_t>& nodes) {
    const Use use(busy_);
    only().keep(length, nodes);
  }
  void select(const std::vector<size_t>& which) {
    const Use use(busy_);
    std::vector<bool> there(rows_.size(), true);
    for (const size_t i : which) {
      if (i >= rows_.size() || !there[i]) throw std::invalid_argument("selected rows must be there, each once");
      there[i] = false;
    }
    std::vector<std::unique_ptr<Sequence>> left(which.size());  // all is checked, and memory there, before a row moves
    for (size_t i = 0; i < which.size(); ++i) left[i] = std::move(rows_[which[i]]);
    rows_ = std::move(left);
  }
  std::vector<int64_t> draft(std::vector<int64_t> ids, int count, std::optional<Ids> map) {
    const Use use(busy_);
    if (map && map->size() != engine_.model().head->rows) throw std::invalid_argument("there must be an id for each row of the head");
    nb::gil_scoped_release release;
    return engine_.draft(only(), std::move(ids), count, map ? map->data() : nullptr);
  }
  std::vector<size_t> lengths() const {
    std::vector<size_t> out;
    for (const auto& row : rows_) out.push_back(row->length());
    return out;
  }

 private:
  struct Use {
    std::atomic<bool>& busy;
    explicit Use(std::atomic<bool>& b) : busy(b) {
      if (busy.exchange(true)) throw std::runtime_error("an engine belongs to one thread at a time: make one for each");
    }
    ~Use() { busy = false; }
  };
  Sequence& only() {
    if (rows_.size() != 1) throw std::invalid_argument("drafts and trees need an engine of one row");
    return *rows_[0];
  }
  std::shared_ptr<Model> model_;
  Engine engine_;
  std::vector<std::unique_ptr<Sequence>> rows_;
  std::atomic<bool> busy_{false};
};

}  // namespace

NB_MODULE(_native, m) {
  nb::class_<Pool>(m, "Pool")
      .def("__init__",
           [](Pool* self, int threads) {
             if (threads < 1 || threads > 256) throw std::invalid_argument("threads must be from 1 to 256");
             new (self) Pool(threads);
           },
           "threads"_a)
      .def_prop_ro("threads", &Pool::threads);
  nb::class_<Matrix>(m, "Matrix")
      .def_prop_ro("rows", [](const Matrix& x) { return x.rows; })
      .def_prop_ro("columns", [](const Matrix& x) { return x.columns; })
      .def_prop_ro("bytes", &Matrix::bytes);
  m.def("matrix", &make_matrix, "values"_a, "type"_a, "layout"_a, "n"_a = 0, "scale"_a = nb::none());
  m.def("parts_of", &parts_of, "matrix"_a);
  m.def("matrix_of", &matrix_of, "parts"_a, "stream"_a, nb::keep_alive<0, 2>());
  nb::class_<Model>(m, "Model")
      .def_prop_ro("bytes", &Model::bytes)
      .def_prop_ro("vocabulary", [](const Model& x) { return x.config.vocabulary; })
      .def_prop_ro("head_rows", [](const Model& x) { return x.head->rows; })
      .def_prop_ro("max_length", [](const Model& x) { return x.config.max_length; });
  m.def("model", &make_model, "config"_a, "embedding"_a, "embedding_type"_a, "embedding_scale"_a.none(), "layers"_a, "final_norm"_a, "head"_a,
        nb::keep_alive<0, 2>());
  bind_kernels(m);
  nb::class_<Guarded>(m, "Engine")
      .def(nb::init<std::shared_ptr<Model>, std::shared_ptr<Pool>, int, std::optional<std::string>>(), "model"_a, "pool"_a, "rows"_a = 1,
           "kernels"_a = nb::none())
      .def("forward", &Guarded::forward, "ids"_a, "wanted"_a, "parents"_a = nb::none())
      .def("rollback", &Guarded::rollback, "lengths"_a)
      .def("keep", &Guarded::keep, "length"_a, "nodes"_a)
      .def("select", &Guarded::select, "rows"_a)
      .def("draft", &Guarded::draft, "ids"_a, "count"_a, "map"_a = nb::none())
      .def_prop_ro("lengths", &Guarded::lengths);
}
