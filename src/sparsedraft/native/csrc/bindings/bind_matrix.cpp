// Matrices: see bindings.hpp.
#include "bindings/bindings.hpp"
#include "layout/blocks.hpp"
#include "layout/check.hpp"
#include "layout/lay_out.hpp"

namespace sparsedraft {
namespace {

// in the order of Values
constexpr const char* kValues[] = {"f32", "f16", "bf16", "i8", "i4", "q8_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"};
constexpr const char* kLayouts[] = {"dense", "2:4", "N:8", "bitmask", "window"};  // in the order of Layout

using Stream = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Layout layout_named(const std::string& name) {
  for (size_t i = 0; i < std::size(kLayouts); ++i)
    if (name == kLayouts[i]) return static_cast<Layout>(i);
  throw std::invalid_argument("no layout is named " + name);
}

// GGUF's types come as bytes [rows, those of a row's blocks].
void check_blocks(const Raw& values, Values type, size_t columns) {
  if (!is_blocks(type)) return;
  const BlockType t = block_type(type);
  require(columns % t.inputs == 0 && values.shape(1) == row_bytes(t, columns), "a row must be whole blocks");
}

// How many weights of these blocks are not zero.
size_t nonzero_of(const Raw& values, const std::string& type, size_t columns) {
  const Values blocks = values_named(type);
  check_type(values, blocks);
  require(is_blocks(blocks), "no type of blocks");
  check_blocks(values, blocks, columns);
  const size_t rows = values.shape(0);
  nb::gil_scoped_release release;
  return nonzero_of_blocks(blocks, static_cast<const uint8_t*>(values.data()), rows, columns);
}

// `scale`: [rows] of int8. `groups`: float16 scales of int4 [rows, groups], each of `group` inputs. `activations`: bits of the inputs
// that int8 is multiplied with. `columns`: of int4 where two codes lie in a byte (0: they do not), and of GGUF's blocks.
std::shared_ptr<Matrix> matrix(const Raw& values, const std::string& type, const std::string& layout, int n,
                               std::optional<Floats> scale, std::optional<Halves> groups, size_t group, int activations,
                               size_t columns) {
  RowMajor m;
  m.type = values_named(type);
  check_type(values, m.type);
  m.values = values.data();
  m.rows = values.shape(0);
  m.columns = columns ? columns : values.shape(1);
  m.nibbles = columns > 0 && m.type == Values::i4;
  require(!columns || m.nibbles || is_blocks(m.type), "only int4 and GGUF's types have columns of their own");
  require(!m.nibbles || values.shape(1) == (columns + 1) / 2, "two codes of int4 lie in each byte");
  check_blocks(values, m.type, m.columns);
  require(!scale || scale->size() == m.rows, "there must be one scale for each row");
  require(!groups || (group && groups->shape(0) == m.rows && groups->shape(1) == padded(m.columns, group) / group),
          "there must be one scale for each group of each row");
  m.scale = scale ? scale->data() : nullptr;
  m.halves = groups ? groups->data() : nullptr;
  m.group = group;
  m.activations = activations;
  nb::gil_scoped_release release;
  return std::make_shared<Matrix>(lay_out(m, layout_named(layout), n));
}

// The fields of a matrix, for a file: see matrix_of. The stream is the matrix's own memory.
nb::dict parts_of(const std::shared_ptr<Matrix>& m) {
  nb::dict d;
  d["rows"] = m->rows;
  d["columns"] = m->columns;
  d["layout"] = kLayouts[static_cast<int>(m->layout)];
  d["values"] = kValues[static_cast<int>(m->values)];
  d["n"] = m->n;
  d["group"] = m->group;
  d["activations"] = m->activations;
  d["tiles"] = m->tiles;
  d["order"] = m->order;
  d["scale"] = m->scale;
  d["stream"] = nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(m->stream.data(), {m->stream.size()}, nb::cast(m));
  return d;
}

// The matrix of these fields. Its `stream` is read where it lies, from the beginning of a cache line on, and must outlive it.
// std::invalid_argument for what lay_out would not make.
std::shared_ptr<Matrix> matrix_of(const nb::dict& d, const Stream& stream) {
  auto m = std::make_shared<Matrix>();
  m->rows = nb::cast<size_t>(d["rows"]);
  m->columns = nb::cast<size_t>(d["columns"]);
  m->layout = layout_named(nb::cast<std::string>(d["layout"]));
  m->values = values_named(nb::cast<std::string>(d["values"]));
  m->n = nb::cast<int>(d["n"]);
  m->group = nb::cast<size_t>(d["group"]);
  m->activations = nb::cast<int>(d["activations"]);
  m->tiles = nb::cast<std::vector<size_t>>(d["tiles"]);
  m->order = nb::cast<std::vector<int32_t>>(d["order"]);
  m->scale = nb::cast<std::vector<float>>(d["scale"]);
  require(reinterpret_cast<uintptr_t>(stream.data()) % kCacheLine == 0, "a stream must begin on a cache line");
  m->stream = Bytes(stream.data(), stream.size());
  nb::gil_scoped_release release;
  check(*m);
  return m;
}

}  // namespace

Values values_named(const std::string& name) {
  for (size_t i = 0; i < std::size(kValues); ++i)
    if (name == kValues[i]) return static_cast<Values>(i);
  throw std::invalid_argument("values are f32, f16, bf16, i8, i4 or a type of GGUF files, not " + name);
}

void check_type(const Raw& array, Values type) {
  require(array.ndim() == 2 && array.itemsize() == size_of(type), "values must be a matrix of the type that is named");
}

void bind_matrix(nb::module_& m) {
  nb::class_<Matrix>(m, "Matrix")
      .def_prop_ro("rows", [](const Matrix& x) { return x.rows; })
      .def_prop_ro("columns", [](const Matrix& x) { return x.columns; })
      .def_prop_ro("bytes", &Matrix::bytes);
  m.def("matrix", &matrix, "values"_a, "type"_a, "layout"_a, "n"_a = 0, "scale"_a = nb::none(), "groups"_a = nb::none(),
        "group"_a = 0, "activations"_a = 16, "columns"_a = 0);
  m.def("nonzero_of_blocks", &nonzero_of, "values"_a, "type"_a, "columns"_a);
  m.def("parts_of", &parts_of, "matrix"_a);
  m.def("matrix_of", &matrix_of, "parts"_a, "stream"_a, nb::keep_alive<0, 2>());
}

}  // namespace sparsedraft
