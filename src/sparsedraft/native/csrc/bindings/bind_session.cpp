// Sessions: see bindings.hpp.
#include <algorithm>
#include <atomic>

#include "bindings/bindings.hpp"
#include "engine/session.hpp"

namespace sparsedraft {
namespace {

using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Marks = nb::ndarray<const bool, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A session that one thread uses at a time; a second one gets an error instead of damaged caches.
class GuardedSession {
 public:
  GuardedSession(std::shared_ptr<Model> model, std::shared_ptr<Pool> pool, int sequences, std::optional<std::string> name)
      : session_(std::move(model), std::move(pool), sequences, kernels(name ? name->c_str() : nullptr)) {}

  FloatRows forward(std::vector<std::vector<int64_t>> ids, const std::vector<int>& logits,
                    std::optional<std::vector<int32_t>> parents) {
    const Use use(busy_);
    int total = 0;
    for (const int count : logits) total += count;
    std::unique_ptr<float[]> data;
    {
      nb::gil_scoped_release release;
      data = session_.forward(std::move(ids), logits, parents ? &*parents : nullptr);
    }
    return owned(std::move(data), total, session_.head_rows());
  }
  std::vector<std::vector<int64_t>> draft(std::vector<std::vector<int64_t>> ids, const std::vector<int>& counts,
                                          std::optional<Ids> map, const std::vector<Marks>& looks) {
    const Use use(busy_);
    require(!map || map->size() == session_.head_rows(), "there must be an id for each row of the head");
    std::vector<const bool*> marks;
    for (const Marks& each : looks) {
      require(each.size() == session_.head_rows(), "there must be a mark for each row of the head");
      marks.push_back(each.data());
    }
    nb::gil_scoped_release release;
    return session_.draft(std::move(ids), counts, map ? map->data() : nullptr, marks);
  }
  void rollback(const std::vector<size_t>& lengths) {
    const Use use(busy_);
    session_.rollback(lengths);
  }
  void keep(size_t length, const std::vector<int32_t>& nodes) {
    const Use use(busy_);
    session_.keep(length, nodes);
  }
  void select(const std::vector<size_t>& which) {
    const Use use(busy_);
    session_.select(which);
  }
  void use_head(const std::vector<size_t>& tiles) {
    const Use use(busy_);
    session_.use_head(tiles);
  }
  std::vector<size_t> lengths() const { return session_.lengths(); }

 private:
  struct Use {
    std::atomic<bool>& busy;
    explicit Use(std::atomic<bool>& b) : busy(b) {
      if (busy.exchange(true)) throw std::runtime_error("an engine belongs to one thread at a time: make one for each");
    }
    ~Use() { busy = false; }
  };
  Session session_;
  std::atomic<bool> busy_{false};
};

}  // namespace

void bind_session(nb::module_& m) {
  nb::class_<GuardedSession>(m, "Session")
      .def(nb::init<std::shared_ptr<Model>, std::shared_ptr<Pool>, int, std::optional<std::string>>(), "model"_a, "pool"_a,
           "sequences"_a = 1, "kernels"_a = nb::none())
      .def("forward", &GuardedSession::forward, "ids"_a, "logits"_a, "parents"_a = nb::none())
      .def("draft", &GuardedSession::draft, "ids"_a, "counts"_a, "map"_a = nb::none(),
           "looks"_a = std::vector<Marks>())
      .def("rollback", &GuardedSession::rollback, "lengths"_a)
      .def("keep", &GuardedSession::keep, "length"_a, "nodes"_a)
      .def("select", &GuardedSession::select, "which"_a)
      .def("use_head", &GuardedSession::use_head, "tiles"_a)
      .def_prop_ro("lengths", &GuardedSession::lengths);
}

}  // namespace sparsedraft
