#include "bindings/bindings.hpp"
#include "engine/pool.hpp"

using namespace sparsedraft;

NB_MODULE(_native, m) {
  nb::class_<Pool>(m, "Pool")
      .def(
          "__init__",
          [](Pool* self, int threads, uintptr_t team) {
            require(threads >= 1 && threads <= 256, "threads must be from 1 to 256");
            if (team) new (self) Pool(threads, reinterpret_cast<Pool::Team>(team));
            else new (self) Pool(threads);
          },
          "threads"_a, "team"_a = 0)  // the address of GOMP_parallel, where its threads are to work
      .def_prop_ro("threads", &Pool::threads);
  bind_matrix(m);
  bind_model(m);
  bind_session(m);
  bind_kernels(m);
  bind_training(m);
}
