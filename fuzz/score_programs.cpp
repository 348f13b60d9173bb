#include "score_programs.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "array_bounds.h"

namespace gqa {
namespace {

using Source = ScoreProgram::Source;

Source source_of(const char* name, Kind kind, std::vector<int64_t> operands) {
  Source source{};
  source.name = name, source.kind = kind, source.operands = std::move(operands);
  return source;
}

constexpr const char* kind_letters = "fwb";

DType element_type(Input& input, Kind kind) {
  constexpr DType whole[] = {DType::i32, DType::i64, DType::u8,  DType::i8,
                             DType::i16, DType::u16, DType::u32, DType::u64};
  if (kind == Kind::real) return float_type(input);
  return kind == Kind::whole ? whole[input.below(8)] : DType::boolean;
}

class Reader {
 public:
  Reader(Input& input, const std::vector<ScoreProgram::Array>& arrays) : input_(input), arrays_(arrays) {
    for (const char* name : {"score", "b", "h", "q_idx", "kv_idx"})
      if (name[0] == 's' || !input.rarely()) add(source_of(name, name[0] == 's' ? Kind::real : Kind::whole, {}));
    for (int64_t count = input.below(32); count > 0; count--) read_instruction();
  }

  const std::vector<Source>& sources() const { return sources_; }

  // The last value of a kind, or -1; now and then any number.
  int64_t last(Kind kind) {
    if (input_.rarely()) return input_.number(int64_t(sources_.size()));
    return of_kind(kind).empty() ? -1 : of_kind(kind).back();
  }

 private:
  std::vector<int64_t>& of_kind(Kind kind) { return of_kind_[int(kind)]; }

  void add(Source source) {
    of_kind(source.kind).push_back(int64_t(sources_.size()));
    sources_.push_back(std::move(source));
  }

  int64_t operand(char letter) {
    const std::vector<int64_t>& known = of_kind(Kind(std::find(kind_letters, kind_letters + 3, letter) - kind_letters));
    if (known.empty() || input_.byte() >= 0xfc) return input_.number(input_.below(32));
    return known[known.size() - 1 - size_t(input_.byte()) % known.size()];
  }

  void read_instruction() {
    const Operation operation = Operation(input_.below(operations));
    const Signature& signature = signature_of(operation);
    Source source = source_of(signature.name, signature.result, {});
    if (operation <= Operation::kv_idx && !input_.rarely()) return;  // there is one already
    if (is_gather(operation)) {
      std::vector<int64_t> fitting;
      for (size_t i = 0; i < arrays_.size(); i++)
        if (arrays_[i].kind == source.kind) fitting.push_back(int64_t(i));
      if (fitting.empty() && !input_.rarely()) return;
      source.array = fitting.empty() ? input_.number(0) : fitting[size_t(input_.byte()) % fitting.size()];
      for (int axis = 0; !fitting.empty() && axis < arrays_[size_t(source.array)].axes; axis++) {
        source.operands.push_back(operand('w'));
        source.from_end.push_back(input_.flag());
      }
    } else {
      for (const char* letter = signature.operands; *letter; letter++) source.operands.push_back(operand(*letter));
    }
    constexpr double reals[] = {0, 1, -0.5, 2, 30, 1e-3, -1e30, HUGE_VAL, -HUGE_VAL, NAN, 1e300};
    source.real = input_.flag() ? double(input_.below(256) - 128) / 8 : reals[input_.below(11)];
    source.whole = source.kind == Kind::boolean ? input_.flag() : input_.number(input_.below(40));
    add(std::move(source));
  }

  Input& input_;
  const std::vector<ScoreProgram::Array>& arrays_;
  std::vector<Source> sources_;
  std::vector<int64_t> of_kind_[kinds];
};

// Exclusive or, twice, with elements of an array too large to be looked at: the mask as it was.
void make_opaque(ReadProgram& x, std::vector<Source> sources, int64_t (&results)[outputs],
                 std::vector<ScoreProgram::Array> arrays) {
  static char yes = 1;
  TensorView unseen;
  unseen.data = &yes, unseen.axes = 1, unseen.type = DType::boolean;
  unseen.shape[0] = ArrayBounds::max_elements + 1, unseen.strides[0] = 0;
  const int64_t next = int64_t(sources.size());
  sources.push_back(source_of("constant", Kind::whole, {}));
  Source gather = source_of("gather", Kind::boolean, {next});
  gather.array = int64_t(arrays.size()), gather.from_end = {false};
  sources.push_back(gather);
  sources.push_back(source_of("xor", Kind::boolean, {results[output_mask], next + 1}));
  sources.push_back(source_of("xor", Kind::boolean, {next + 2, next + 1}));
  results[output_mask] = next + 3;
  arrays.push_back({1, Kind::boolean, "unseen"});
  x.opaque = std::make_unique<ScoreProgram>(sources, results, std::move(arrays));
  x.opaque_captured = x.captured;
  x.opaque_captured.push_back(unseen);
}

}  // namespace

ReadProgram read_program(Input& input, Tensors& tensors, const CallSizes& sizes, int64_t keys, bool slope) {
  ReadProgram x;
  std::vector<ScoreProgram::Array> arrays(size_t(input.below(4)));
  const int64_t lengths[] = {keys, sizes.queries, query_heads(sizes), sizes.batch, 1, 2, 5, 40};
  for (ScoreProgram::Array& array : arrays) {
    array.kind = Kind(input.below(kinds));
    array.axes = input.rarely() ? int(input.below(10)) : 1 + int(input.below(3));
    Shape shape{std::min(array.axes, max_axes), {}};
    for (int axis = 0; axis < shape.axes; axis++) shape.sizes[axis] = lengths[input.below(8)];
    x.captured.push_back(tensors.make(element_type(input, array.kind), shape));
  }
  // They are looked at while a call is checked.
  if (!tensors.complete())
    for (TensorView& view : x.captured) view.data = nullptr;
  Reader reader(input, arrays);
  int64_t results[outputs] = {reader.last(Kind::real), reader.last(Kind::boolean), -1};
  if (slope) results[output_slope] = reader.last(Kind::real);
  try {
    x.program = std::make_unique<ScoreProgram>(reader.sources(), results, arrays);
    if (results[output_mask] >= 0) make_opaque(x, reader.sources(), results, arrays);
  } catch (const std::invalid_argument&) {
  }
  return x;
}

}  // namespace gqa
