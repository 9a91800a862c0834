#include "bindings/bindings.hpp"
#include "engine/pool.hpp"

using namespace sparsedraft;

NB_MODULE(_native, m) {
  nb::class_<Pool>(m, "Pool")
      .def(
          "__init__",
          [](Pool* self, int threads) {
            require(threads >= 1 && threads <= 256, "threads must be from 1 to 256");
            new (self) Pool(threads);
          },
          "threads"_a)
      .def_prop_ro("threads", &Pool::threads);
  bind_matrix(m);
  bind_model(m);
  bind_session(m);
  bind_kernels(m);
}
