#include "engine/session.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sparsedraft {
namespace {

// The first largest of x [n]; -1 where one is a NaN or an infinity that no softmax survives. In lanes, so that it becomes vectors.
int64_t likeliest(const float* x, size_t n) {
  constexpr size_t kLanes = 16;
  float most[kLanes];
  int32_t unsound[kLanes] = {};
  std::fill(most, most + kLanes, -INFINITY);
  const auto look = [&](size_t lane, float value) {
    most[lane] = value > most[lane] ? value : most[lane];
    unsound[lane] |= !(value < INFINITY);
  };
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) look(lane, x[i + lane]);
  for (; i < n; ++i) look(0, x[i]);
  if (std::any_of(unsound, unsound + kLanes, [](int32_t bad) { return bad != 0; })) return -1;
  return std::find(x, x + n, *std::max_element(most, most + kLanes)) - x;
}

}  // namespace

Session::Session(std::shared_ptr<const Model> model, std::shared_ptr<Pool> pool, int sequences, const Kernels& kernels)
    : model_(std::move(model)), pass_(model_, std::move(pool), kernels), head_rows_(model_->head->rows) {
  constexpr int kMost = 4096;
  if (sequences < 1 || sequences > kMost) throw std::invalid_argument("rows must be from 1 to 4096");
  for (int i = 0; i < sequences; ++i) sequences_.push_back(std::make_unique<Sequence>(*model_));
}

std::unique_ptr<float[]> Session::forward(std::vector<std::vector<int64_t>> ids, const std::vector<int>& logits,
                                          const std::vector<int32_t>* parents) {
  if (ids.size() != size() || logits.size() != size() || (parents && size() != 1))
    throw std::invalid_argument("there must be ids and wanted logits for each row, and trees for one");
  std::vector<Chunk> chunks;
  int total = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i].empty() && !logits[i] && size() > 1) continue;
    total += logits[i];
    chunks.push_back({sequences_[i].get(), std::move(ids[i]), logits[i], false, {}});
  }
  if (parents) {
    chunks[0].tree = true;
    chunks[0].parents = *parents;
  }
  const size_t rows = head_rows();
  const size_t stride = pass_.logits_stride();
  std::unique_ptr<float[]> out(new float[rows * std::max(0, total)]);  // before anything changes: memory may not suffice
  const float* found = chunks.empty() ? nullptr : pass_.run(chunks);
  for (int t = 0; t < total; ++t) copy_logits(found + t * stride, out.get() + t * rows);
  return out;
}

void Session::copy_logits(const float* found, float* out) const {
  if (pass_.head_tiles().empty()) {
    std::copy_n(found, head_rows_, out);
    return;
  }
  const Matrix& head = *model_->head;
  for (const TileRange& tiles : pass_.head_tiles()) {
    const size_t first = tiles.first * head.tile_rows(), last = std::min(tiles.last * head.tile_rows(), head.rows);
    out = std::copy(found + first, found + last, out);
  }
}

void Session::use_head(const std::vector<size_t>& tiles) {
  const Matrix& head = *model_->head;
  std::vector<TileRange> ranges;
  for (const size_t tile : tiles) {
    if (tile >= head.tile_count() || (!ranges.empty() && tile < ranges.back().last))
      throw std::invalid_argument("tiles of the head must be there, and ascend");
    if (ranges.empty() || ranges.back().last != tile) ranges.push_back({tile, tile});
    ++ranges.back().last;
  }
  head_rows_ = ranges.empty() ? head.rows : tiles.size() * head.tile_rows();
  if (!ranges.empty() && ranges.back().last == head.tile_count()) head_rows_ -= head.tile_count() * head.tile_rows() - head.rows;
  pass_.use_head(std::move(ranges));
}

std::vector<std::vector<int64_t>> Session::draft(std::vector<std::vector<int64_t>> ids, const std::vector<int>& counts,
                                                 const int64_t* map, const std::vector<const bool*>& looks) {
  if (ids.size() != size() || counts.size() != size() || (!looks.empty() && looks.size() != size()))
    throw std::invalid_argument("there must be ids and a number of drafts for each row");
  std::vector<std::vector<int64_t>> out(size());
  const size_t stride = pass_.logits_stride();
  for (;;) {
    std::vector<Chunk> chunks;
    std::vector<size_t> rows;
    for (size_t i = 0; i < size(); ++i) {
      if (std::ssize(out[i]) >= counts[i]) continue;
      chunks.push_back({sequences_[i].get(), std::move(ids[i]), 1, false, {}});
      rows.push_back(i);
    }
    if (chunks.empty()) return out;
    const float* logits = pass_.run(chunks);
    for (size_t t = 0; t < rows.size(); ++t) {
      const float* found = logits + t * stride;
      if (!pass_.head_tiles().empty()) {
        drafted_logits_.resize(head_rows_);
        copy_logits(found, drafted_logits_.data());
        if (const bool* own = looks.empty() ? nullptr : looks[rows[t]])
          for (size_t r = 0; r < head_rows_; ++r)
            if (!own[r]) drafted_logits_[r] = std::numeric_limits<float>::lowest();
        found = drafted_logits_.data();
      }
      const int64_t best = likeliest(found, head_rows_);
      out[rows[t]].push_back(best < 0 || !map ? best : map[best]);
      if (best < 0) return out;
      ids[rows[t]] = {out[rows[t]].back()};
    }
  }
}

void Session::rollback(const std::vector<size_t>& lengths) {
  if (lengths.size() != size()) throw std::invalid_argument("there must be a length for each row");
  for (size_t i = 0; i < lengths.size(); ++i) sequences_[i]->rollback(lengths[i]);
}

void Session::keep(size_t length, const std::vector<int32_t>& nodes) { only().keep(length, nodes); }

void Session::select(const std::vector<size_t>& which) {
  std::vector<bool> available(size(), true);
  for (const size_t i : which) {
    if (i >= size() || !available[i]) throw std::invalid_argument("selected rows must be there, each once");
    available[i] = false;
  }
  std::vector<std::unique_ptr<Sequence>> selected(which.size());
  for (size_t i = 0; i < which.size(); ++i) selected[i] = std::move(sequences_[which[i]]);
  sequences_ = std::move(selected);
}

std::vector<size_t> Session::lengths() const {
  std::vector<size_t> out;
  for (const auto& sequence : sequences_) out.push_back(sequence->length());
  return out;
}

Sequence& Session::only() {
  if (size() != 1) throw std::invalid_argument("trees need an engine of one row");
  return *sequences_[0];
}

}  // namespace sparsedraft
