#include "engine/attention.hpp"

#include <algorithm>
#include <limits>

namespace sparsedraft {
namespace {

// One behind the last of the tokens from `first` on that one job may read together: they see the same keys, but for the newest.
size_t end_of_run(const std::vector<Token>& tokens, size_t first) {
  size_t last = first + 1;
  if (!tokens[first].path.empty()) return last;
  while (last < tokens.size() && tokens[last].sequence == tokens[first].sequence && tokens[last].path.empty()) ++last;
  return last;
}

size_t divided(size_t a, size_t b) { return (a + b - 1) / b; }

}  // namespace

std::vector<AttentionJob> attention_jobs(const std::vector<Token>& tokens, const Config& config, int threads) {
  constexpr size_t kTile = 8;  // queries that kernels take at once: as many tokens make whole tiles, however many heads there are
  const size_t sharing = config.heads / config.kv_heads;  // heads that read the same keys
  const size_t pieces = static_cast<size_t>(threads) * (tokens.size() > 1 ? 2 : 1);
  size_t most = std::max<size_t>(1, kMostQueries / sharing);  // tokens
  if (most > kTile) most -= most % kTile;
  const size_t step = std::clamp<size_t>(tokens.size() * config.kv_heads / pieces, 1, most);
  // few tokens: the heads that share keys are divided among the threads, too
  const size_t parts = std::min(sharing, divided(threads, divided(tokens.size(), step) * config.kv_heads));
  const size_t heads = std::min<size_t>(divided(sharing, parts), kMostQueries);
  std::vector<AttentionJob> jobs;
  for (size_t begin = 0; begin < tokens.size();) {
    const size_t end = end_of_run(tokens, begin);
    for (size_t first = begin; first < end; first += step)
      for (size_t h = 0; h < config.heads; h += sharing)
        for (size_t i = 0; i < sharing; i += heads)
          jobs.push_back({first, std::min(first + step, end), h + i, std::min(heads, sharing - i)});
    begin = end;
  }
  return jobs;
}

void AttentionQueries::begin(const AttentionJob& job, const std::vector<Token>& tokens, const Config& config, int window) {
  const KeyBlockShape shape(config.head_dim);
  token_ = &tokens[job.first];
  dim_ = config.head_dim;
  stride_ = 2 * shape.pairs;
  width_ = shape.width;
  score_scale_ = config.attention_scale * kLog2E;
  begin_.clear();
  end_.clear();
  scales_.clear();
  for (size_t t = job.first; t < job.last; ++t) {
    const size_t end = tokens[t].position + 1;
    const size_t seen = window ? std::min<size_t>(window, end) : end;
    begin_.insert(begin_.end(), job.heads, static_cast<int32_t>(end - seen));
    end_.insert(end_.end(), job.heads, static_cast<int32_t>(end));
  }
  words_.assign(begin_.size() * stride_, 0);
  out_.resize(begin_.size() * width_);
}

void AttentionQueries::add(const float* query) {
  scales_.push_back(to_key_words(query, dim_, words_.data() + scales_.size() * stride_) * score_scale_);
}

// All keys and values of the first token's sequence; where it is a tree's node, those that it sees, its path behind the others.
KeyBlocks AttentionQueries::seen(size_t index, size_t head) {
  const Token& token = *token_;
  const KeyBlockShape& shape = token.sequence->shape();
  const uint8_t* cached = token.sequence->blocks(index, head);
  const size_t from = token.shared / kKeyBlock;
  if (shape.unit == 1) wide_.resize(KeyBlockShape(shape.dim).bytes());
  uint8_t* wide = shape.unit == 1 ? wide_.data() : nullptr;
  if (token.path.empty()) return {&shape, cached, nullptr, std::numeric_limits<size_t>::max(), wide};
  const size_t shared = token.shared % kKeyBlock;  // of the first copied block
  copies_.assign(divided(shared + token.path.size(), kKeyBlock) * shape.bytes(), 0);
  if (shared) std::copy_n(cached + from * shape.bytes(), shape.bytes(), copies_.data());
  for (size_t i = 0; i < token.path.size(); ++i) copy_token(shape, cached, token.path[i], copies_.data(), shared + i);
  return {&shape, cached, copies_.data(), from, wide};
}

void AttentionQueries::attend(const Kernels& kernels, size_t index, size_t head) {
  const Queries queries{words_.data(), stride_, scales_.data(), begin_.data(), end_.data(), static_cast<int>(scales_.size())};
  kernels.attend(seen(index, head), queries, out_.data());
}

}  // namespace sparsedraft
