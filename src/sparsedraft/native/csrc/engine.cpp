#include "engine.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "half.hpp"

namespace sparsedraft {

void Table::read(size_t row, float* out) const {
  const uint8_t* p = bytes.data() + row * columns * size_of(values);
  for (size_t i = 0; i < columns; ++i) {
    if (values == Values::i8) {
      out[i] = static_cast<float>(static_cast<int8_t>(p[i])) * scale[row];
    } else if (values == Values::f32) {
      std::memcpy(out + i, p + 4 * i, 4);
    } else {
      uint16_t bits;
      std::memcpy(&bits, p + 2 * i, 2);
      out[i] = values == Values::f16 ? half_to_float(bits) : bfloat_to_float(bits);
    }
  }
}

size_t Model::bytes() const {
  size_t total = head->bytes();
  for (const Layer& l : layers)
    for (const auto* m : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) total += (*m)->bytes();
  return total;
}

Sequence::Sequence(const Model& model) : config_(&model.config), caches_(model.layers.size()) {}

void Sequence::grow(size_t tokens) {
  const Config& c = *config_;
  for (Cache& cache : caches_) {  // each for itself: memory may run out half-way, and what was there must stay readable
    if (tokens <= cache.capacity) continue;
    size_t capacity = std::max(padded(tokens, 64), cache.capacity + cache.capacity / 2);
    if (c.max_length) capacity = std::max(tokens, std::min(capacity, c.max_length));
    std::vector<float> keys(c.kv_heads * capacity * c.head_dim), values(keys.size());
    for (size_t h = 0; h < c.kv_heads; ++h) {
      const size_t from = h * cache.capacity * c.head_dim, to = h * capacity * c.head_dim;
      std::copy_n(cache.keys.data() + from, length_ * c.head_dim, keys.data() + to);
      std::copy_n(cache.values.data() + from, length_ * c.head_dim, values.data() + to);
    }
    cache = {std::move(keys), std::move(values), capacity};
  }
}

void Sequence::keep(size_t length, const std::vector<int32_t>& nodes) {
  const size_t dim = config_->head_dim;
  if (length > length_ && !nodes.empty()) throw std::invalid_argument("kept nodes must come behind cached tokens");
  for (size_t i = 0; i < nodes.size(); ++i)
    if (nodes[i] < static_cast<int32_t>(i) || length + nodes[i] >= length_)
      throw std::invalid_argument("kept nodes must be cached, and in the order of the tree");
  for (Cache& cache : caches_)
    for (std::vector<float>* all : {&cache.keys, &cache.values})
      for (size_t h = 0; h < config_->kv_heads; ++h) {
        float* base = all->data() + (h * cache.capacity + length) * dim;
        for (size_t i = 0; i < nodes.size(); ++i) std::memmove(base + i * dim, base + nodes[i] * dim, dim * sizeof(float));
      }
  rollback(length + nodes.size());
}

Engine::Engine(std::shared_ptr<const Model> model, std::shared_ptr<Pool> pool, const Kernels& kernels)
    : model_(std::move(model)), shared_(std::move(pool)), pool_(*shared_), kernels_(kernels) {}

// The tokens of all chunks one behind the other, once they are known to be sound.
void Engine::lay_out(const std::vector<Chunk>& chunks) {
  const Config& c = model_->config;
  tokens_.clear();
  for (const Chunk& chunk : chunks) {
    const int count = static_cast<int>(chunk.ids.size()), nodes = static_cast<int>(chunk.parents.size());
    const size_t length = chunk.sequence->length();
    if (count < 1 || chunk.wanted < 0 || chunk.wanted > count)
      throw std::invalid_argument("there must be tokens, and no more logits than tokens");
    if (c.max_length && !chunk.tree && length + count > c.max_length)
      throw std::invalid_argument("the context holds " + std::to_string(c.max_length) + " tokens, not " +
                                  std::to_string(length + count));
    if (chunk.tree && (nodes < count || static_cast<size_t>(nodes - count) > length))
      throw std::invalid_argument("a tree of too few nodes");
    for (int i = 0; i < nodes; ++i)
      if (chunk.parents[i] < -1 || chunk.parents[i] >= i) throw std::invalid_argument("a node's parent must come before it");
    const int32_t root = static_cast<int32_t>(length) + count - nodes;  // of trees
    for (int t = 0; t < count; ++t) {
      if (chunk.ids[t] < 0 || static_cast<size_t>(chunk.ids[t]) >= model_->embedding.rows)
        throw std::invalid_argument("token " + std::to_string(chunk.ids[t]) + " is not in the vocabulary of " +
                                    std::to_string(model_->embedding.rows));
      Token token{chunk.ids[t], chunk.sequence, length + t, length + t, {}};
      if (chunk.tree) {
        for (int node = nodes - count + t; node >= 0; node = chunk.parents[node]) token.seen.push_back(root + node);
        for (int32_t i = root; i > 0; --i) token.seen.push_back(i - 1);
        std::reverse(token.seen.begin(), token.seen.end());
        token.position = token.seen.size() - 1;
      }
      tokens_.push_back(std::move(token));
    }
  }
}

// cos and sin of every token's position, for each kind of rotary embedding.
void Engine::prepare_rope() {
  const Config& c = model_->config;
  const size_t half = c.head_dim / 2, count = tokens_.size();
  cos_.resize(c.inv_freq.size() * count * half), sin_.resize(cos_.size());
  for (size_t kind = 0; kind < c.inv_freq.size(); ++kind)
    for (size_t t = 0; t < count; ++t)
      for (size_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(tokens_[t].position) * c.inv_freq[kind][i];
        const size_t at = (kind * count + t) * half + i;
        cos_[at] = std::cos(angle) * c.rope_scaling[kind], sin_[at] = std::sin(angle) * c.rope_scaling[kind];
      }
}

void Engine::rotate(float* head, size_t at) const {
  const size_t half = model_->config.head_dim / 2;
  const float *cosine = cos_.data() + at * half, *sine = sin_.data() + at * half;
  for (size_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cosine[i] - b * sine[i], head[i + half] = b * cosine[i] + a * sine[i];
  }
}

// Keys and values of the tokens into their caches, and what each of them sees out of its own into `attended_`.
void Engine::attention(const Layer& layer, size_t index) {
  const Config& c = model_->config;
  const size_t dim = c.head_dim, group = c.heads / c.kv_heads, count = tokens_.size(), rope = layer.rope * count;
  const size_t q_stride = padded(c.heads * dim, kRows), kv_stride = padded(c.kv_heads * dim, kRows);
  pool_.run(c.kv_heads, 1, [&](size_t first, size_t last) {
    for (size_t h = first; h < last; ++h)
      for (size_t t = 0; t < count; ++t) {
        const Token& token = tokens_[t];
        Sequence::Cache& cache = token.sequence->caches_[index];
        float* key = k_.data() + t * kv_stride + h * dim;
        if (!layer.k_norm.empty()) kernels_.rms_norm(key, layer.k_norm.data(), c.eps, c.norm_one_more, key, dim);
        rotate(key, rope + t);
        const size_t at = (h * cache.capacity + token.slot) * dim;
        std::copy_n(key, dim, cache.keys.data() + at);
        std::copy_n(v_.data() + t * kv_stride + h * dim, dim, cache.values.data() + at);
      }
  });
  const size_t jobs = c.heads * count;
  pool_.run(jobs, std::max<size_t>(1, jobs / (pool_.threads() * 8)), [&](size_t first, size_t last) {
    std::vector<float> scores;
    for (size_t job = first; job < last; ++job) {
      const size_t h = job % c.heads, t = job / c.heads;
      const Token& token = tokens_[t];
      const Sequence::Cache& cache = token.sequence->caches_[index];
      float* query = q_.data() + t * q_stride + h * dim;
      if (!layer.q_norm.empty()) kernels_.rms_norm(query, layer.q_norm.data(), c.eps, c.norm_one_more, query, dim);
      rotate(query, rope + t);
      const size_t end = token.position + 1, window = layer.window ? layer.window : end, begin = end > window ? end - window : 0;
      const int32_t* seen = token.seen.empty() ? nullptr : token.seen.data() + begin;
      const size_t from = (h / group * cache.capacity + (seen ? 0 : begin)) * dim;
      scores.resize(end - begin);
      kernels_.attend(query, cache.keys.data() + from, cache.values.data() + from, dim, end - begin, c.attention_scale, seen,
                      scores.data(), attended_.row(static_cast<int>(t)) + h * dim);
    }
  });
}

namespace {

void add_bias(float* x, const std::vector<float>& bias) {
  for (size_t i = 0; i < bias.size(); ++i) x[i] += bias[i];
}

}  // namespace

const float* Engine::forward(std::vector<Chunk>& chunks) {
  const Config& c = model_->config;
  const size_t hidden = c.hidden;
  lay_out(chunks);
  for (const Chunk& chunk : chunks) chunk.sequence->grow(chunk.sequence->length() + chunk.ids.size());
  prepare_rope();
  const int count = static_cast<int>(tokens_.size());
  const size_t q_stride = padded(c.heads * c.head_dim, kRows), kv_stride = padded(c.kv_heads * c.head_dim, kRows),
               h_stride = padded(hidden, kRows), up_stride = padded(c.intermediate, kColumns);
  hidden_.resize(hidden * count), projected_.resize(h_stride * count), up_.resize(up_stride * count);
  q_.resize(q_stride * count), k_.resize(kv_stride * count), v_.resize(kv_stride * count);
  for (int t = 0; t < count; ++t) {
    model_->embedding.read(tokens_[t].id, hidden_.data() + t * hidden);
    if (c.embedding_scale != 1)
      for (size_t i = 0; i < hidden; ++i) hidden_[t * hidden + i] *= c.embedding_scale;
  }
  const auto each = [&](auto work) {
    pool_.run(count, count < 8 ? count : 4, [&](size_t first, size_t last) {
      for (size_t t = first; t < last; ++t) work(static_cast<int>(t));
    });
  };
  const auto norm = [&](const std::vector<float>& weight) {
    normed_.resize(hidden, count);
    each([&](int t) { kernels_.rms_norm(hidden_.data() + t * hidden, weight.data(), c.eps, c.norm_one_more, normed_.row(t), hidden); });
  };
  const auto back = [&](const std::vector<float>& weight) {  // what a block computed is added to the hidden states
    each([&](int t) {
      float *x = projected_.data() + t * h_stride, *h = hidden_.data() + t * hidden;
      if (!weight.empty()) kernels_.rms_norm(x, weight.data(), c.eps, c.norm_one_more, x, hidden);
      for (size_t i = 0; i < hidden; ++i) h[i] += x[i];
    });
  };
  for (size_t l = 0; l < model_->layers.size(); ++l) {
    const Layer& layer = model_->layers[l];
    norm(layer.input_norm);
    multiply_all(kernels_, pool_, normed_,
                 {{layer.q.get(), q_.data(), q_stride}, {layer.k.get(), k_.data(), kv_stride}, {layer.v.get(), v_.data(), kv_stride}});
    each([&](int t) {
      add_bias(q_.data() + t * q_stride, layer.q_bias);
      add_bias(k_.data() + t * kv_stride, layer.k_bias);
      add_bias(v_.data() + t * kv_stride, layer.v_bias);
    });
    attended_.resize(c.heads * c.head_dim, count);
    attention(layer, l);
    multiply_all(kernels_, pool_, attended_, {{layer.o.get(), projected_.data(), h_stride}});
    if (!layer.o_bias.empty()) each([&](int t) { add_bias(projected_.data() + t * h_stride, layer.o_bias); });
    back(layer.after_attention);

    norm(layer.attention_norm);
    gate_.resize(c.intermediate, count);
    multiply_all(kernels_, pool_, normed_,
                 {{layer.gate.get(), gate_.row(0), gate_.stride()}, {layer.up.get(), up_.data(), up_stride}});
    const size_t step = padded(c.intermediate / (pool_.threads() * 2) + 1, 8);
    pool_.run(c.intermediate, step, [&](size_t first, size_t last) {
      for (int t = 0; t < count; ++t)
        kernels_.gated(gate_.row(t) + first, up_.data() + t * up_stride + first, last - first, c.gelu);
    });
    // rows of whole tiles may have spilt into the padding, which must be zero
    for (int t = 0; t < count; ++t) std::fill(gate_.row(t) + c.intermediate, gate_.row(t) + gate_.stride(), 0.0f);
    multiply_all(kernels_, pool_, gate_, {{layer.down.get(), projected_.data(), h_stride}});
    back(layer.after_mlp);
  }
  int wanted = 0;
  for (const Chunk& chunk : chunks) wanted += chunk.wanted;
  const auto read = [&] {  // at the very end: until then memory may run out
    for (const Chunk& chunk : chunks) chunk.sequence->length_ += chunk.ids.size();
  };
  if (!wanted) return read(), nullptr;
  normed_.resize(hidden, wanted);
  int row = 0, end = 0;
  for (const Chunk& chunk : chunks) {
    end += static_cast<int>(chunk.ids.size());
    for (int t = end - chunk.wanted; t < end; ++t)
      kernels_.rms_norm(hidden_.data() + t * hidden, model_->final_norm.data(), c.eps, c.norm_one_more, normed_.row(row++), hidden);
  }
  logits_.resize(logits_stride() * wanted);
  multiply_all(kernels_, pool_, normed_, {{model_->head.get(), logits_.data(), logits_stride()}});
  if (c.softcap > 0)
    for (float& x : logits_) x = c.softcap * std::tanh(x / c.softcap);
  read();
  return logits_.data();
}

namespace {

// The first largest of x [n]; -1 where one is a NaN or an infinity that no softmax survives. In lanes, for vectors' sake.
int64_t likeliest(const float* x, size_t n) {
  constexpr size_t kLanes = 16;
  float most[kLanes];
  int32_t wrong[kLanes] = {};
  std::fill(most, most + kLanes, -INFINITY);
  const auto look = [&](size_t lane, float value) {
    most[lane] = value > most[lane] ? value : most[lane];
    wrong[lane] |= !(value < INFINITY);
  };
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) look(lane, x[i + lane]);
  for (; i < n; ++i) look(0, x[i]);
  if (std::any_of(wrong, wrong + kLanes, [](int32_t bad) { return bad != 0; })) return -1;
  return std::find(x, x + n, *std::max_element(most, most + kLanes)) - x;
}

}  // namespace

std::vector<int64_t> Engine::draft(Sequence& sequence, std::vector<int64_t> ids, int count, const int64_t* map) {
  std::vector<int64_t> out;
  for (int i = 0; i < count; ++i) {
    std::vector<Chunk> chunks{{&sequence, std::move(ids), 1, false, {}}};
    const int64_t best = likeliest(forward(chunks), model_->head->rows);
    out.push_back(best < 0 || !map ? best : map[best]);
    if (best < 0) break;
    ids = {out.back()};
  }
  return out;
}

}  // namespace sparsedraft
