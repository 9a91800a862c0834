// Chunks -> the tokens of a pass.
#pragma once

#include "engine/sequence.hpp"

namespace sparsedraft {

// Tokens to append to a sequence. With `tree`, they are the last nodes of a tree behind the sequence, and `parents` names the parent
// of each of its nodes so far; -1: the sequence's end.
struct Chunk {
  Sequence* sequence = nullptr;
  std::vector<int64_t> ids;
  int logits = 0;  // wanted after the last so many of the tokens
  bool tree = false;
  std::vector<int32_t> parents;
};

// One token of a pass.
struct Token {
  int64_t id;
  Sequence* sequence;
  size_t position;            // for the rotary embedding: how many tokens it sees before itself
  size_t slot;                // where its key and value lie in the sequence's cache
  size_t shared;              // it sees the first so many slots,
  std::vector<int32_t> path;  // and of a tree's these, in order, its own last
};

// The tokens of all chunks, one behind the other. Throws std::invalid_argument where a chunk is not sound.
std::vector<Token> tokens_of(const std::vector<Chunk>& chunks, const Model& model);

}  // namespace sparsedraft
