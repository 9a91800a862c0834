#include "engine/forward_pass.hpp"

#include <algorithm>
#include <cmath>

namespace sparsedraft {
namespace {

constexpr size_t kFew = 8;  // fewer tokens are not worth waking threads for

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
    attention_block(model_->layers[i], i, chunks);
    if (!tokens_.empty()) mlp_block(model_->layers[i]);
  }
  const float* found = logits();
  // at the very end, as memory may run out until here
  for (const Chunk& chunk : chunks) chunk.sequence->append(chunk.ids.size());
  return found;
}

// Tokens, and room for all that the pass computes of them.
void ForwardPass::prepare(const std::vector<Chunk>& chunks) {
  tokens_ = tokens_of(chunks, *model_);
  for (const Chunk& chunk : chunks) chunk.sequence->reserve(chunk.sequence->length() + chunk.ids.size());
  rotary_.compute(model_->config, tokens_);
  attention_jobs_ = attention_jobs(tokens_, model_->config, pool_.threads());
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
void ForwardPass::attention_block(const Layer& layer, size_t index, const std::vector<Chunk>& chunks) {
  const Config& c = model_->config;
  norm_hidden(layer.input_norm);
  project_qkv(layer);
  cache_keys_and_values(layer, index);
  if (index + 1 == model_->layers.size()) keep_wanted(chunks);
  if (tokens_.empty()) return;
  attended_.resize(c.heads * c.head_dim, static_cast<int>(tokens_.size()));
  attend(layer, index);
  multiply(attended_, {{layer.o.get(), projected_.data(), hidden_stride_}});
  if (!layer.o_bias.empty())
    for_each_token([&](int t) { add_bias(projected_.data() + t * hidden_stride_, layer.o_bias); });
  add_to_hidden(layer.after_attention);
}

// q = Wq x + bq, k = Wk x + bk, v = Wv x + bv, where x is the normed hidden state
void ForwardPass::project_qkv(const Layer& layer) {
  multiply(normed_,
               {{layer.q.get(), q_.data(), q_stride_},
                {layer.k.get(), k_.data(), kv_stride_},
                {layer.v.get(), v_.data(), kv_stride_}});
  for_each_token([&](int t) {
    add_bias(q_.data() + t * q_stride_, layer.q_bias);
    add_bias(k_.data() + t * kv_stride_, layer.k_bias);
    add_bias(v_.data() + t * kv_stride_, layer.v_bias);
  });
}

// key[slot] = rotate(k_norm(k) / key_factors), value[slot] = v, for each head of keys; only caches of 8 bits have factors
void ForwardPass::cache_keys_and_values(const Layer& layer, size_t index) {
  const Config& c = model_->config;
  const size_t dim = c.head_dim;
  const size_t count = tokens_.size();
  const size_t jobs = c.kv_heads * count;
  pool_.run(jobs, count < kFew ? jobs : kKeyBlock, [&](size_t first, size_t last) {
    for (size_t job = first; job < last; ++job) {
      const size_t h = job / count;
      const size_t t = job % count;
      float* key = k_.data() + t * kv_stride_ + h * dim;
      if (!layer.k_norm.empty()) norm(key, layer.k_norm, key, dim);
      if (!layer.key_factors.empty())
        for (size_t i = 0; i < dim; ++i) key[i] /= layer.key_factors[h * dim + i];
      rotary_.rotate(key, layer.rope, t);
      Sequence& sequence = *tokens_[t].sequence;
      store_token(sequence.shape(), key, v_.data() + t * kv_stride_ + h * dim, sequence.blocks(index, h), tokens_[t].slot);
    }
  });
}

// Of the last layer, only the keys and values serve other tokens. So from here on the pass is of the tokens whose logits are wanted,
// which are the last of each chunk: their rows move to the front.
void ForwardPass::keep_wanted(const std::vector<Chunk>& chunks) {
  const size_t hidden = model_->config.hidden;
  std::vector<Token> wanted;
  size_t end = 0;
  for (const Chunk& chunk : chunks) {
    end += chunk.ids.size();
    for (size_t t = end - chunk.logits; t < end; ++t) {
      if (const size_t to = wanted.size(); to != t) {
        std::copy_n(hidden_.data() + t * hidden, hidden, hidden_.data() + to * hidden);
        std::copy_n(q_.data() + t * q_stride_, q_stride_, q_.data() + to * q_stride_);
      }
      wanted.push_back(std::move(tokens_[t]));
    }
  }
  const bool all = wanted.size() == tokens_.size();
  tokens_.swap(wanted);
  if (all || tokens_.empty()) return;
  rotary_.compute(model_->config, tokens_);
  attention_jobs_ = attention_jobs(tokens_, model_->config, pool_.threads());
}

// Attention of every head of every token, into attended_.
void ForwardPass::attend(const Layer& layer, size_t index) {
  pool_.run(attention_jobs_.size(), 1, [&](size_t first, size_t last) {
    AttentionQueries queries;
    for (size_t job = first; job < last; ++job) attend(layer, index, attention_jobs_[job], queries);
  });
}

// attended = softmax(scale * rotate(q_norm(q) * key_factors) . key[s]) value[s], over the slots s that a token sees, the last `window` of them
void ForwardPass::attend(const Layer& layer, size_t index, const AttentionJob& job, AttentionQueries& queries) {
  const Config& c = model_->config;
  const size_t dim = c.head_dim;
  const size_t key_head = job.head / (c.heads / c.kv_heads);  // several heads share keys and values
  queries.begin(job, tokens_, c, layer.window);
  for (size_t t = job.first; t < job.last; ++t)
    for (size_t h = job.head; h < job.head + job.heads; ++h) {
      float* query = q_.data() + t * q_stride_ + h * dim;
      if (!layer.q_norm.empty()) norm(query, layer.q_norm, query, dim);
      if (!layer.key_factors.empty())
        for (size_t i = 0; i < dim; ++i) query[i] *= layer.key_factors[key_head * dim + i];
      rotary_.rotate(query, layer.rope, t);
      queries.add(query);
    }
  queries.attend(kernels_, index, key_head);
  size_t i = 0;
  for (size_t t = job.first; t < job.last; ++t)
    for (size_t h = job.head; h < job.head + job.heads; ++h)
      std::copy_n(queries.found(i++), dim, attended_.row(static_cast<int>(t)) + h * dim);
}

// hidden += after_mlp_norm(Wdown (act(Wgate x) * Wup x)), where x = norm(hidden)
void ForwardPass::mlp_block(const Layer& layer) {
  const Config& c = model_->config;
  const int count = static_cast<int>(tokens_.size());
  norm_hidden(layer.attention_norm);
  gate_.resize(c.intermediate, count);
  multiply(normed_,
               {{layer.gate.get(), gate_.row(0), gate_.stride()}, {layer.up.get(), up_.data(), up_stride_}});
  const size_t step = padded(c.intermediate / (pool_.threads() * 2) + 1, 8);
  pool_.run(c.intermediate, step, [&](size_t first, size_t last) {
    for (int t = 0; t < count; ++t)
      kernels_.gated(gate_.row(t) + first, up_.data() + t * up_stride_ + first, last - first, c.gelu);
  });
  // the product wrote whole tiles of rows, also into the padding, which must be zero
  for (int t = 0; t < count; ++t) std::fill(gate_.row(t) + c.intermediate, gate_.row(t) + gate_.stride(), 0.0f);
  multiply(gate_, {{layer.down.get(), projected_.data(), hidden_stride_}});
  add_to_hidden(layer.after_mlp);
}

// logits = softcap(Whead final_norm(hidden)) of the tokens that are left, which are those whose logits are wanted
const float* ForwardPass::logits() {
  const Config& c = model_->config;
  if (tokens_.empty()) return nullptr;
  norm_hidden(model_->final_norm);
  logits_.resize(logits_stride() * tokens_.size());
  const Matrix& head = *model_->head;
  std::vector<Product> products;
  for (const TileRange& tiles : head_tiles_) products.push_back({&head, logits_.data(), logits_stride(), tiles});
  if (products.empty()) products.push_back({&head, logits_.data(), logits_stride()});
  multiply(normed_, products);
  if (c.softcap > 0)
    for (const Product& p : products)
      for (size_t t = 0; t < tokens_.size(); ++t)
        for (size_t i = p.tiles.first * head.tile_rows(); i < p.tiles.last * head.tile_rows(); ++i) {
          float& x = logits_[t * logits_stride() + i];
          x = c.softcap * std::tanh(x / c.softcap);
        }
  return logits_.data();
}

void ForwardPass::multiply(ActivationBuffer& x, const std::vector<Product>& products) {
  multiply_all(kernels_, pool_, x, products, model_->config.fine_inputs ? &fine_ : nullptr);
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

// work(t) for every token.
template <class Work>
void ForwardPass::for_each_token(Work work) {
  constexpr size_t kTokensOfPiece = 4;
  const size_t count = tokens_.size();
  pool_.run(count, count < kFew ? count : kTokensOfPiece, [&](size_t first, size_t last) {
    for (size_t t = first; t < last; ++t) work(static_cast<int>(t));
  });
}

}  // namespace sparsedraft
