#include "engine/forward_pass.hpp"

#include <algorithm>
#include <cmath>

namespace sparsedraft {
namespace {

void add_bias(float* x, const std::vector<float>& bias) {
  for (size_t i = 0; i < bias.size(); ++i) x[i] += bias[i];
}

}  // namespace

ForwardPass::ForwardPass(std::shared_ptr<const Model> model, std::shared_ptr<Pool> pool, const Kernels& kernels)
    : model_(std::move(model)), shared_pool_(std::move(pool)), pool_(*shared_pool_), kernels_(kernels) {
  const Config& c = model_->config;
  q_stride_ = padded(c.heads * c.head_dim, kRows4);
  kv_stride_ = padded(c.kv_heads * c.head_dim, kRows4);
  hidden_stride_ = padded(c.hidden, kRows4);
  up_stride_ = padded(c.intermediate, kColumns);
}

const float* ForwardPass::run(const std::vector<Chunk>& chunks) {
  prepare(chunks);
  embed();
  for (size_t i = 0; i < model_->layers.size(); ++i) {
    attention_block(model_->layers[i], i);
    mlp_block(model_->layers[i]);
  }
  const float* found = logits(chunks);
  // at the very end, as memory may run out until here
  for (const Chunk& chunk : chunks) chunk.sequence->append(chunk.ids.size());
  return found;
}

// Tokens, and room for all that the pass computes of them.
void ForwardPass::prepare(const std::vector<Chunk>& chunks) {
  tokens_ = tokens_of(chunks, *model_);
  for (const Chunk& chunk : chunks) chunk.sequence->reserve(chunk.sequence->length() + chunk.ids.size());
  compute_rotary_table();
  const size_t count = tokens_.size();
  hidden_.resize(model_->config.hidden * count);
  q_.resize(q_stride_ * count);
  k_.resize(kv_stride_ * count);
  v_.resize(kv_stride_ * count);
  up_.resize(up_stride_ * count);
  projected_.resize(hidden_stride_ * count);
}

// hidden = embedding[id] * embedding_scale
void ForwardPass::embed() {
  const Config& c = model_->config;
  for (size_t t = 0; t < tokens_.size(); ++t) {
    float* hidden = hidden_.data() + t * c.hidden;
    model_->embedding.read(tokens_[t].id, hidden);
    if (c.embedding_scale == 1) continue;
    for (size_t i = 0; i < c.hidden; ++i) hidden[i] *= c.embedding_scale;
  }
}

// hidden += after_attention_norm(Wo attention(norm(hidden)) + bo)
void ForwardPass::attention_block(const Layer& layer, size_t index) {
  const Config& c = model_->config;
  norm_hidden(layer.input_norm);
  project_qkv(layer);
  attended_.resize(c.heads * c.head_dim, static_cast<int>(tokens_.size()));
  cache_keys_and_values(layer, index);
  attend(layer, index);
  multiply_all(kernels_, pool_, attended_, {{layer.o.get(), projected_.data(), hidden_stride_}});
  if (!layer.o_bias.empty())
    for_each_token([&](int t) { add_bias(projected_.data() + t * hidden_stride_, layer.o_bias); });
  add_to_hidden(layer.after_attention);
}

// q = Wq x + bq, k = Wk x + bk, v = Wv x + bv, where x is the normed hidden state
void ForwardPass::project_qkv(const Layer& layer) {
  multiply_all(kernels_, pool_, normed_,
               {{layer.q.get(), q_.data(), q_stride_},
                {layer.k.get(), k_.data(), kv_stride_},
                {layer.v.get(), v_.data(), kv_stride_}});
  for_each_token([&](int t) {
    add_bias(q_.data() + t * q_stride_, layer.q_bias);
    add_bias(k_.data() + t * kv_stride_, layer.k_bias);
    add_bias(v_.data() + t * kv_stride_, layer.v_bias);
  });
}

// key[slot] = rotate(k_norm(k)), value[slot] = v, for each head of keys
void ForwardPass::cache_keys_and_values(const Layer& layer, size_t index) {
  const Config& c = model_->config;
  const size_t dim = c.head_dim;
  pool_.run(c.kv_heads, 1, [&](size_t first, size_t last) {
    for (size_t h = first; h < last; ++h)
      for (size_t t = 0; t < tokens_.size(); ++t) {
        float* key = k_.data() + t * kv_stride_ + h * dim;
        const float* value = v_.data() + t * kv_stride_ + h * dim;
        if (!layer.k_norm.empty()) norm(key, layer.k_norm, key, dim);
        rotate(key, layer, t);
        Sequence::Cache& cache = tokens_[t].sequence->cache(index);
        const size_t at = cache.offset(h, tokens_[t].slot, dim);
        std::copy_n(key, dim, cache.keys.data() + at);
        std::copy_n(value, dim, cache.values.data() + at);
      }
  });
}

// Attention of every head of every token, into attended_.
void ForwardPass::attend(const Layer& layer, size_t index) {
  constexpr size_t kPiecesOfThread = 8;
  const size_t heads = model_->config.heads;
  const size_t jobs = heads * tokens_.size();
  pool_.run(jobs, std::max<size_t>(1, jobs / (pool_.threads() * kPiecesOfThread)), [&](size_t first, size_t last) {
    std::vector<float> scores;
    for (size_t job = first; job < last; ++job) attend_head(layer, index, job % heads, job / heads, scores);
  });
}

// attended = softmax(scale * rotate(q_norm(q)) . key[s]) value[s], over the slots s that the token sees, the last `window` of them
void ForwardPass::attend_head(const Layer& layer, size_t index, size_t head, size_t token, std::vector<float>& scores) {
  const Config& c = model_->config;
  const size_t dim = c.head_dim;
  float* query = q_.data() + token * q_stride_ + head * dim;
  if (!layer.q_norm.empty()) norm(query, layer.q_norm, query, dim);
  rotate(query, layer, token);

  const Token& t = tokens_[token];
  const size_t end = t.position + 1;
  const size_t window = layer.window ? layer.window : end;
  const size_t begin = end > window ? end - window : 0;
  const int32_t* seen = t.seen.empty() ? nullptr : t.seen.data() + begin;

  const Sequence::Cache& cache = t.sequence->cache(index);
  const size_t kv_head = head / (c.heads / c.kv_heads);  // several heads share keys and values
  const size_t from = cache.offset(kv_head, seen ? 0 : begin, dim);
  scores.resize(end - begin);
  kernels_.attend(query, cache.keys.data() + from, cache.values.data() + from, dim, end - begin, c.attention_scale, seen,
                  scores.data(), attended_.row(static_cast<int>(token)) + head * dim);
}

// hidden += after_mlp_norm(Wdown (act(Wgate x) * Wup x)), where x = norm(hidden)
void ForwardPass::mlp_block(const Layer& layer) {
  const Config& c = model_->config;
  const int count = static_cast<int>(tokens_.size());
  norm_hidden(layer.attention_norm);
  gate_.resize(c.intermediate, count);
  multiply_all(kernels_, pool_, normed_,
               {{layer.gate.get(), gate_.row(0), gate_.stride()}, {layer.up.get(), up_.data(), up_stride_}});
  const size_t step = padded(c.intermediate / (pool_.threads() * 2) + 1, 8);
  pool_.run(c.intermediate, step, [&](size_t first, size_t last) {
    for (int t = 0; t < count; ++t)
      kernels_.gated(gate_.row(t) + first, up_.data() + t * up_stride_ + first, last - first, c.gelu);
  });
  // the product wrote whole tiles of rows, also into the padding, which must be zero
  for (int t = 0; t < count; ++t) std::fill(gate_.row(t) + c.intermediate, gate_.row(t) + gate_.stride(), 0.0f);
  multiply_all(kernels_, pool_, gate_, {{layer.down.get(), projected_.data(), hidden_stride_}});
  add_to_hidden(layer.after_mlp);
}

// logits = softcap(Whead final_norm(hidden)) of the last tokens of each chunk, as many as it asks for
const float* ForwardPass::logits(const std::vector<Chunk>& chunks) {
  const Config& c = model_->config;
  int total = 0;
  for (const Chunk& chunk : chunks) total += chunk.logits;
  if (!total) return nullptr;
  normed_.resize(c.hidden, total);
  int row = 0;
  int end = 0;
  for (const Chunk& chunk : chunks) {
    end += static_cast<int>(chunk.ids.size());
    for (int t = end - chunk.logits; t < end; ++t) {
      norm(hidden_.data() + t * c.hidden, model_->final_norm, normed_.row(row), c.hidden);
      ++row;
    }
  }
  logits_.resize(logits_stride() * total);
  multiply_all(kernels_, pool_, normed_, {{model_->head.get(), logits_.data(), logits_stride()}});
  if (c.softcap > 0)
    for (float& x : logits_) x = c.softcap * std::tanh(x / c.softcap);
  return logits_.data();
}

// cos and sin of the angles position * inv_freq[i], times rope_scaling, for each kind of rotary embedding and each token.
void ForwardPass::compute_rotary_table() {
  const Config& c = model_->config;
  const size_t half = c.head_dim / 2;
  const size_t count = tokens_.size();
  cos_.resize(c.inv_freq.size() * count * half);
  sin_.resize(cos_.size());
  for (size_t kind = 0; kind < c.inv_freq.size(); ++kind)
    for (size_t t = 0; t < count; ++t)
      for (size_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(tokens_[t].position) * c.inv_freq[kind][i];
        const size_t at = (kind * count + t) * half + i;
        cos_[at] = std::cos(angle) * c.rope_scaling[kind];
        sin_[at] = std::sin(angle) * c.rope_scaling[kind];
      }
}

// (x[i], x[i + half]) turned by the angle of i: x[i] cos - x[i + half] sin, x[i + half] cos + x[i] sin
void ForwardPass::rotate(float* head, const Layer& layer, size_t token) const {
  const size_t half = model_->config.head_dim / 2;
  const size_t at = (layer.rope * tokens_.size() + token) * half;
  const float* cosine = cos_.data() + at;
  const float* sine = sin_.data() + at;
  for (size_t i = 0; i < half; ++i) {
    const float a = head[i];
    const float b = head[i + half];
    head[i] = a * cosine[i] - b * sine[i];
    head[i + half] = b * cosine[i] + a * sine[i];
  }
}

// out = x / rms(x) * weight
void ForwardPass::norm(const float* x, const std::vector<float>& weight, float* out, size_t n) const {
  kernels_.rms_norm(x, weight.data(), model_->config.eps, model_->config.norm_one_more, out, n);
}

// normed = norm(hidden)
void ForwardPass::norm_hidden(const std::vector<float>& weight) {
  const size_t hidden = model_->config.hidden;
  normed_.resize(hidden, static_cast<int>(tokens_.size()));
  for_each_token([&](int t) { norm(hidden_.data() + t * hidden, weight, normed_.row(t), hidden); });
}

// hidden += norm(projected), without the norm where the layer has none
void ForwardPass::add_to_hidden(const std::vector<float>& after_norm) {
  const size_t hidden = model_->config.hidden;
  for_each_token([&](int t) {
    float* x = projected_.data() + t * hidden_stride_;
    float* h = hidden_.data() + t * hidden;
    if (!after_norm.empty()) norm(x, after_norm, x, hidden);
    for (size_t i = 0; i < hidden; ++i) h[i] += x[i];
  });
}

// work(t) for every token; few tokens are not worth waking threads for.
template <class Work>
void ForwardPass::for_each_token(Work work) {
  constexpr size_t kFew = 8;
  constexpr size_t kTokensOfPiece = 4;
  const size_t count = tokens_.size();
  pool_.run(count, count < kFew ? count : kTokensOfPiece, [&](size_t first, size_t last) {
    for (size_t t = first; t < last; ++t) work(static_cast<int>(t));
  });
}

}  // namespace sparsedraft
