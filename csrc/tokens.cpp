#include "tokens.h"

#include <cstring>

#include "dispatch.h"
#include "elements.h"

namespace gqa {
namespace {

// Rows of `bytes` in two axes of one batch entry, the shorter strides inside.
void copy_rows(char* to, Strides to_strides, const char* from, Strides from_strides, int64_t heads, int64_t tokens,
               int64_t bytes) {
  int64_t outer = heads, inner = tokens;
  int64_t to_outer = to_strides.head, to_inner = to_strides.token;
  int64_t from_outer = from_strides.head, from_inner = from_strides.token;
  if (to_outer < to_inner) {
    std::swap(outer, inner);
    std::swap(to_outer, to_inner);
    std::swap(from_outer, from_inner);
  }
  const bool together = to_inner == bytes && from_inner == bytes;
  for (int64_t i = 0; i < outer; i++, to += to_outer, from += from_outer) {
    if (together) std::memcpy(to, from, size_t(inner * bytes));
    else
      for (int64_t j = 0; j < inner; j++) std::memcpy(to + j * to_inner, from + j * from_inner, size_t(bytes));
  }
}

void move(const TensorView& to, const TensorView& from, int64_t bytes, const std::vector<TokenMove>& moves,
          Layout layout) {
  const Strides here = strides_of(to, layout), there = strides_of(from, layout);
  for (const TokenMove& m : moves)
    copy_rows(to.data + m.to_batch * here.batch + m.to_token * here.token, here,
              from.data + m.batch * there.batch + m.token * there.token, there, to.shape[layout.head], m.count, bytes);
}

}  // namespace

void convert_row(const char* from, DType from_type, double scale, char* to, DType to_type, int64_t channels) {
  const WeightedRow row{from, bytes_of(from_type), from_type, scale};
  active_kernels().add_weighted({&row, 1, channels, 1, to, bytes_of(to_type), to_type});
}

bool StoredTokens::convert(const Tensor& from, DType type, Layout layout, const int64_t* counts) {
  const int64_t channels = from.data.shape[3];
  tensor_ = from;
  TensorView source = from.data;
  std::unique_ptr<char[]> contiguous;
  if (!has_contiguous_channels(source)) contiguous = copy_of(from.data, source);
  if (source.type == type) {
    tensor_.data = source;
    data_ = std::move(contiguous);
    return true;
  }

  tensor_.data.type = type;
  data_ = allocate(tensor_.data);
  tensor_.scale = TensorView();
  if (type == DType::i8) {
    tensor_.scale = from.data;
    tensor_.scale.axes = 3;
    tensor_.scale.type = DType::f32;
    scale_ = allocate(tensor_.scale);
  }
  const Kernels& kernels = active_kernels();
  const auto row_of = [layout](const TensorView& x, int64_t b, int64_t h, int64_t t) {
    return x.data + b * x.strides[0] + h * x.strides[layout.head] + t * x.strides[layout.token];
  };
  for (int64_t b = 0; b < source.shape[0]; b++)
    for (int64_t h = 0; h < source.shape[layout.head]; h++)
      for (int64_t t = 0; t < counts[b]; t++) {
        const char* const row = row_of(source, b, h, t);
        char* const to = row_of(tensor_.data, b, h, t);
        if (type == DType::i8) {
          if (!kernels.quantize({row, source.type, channels, to, row_of(tensor_.scale, b, h, t)})) return false;
        } else {
          const double scale = from.scale.given() ? double(element<float>(row_of(from.scale, b, h, t))) : 1.0;
          convert_row(row, source.type, scale, to, type, channels);
        }
      }
  return true;
}

void move_tokens(const Tensor& to, const Tensor& from, const std::vector<TokenMove>& moves, Layout layout) {
  move(to.data, from.data, to.data.shape[3] * bytes_of(to.data.type), moves, layout);
  if (to.scale.given()) move(to.scale, from.scale, bytes_of(DType::f32), moves, layout);
}

}  // namespace gqa
