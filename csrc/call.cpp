#include "call.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <new>
#include <utility>

#include "elements.h"

namespace gqa {
namespace {

constexpr int max_mask_axes = 4;        // batch, heads, queries, keys
constexpr double largest_scale = 1e30;  // scores in float32 stay finite for any ordinary q and k
constexpr double smallest_softcap = 1e-20, largest_softcap = 1e30;

// A list of axes without the first one.
constexpr const char* unbatched(const char* axes) { return axes + sizeof("batch, ") - 1; }

Shape shape_of(std::initializer_list<int64_t> sizes, int axes) {
  Shape shape{axes, {}};
  std::copy(sizes.end() - axes, sizes.end(), shape.sizes);
  return shape;
}

}  // namespace

bool Call::set_query(const TensorView& q) {
  if (q.axes != 3 && q.axes != 4) {
    refusal_.axis = options_.layout.axes;
    return refuse_shape(Rule::axes, "q", q.whole_shape(), {});
  }
  q_ = &q;
  q_sizes_ = sizes_of(batched(q));
  if (q_sizes_.channels > max_channels)
    return refuse_size(Rule::at_most, "q", "head_dim", q_sizes_.channels, max_channels);
  a_.q_type = q.type;
  a_.query_heads = q_sizes_.heads;
  a_.head_dim = q_sizes_.channels;
  a_.arithmetic = q.type == DType::f64 ? Arithmetic::f64 : Arithmetic::f32;
  return true;
}

bool Call::set_keys(const Tensor& k, const Tensor& v, const Tensor& past_key, const Tensor& past_value) {
  for (const auto& [one, other] : {std::pair(&k, &v), std::pair(&past_key, &past_value)}) {
    if (one->data.given() && !other->data.given()) return refuse(Rule::missing, one->name, other->name);
    if (other->data.given() && !one->data.given()) return refuse(Rule::missing, other->name, one->name);
  }
  if (!k.data.given() && !past_key.data.given()) return refuse(Rule::no_keys, "k");
  aligned_ = true;
  tensors_.reserve(4), stores_.reserve(2), store_shapes_.reserve(2);
  if (k.data.given()) {
    if (!add_store(k, v)) return false;
    new_keys_ = store_shapes_.back().tokens;
  }
  if (past_key.data.given()) {
    if (!add_store(past_key, past_value)) return false;
    past_keys_ = store_shapes_.back().tokens;
  }
  if (past_keys_ > max_tokens - new_keys_)
    return refuse_size(Rule::at_most, past_key.name, "tokens", past_keys_, max_tokens - new_keys_);
  return true;
}

bool Call::add_store(const Tensor& k, const Tensor& v) {
  if (!check_axes(k) || !check_axes(v)) return false;
  const Sizes key = sizes_of(batched(k.data)), value = sizes_of(batched(v.data));
  if (stores_.empty()) {
    if (key.heads == 0 || q_sizes_.heads % key.heads != 0)
      return refuse_size(Rule::heads, k.name, "", key.heads, q_sizes_.heads, "q");
    a_.kv_heads = key.heads;
    a_.v_head_dim = value.channels;
  }
  const char *first_key = stores_.empty() ? k.name : tensors_[0]->name,
             *first_value = stores_.empty() ? v.name : tensors_[1]->name;
  if (!check_sizes(k, key, first_key, a_.head_dim, "q")) return false;
  if (!check_sizes(v, value, first_key, a_.v_head_dim, first_value)) return false;
  if (value.tokens != key.tokens)
    return refuse_size(Rule::count_as, v.name, "tokens", value.tokens, key.tokens, k.name);
  if (value.batch != key.batch) return refuse_size(Rule::size_as, v.name, "batch", value.batch, key.batch, k.name);
  if (key.tokens > max_tokens) return refuse_size(Rule::at_most, k.name, "tokens", key.tokens, max_tokens);

  for (const Tensor* x : {&k, &v}) {
    if (x->data.type == DType::f64) a_.arithmetic = Arithmetic::f64;
    tensors_.push_back(x);
  }
  Store store{};
  store.k_type = k.data.type, store.v_type = v.data.type;
  stores_.push_back(store);
  store_shapes_.push_back({key.batch, key.tokens});
  return true;
}

// Those of a tensor, and of its scales, before the sizes can be read.
bool Call::check_axes(const Tensor& x) {
  const TensorView& data = x.data;
  if (aligned_ ? data.axes != q_->axes : data.axes != 3 && data.axes != 4) {
    const char* axes = options_.layout.axes;
    refusal_.axis = q_->axes == 3 ? unbatched(axes) : axes;
    refusal_.other = "q";
    refusal_.expected = q_->axes;
    return refuse_shape(Rule::axes_as, x.name, data.whole_shape(), q_->whole_shape());
  }
  if (x.scale.given()) {
    Shape rows = data.whole_shape();
    rows.axes--;
    if (!(x.scale.whole_shape() == rows)) return refuse_shape(Rule::scale, x.name, x.scale.whole_shape(), rows);
  }
  const int64_t channels = data.shape[data.axes - 1];
  return channels <= max_channels || refuse_size(Rule::at_most, x.name, "head_dim", channels, max_channels);
}

bool Call::check_sizes(const Tensor& x, const Sizes& sizes, const char* first_key, int64_t channels,
                       const char* channels_of) {
  if (aligned_ && sizes.batch != q_sizes_.batch)
    return refuse_size(Rule::size_as, x.name, "batch", sizes.batch, q_sizes_.batch, "q");
  if (sizes.heads != a_.kv_heads)
    return refuse_size(Rule::count_as, x.name, "heads", sizes.heads, a_.kv_heads, first_key);
  return sizes.channels == channels ||
         refuse_size(Rule::size_as, x.name, "head_dim", sizes.channels, channels, channels_of);
}

bool Call::set_options(const MaskShape* mask_shape) {
  if (options_.left < 0 || options_.right < 0)
    return refuse_size(Rule::bounds, "window", "", options_.left, options_.right);
  a_.left = options_.left;
  a_.right = options_.causal ? 0 : options_.right;

  const auto refuse_real = [this](Rule rule, const char* name, double x) {
    refusal_.real = x;
    return refuse(rule, name);
  };
  a_.scale = options_.default_scale ? 1 / std::sqrt(double(std::max<int64_t>(a_.head_dim, 1))) : options_.scale;
  if (!std::isfinite(a_.scale)) return refuse_real(Rule::finite, "scale", a_.scale);
  if (std::abs(a_.scale) > largest_scale) return refuse_real(Rule::magnitude, "scale", a_.scale);
  a_.softcap = options_.softcap;
  if (!(a_.softcap >= 0) || !std::isfinite(a_.softcap)) return refuse_real(Rule::not_negative, "softcap", a_.softcap);
  if (a_.softcap > largest_softcap) a_.softcap = 0;  // tanh is the identity there, and softcap could overflow
  if (a_.softcap > 0)
    a_.softcap = std::max(a_.softcap, smallest_softcap);  // 0 / softcap is 0, and scores are all but 0

  a_.out_type = options_.out_type == DType::none ? q_->type : options_.out_type;
  if (a_.out_type != q_->type && (a_.out_type != DType::f32 || q_->type == DType::f64)) {
    refusal_.type = a_.out_type, refusal_.expected_type = q_->type;
    return refuse(Rule::out_dtype, "out_dtype");
  }
  return set_mask(mask_shape) && set_program() && set_sinks() && check_output();
}

bool Call::set_mask(const MaskShape* given) {
  const TensorView& mask = options_.mask;
  if (!mask.given()) return true;
  const MaskShape shape = given ? *given : MaskShape{q_sizes_.batch, q_sizes_.tokens, past_keys_ + new_keys_};
  const Shape whole =
      shape_of({shape.batch, q_sizes_.heads, shape.queries, shape.keys}, aligned_ ? q_->axes : max_mask_axes);
  const int missing = whole.axes - mask.axes;
  int64_t strides[max_mask_axes] = {};
  for (int i = 0; i < mask.axes; i++) {
    const int64_t size = missing < 0 ? -1 : whole.sizes[i + missing];
    if (mask.shape[i] != size && (mask.shape[i] != 1 || missing < 0))
      return refuse_shape(Rule::broadcast, "mask", mask.whole_shape(), whole);
    strides[max_mask_axes - mask.axes + i] = mask.shape[i] == 1 || !mask.data ? 0 : mask.strides[i];
  }
  a_.mask = mask.data;
  a_.mask_type = mask.type;
  a_.mask_strides = {strides[0], strides[1], strides[2]};
  a_.mask_key_stride = strides[3];
  return true;
}

bool Call::set_sinks() {
  const TensorView& sinks = options_.sinks;
  if (!sinks.given()) return true;
  const Shape expected = shape_of({a_.query_heads}, 1);
  if (!(sinks.whole_shape() == expected)) return refuse_shape(Rule::shape, "sinks", sinks.whole_shape(), expected);
  if (!sinks.data) return true;
  // Powers of 2 take their place: larger sinks would overflow, and what they leave of the others is 0 or all anyway.
  const double most = (a_.arithmetic == Arithmetic::f64 ? std::numeric_limits<double>::max()
                                                        : double(std::numeric_limits<float>::max())) /
                      1.5;
  if (size_t(a_.query_heads) > sinks_.max_size()) throw std::bad_alloc();
  sinks_.resize(size_t(a_.query_heads));
  for (int64_t h = 0; h < a_.query_heads; h++) {
    const double sink = element_as_double(sinks.data + h * sinks.strides[0], sinks.type);
    sinks_[size_t(h)] = std::isfinite(sink) ? std::clamp(sink, -most, most) : sink;
  }
  a_.sinks = sinks_.data();
  return true;
}

}  // namespace gqa
