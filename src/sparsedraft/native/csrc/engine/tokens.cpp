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

// What node `node` of a tree behind `root` tokens sees of the sequence, its ancestors and itself, and so its position.
void look(int node, size_t root, const std::vector<int32_t>& parents, Token& token) {
  std::vector<int32_t> path;
  for (; node >= 0; node = parents[node]) path.push_back(static_cast<int32_t>(root) + node);
  std::reverse(path.begin(), path.end());
  token.position = root + path.size() - 1;
  if (token.position == token.slot) return;  // all before it: as without a tree
  token.shared = root;
  token.path = std::move(path);
}

}  // namespace

std::vector<Token> tokens_of(const std::vector<Chunk>& chunks, const Model& model) {
  std::vector<Token> tokens;
  for (const Chunk& chunk : chunks) {
    check(chunk, model);
    const int count = static_cast<int>(chunk.ids.size());
    const int nodes = static_cast<int>(chunk.parents.size());
    const size_t length = chunk.sequence->length();
    const size_t root = length + count - nodes;  // tokens before a tree
    for (int t = 0; t < count; ++t) {
      Token token{chunk.ids[t], chunk.sequence, length + t, length + t, length + t + 1, {}};
      if (chunk.tree) look(nodes - count + t, root, chunk.parents, token);
      tokens.push_back(std::move(token));
    }
  }
  return tokens;
}

}  // namespace sparsedraft
