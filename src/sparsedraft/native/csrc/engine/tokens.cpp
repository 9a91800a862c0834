#include "engine/tokens.hpp"

#include <algorithm>
#include <string>

namespace sparsedraft {
namespace {

void check(const Chunk& chunk, const Model& model) {
  const size_t limit = model.config.max_length;
  const size_t length = chunk.sequence->length();
  const int count = static_cast<int>(chunk.ids.size());
  const int nodes = static_cast<int>(chunk.parents.size());
  if (count < 1 || chunk.logits < 0 || chunk.logits > count)
    throw std::invalid_argument("there must be tokens, and no more logits than tokens");
  if (limit && !chunk.tree && length + count > limit)
    throw std::invalid_argument("the context holds " + std::to_string(limit) + " tokens, not " + std::to_string(length + count));
  if (chunk.tree && (nodes < count || static_cast<size_t>(nodes - count) > length))
    throw std::invalid_argument("a tree of too few nodes");
  for (int i = 0; i < nodes; ++i)
    if (chunk.parents[i] < -1 || chunk.parents[i] >= i) throw std::invalid_argument("a node's parent must come before it");
  for (const int64_t id : chunk.ids)
    if (id < 0 || static_cast<size_t>(id) >= model.embedding.rows)
      throw std::invalid_argument("token " + std::to_string(id) + " is not in the vocabulary of " +
                                  std::to_string(model.embedding.rows));
}

// The slots that node `node` of a tree sees: the sequence's first `root`, then its ancestors and itself.
std::vector<int32_t> seen_by(int node, int32_t root, const std::vector<int32_t>& parents) {
  std::vector<int32_t> seen;
  for (; node >= 0; node = parents[node]) seen.push_back(root + node);
  for (int32_t slot = root; slot > 0; --slot) seen.push_back(slot - 1);
  std::reverse(seen.begin(), seen.end());
  return seen;
}

}  // namespace

std::vector<Token> tokens_of(const std::vector<Chunk>& chunks, const Model& model) {
  std::vector<Token> tokens;
  for (const Chunk& chunk : chunks) {
    check(chunk, model);
    const int count = static_cast<int>(chunk.ids.size());
    const int nodes = static_cast<int>(chunk.parents.size());
    const size_t length = chunk.sequence->length();
    const int32_t root = static_cast<int32_t>(length) + count - nodes;  // tokens before a tree
    for (int t = 0; t < count; ++t) {
      Token token{chunk.ids[t], chunk.sequence, length + t, length + t, {}};
      if (chunk.tree) {
        token.seen = seen_by(nodes - count + t, root, chunk.parents);
        token.position = token.seen.size() - 1;
      }
      tokens.push_back(std::move(token));
    }
  }
  return tokens;
}

}  // namespace sparsedraft
