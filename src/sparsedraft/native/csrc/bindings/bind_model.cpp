// Models: see bindings.hpp.
#include "bindings/bindings.hpp"
#include "engine/key_factors.hpp"
#include "engine/model.hpp"
#include "layout/blocks.hpp"

namespace sparsedraft {
namespace {

template <class T>
T field(const nb::dict& d, const char* key) {
  return nb::cast<T>(d[key]);
}

// The floats of an array; none for None.
std::vector<float> floats(nb::handle h) {
  if (h.is_none()) return {};
  const auto a = nb::cast<Floats>(h);
  return {a.data(), a.data() + a.size()};
}

Config read_config(const nb::dict& d) {
  Config c;
  c.hidden = field<size_t>(d, "hidden");
  c.heads = field<size_t>(d, "heads");
  c.kv_heads = field<size_t>(d, "kv_heads");
  c.head_dim = field<size_t>(d, "head_dim");
  c.intermediate = field<size_t>(d, "intermediate");
  c.max_length = field<size_t>(d, "max_length");
  c.eps = field<float>(d, "eps");
  c.attention_scale = field<float>(d, "attention_scale");
  c.embedding_scale = field<float>(d, "embedding_scale");
  c.softcap = field<float>(d, "softcap");
  c.cache_bits = field<int>(d, "cache_bits");
  require(c.cache_bits == 16 || c.cache_bits == 8, "keys and values have 16 or 8 bits");
  c.fine_inputs = field<bool>(d, "fine_inputs");
  c.gelu = field<bool>(d, "gelu");
  c.norm_one_more = field<bool>(d, "norm_one_more");
  for (nb::handle h : nb::cast<nb::list>(d["inv_freq"])) c.inv_freq.push_back(floats(h));
  c.rope_scaling = field<std::vector<float>>(d, "rope_scaling");
  require(c.heads && c.kv_heads && c.heads % c.kv_heads == 0, "heads must be a multiple of the key-value heads");
  require(c.head_dim && c.head_dim % 2 == 0, "head_dim must be even");
  require(!c.inv_freq.empty() && c.inv_freq.size() == c.rope_scaling.size(), "each rotary embedding needs its scaling");
  for (const auto& f : c.inv_freq) require(f.size() == c.head_dim / 2, "inv_freq must be [head_dim / 2]");
  return c;
}

// The matrix `key` of a layer [rows, columns].
std::shared_ptr<const Matrix> matrix_of(const nb::dict& d, const char* key, size_t rows, size_t columns) {
  auto m = nb::cast<std::shared_ptr<Matrix>>(d[key]);
  require(m && m->rows == rows && m->columns == columns, key);
  return m;
}

// The vector `key` of a layer [size].
std::vector<float> vector_of(const nb::dict& d, const char* key, size_t size) {
  std::vector<float> out = floats(d[key]);
  require(out.size() == size, key);
  return out;
}

// The same; empty where there is none.
std::vector<float> optional_vector(const nb::dict& d, const char* key, size_t size) {
  return d[key].is_none() ? std::vector<float>{} : vector_of(d, key, size);
}

// Borrows the bytes of the array `values`; `scale` [rows] is that of int8, `groups` [rows, groups] float16 of int4, each of `group`
// inputs. The codes of int4 are bytes [rows, columns / 2].
EmbeddingTable read_embedding(const nb::dict& d, const Config& c) {
  EmbeddingTable table;
  const auto array = field<Raw>(d, "values");
  table.values = values_named(field<std::string>(d, "type"));
  check_type(array, table.values);
  table.rows = array.shape(0);
  table.columns = c.hidden;
  require(!is_blocks(table.values) || c.hidden % block_type(table.values).inputs == 0, "rows must be whole blocks");
  require(array.shape(1) * array.itemsize() == table.row_bytes(), "the embedding must have the hidden size");
  if (table.values == Values::i8) {
    table.scale = floats(d["scale"]);
    require(table.scale.size() == table.rows, "an embedding of int8 needs a scale for each row");
  }
  if (table.values == Values::i4) {
    const auto groups = field<Halves>(d, "groups");
    table.group = field<size_t>(d, "group");
    require(table.group && groups.shape(0) == table.rows && groups.shape(1) == padded(c.hidden, table.group) / table.group,
            "an embedding of int4 needs a scale for each group of each row");
    table.halves = {groups.data(), groups.data() + groups.size()};
  }
  table.bytes = Bytes(static_cast<const uint8_t*>(array.data()), array.nbytes());
  return table;
}

Layer read_layer(const nb::dict& d, const Config& c) {
  const size_t q = c.heads * c.head_dim;
  const size_t kv = c.kv_heads * c.head_dim;
  Layer l;
  l.q = matrix_of(d, "q", q, c.hidden);
  l.k = matrix_of(d, "k", kv, c.hidden);
  l.v = matrix_of(d, "v", kv, c.hidden);
  l.o = matrix_of(d, "o", c.hidden, q);
  l.gate = matrix_of(d, "gate", c.intermediate, c.hidden);
  l.up = matrix_of(d, "up", c.intermediate, c.hidden);
  l.down = matrix_of(d, "down", c.hidden, c.intermediate);
  l.q_bias = optional_vector(d, "q_bias", q);
  l.k_bias = optional_vector(d, "k_bias", kv);
  l.v_bias = optional_vector(d, "v_bias", kv);
  l.o_bias = optional_vector(d, "o_bias", c.hidden);
  l.input_norm = vector_of(d, "input_norm", c.hidden);
  l.attention_norm = vector_of(d, "attention_norm", c.hidden);
  l.after_attention = optional_vector(d, "after_attention", c.hidden);
  l.after_mlp = optional_vector(d, "after_mlp", c.hidden);
  l.q_norm = optional_vector(d, "q_norm", c.head_dim);
  l.k_norm = optional_vector(d, "k_norm", c.head_dim);
  l.window = field<int>(d, "window");
  l.rope = field<int>(d, "rope");
  require(l.rope >= 0 && static_cast<size_t>(l.rope) < c.inv_freq.size(), "rope");
  return l;
}

std::shared_ptr<Model> model(const nb::dict& config, const nb::dict& embedding, const nb::list& layers, const Floats& final_norm,
                             std::shared_ptr<Matrix> head) {
  auto m = std::make_shared<Model>();
  m->config = read_config(config);
  m->embedding = read_embedding(embedding, m->config);
  m->config.vocabulary = m->embedding.rows;
  for (nb::handle h : layers) m->layers.push_back(read_layer(nb::cast<nb::dict>(h), m->config));
  if (m->config.cache_bits == 8) {
    Pool pool(1);
    for (Layer& layer : m->layers) layer.key_factors = key_factors(layer, m->config, kernels(), pool);
  }
  m->final_norm = {final_norm.data(), final_norm.data() + final_norm.size()};
  require(m->final_norm.size() == m->config.hidden, "the final norm must have the hidden size");
  require(head && head->columns == m->config.hidden, "the head must have the hidden size");
  m->head = head;
  return m;
}

}  // namespace

void bind_model(nb::module_& m) {
  nb::class_<Model>(m, "Model")
      .def_prop_ro("bytes", &Model::bytes)
      .def_prop_ro("vocabulary", [](const Model& x) { return x.config.vocabulary; })
      .def_prop_ro("head_rows", [](const Model& x) { return x.head->rows; })
      .def_prop_ro("head_tile", [](const Model& x) { return x.head->tile_rows(); })
      .def_prop_ro("max_length", [](const Model& x) { return x.config.max_length; });
  m.def("model", &model, "config"_a, "embedding"_a, "layers"_a, "final_norm"_a, "head"_a,
        nb::keep_alive<0, 2>());  // the embedding's bytes are borrowed
}

}  // namespace sparsedraft
