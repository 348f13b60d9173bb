// shard.cpp: the extension's functions for gqa.distributed.ShardedKVCache, and how tokens are dealt.
//
// A call on all ranks is begun, messages are exchanged, and it is ended. What begins a call checks the arguments,
// computes the states of this rank's blocks and writes them into a message, behind a header: whether this rank has an
// error, and a digest of the arguments. Nothing else is written before all headers have been compared. What ends it
// merges the states of all ranks, and writes the new tokens that this rank holds.
#include "../shard.h"

#include <cstring>
#include <optional>

#include "../digest.h"
#include "bindings.h"
#include "refusals.h"
#include "slots_argument.h"
#include "without_gil.h"

namespace gqa {
namespace {

constexpr const char* step_name = "gqa.distributed step";

// States begin at multiples of this many bytes of a message: slot i of what is gathered is i units from its beginning.
constexpr int64_t unit = 64, header_bytes = unit;

struct Header {
  int64_t failed, digest;
};

// A contiguous array of bytes.
TensorView bytes_view(PyObject* object, const char* name) {
  if (!is_array(object)) throw py::type_error(std::string(name) + " must be an array");
  const TensorView x = view_of(py::reinterpret_borrow<py::array>(object));
  if (x.type != DType::u8 || x.axes != 1 || !has_contiguous_channels(x))
    throw py::type_error(std::string(name) + " must be contiguous bytes");
  return x;
}

void write_header(const TensorView& message, const Digest& digest) {
  if (!message.writable || message.shape[0] < header_bytes)
    throw py::value_error("the message has no room for a header");
  const Header header{0, digest.value()};
  std::memcpy(message.data, &header, sizeof header);
}

// A call that has begun. What it points into is kept alive here.
class Step {
 public:
  Step(PyObject* tokens_tuple, PyObject* shard_tuple)
      : objects_{py::reinterpret_borrow<py::object>(tokens_tuple), py::reinterpret_borrow<py::object>(shard_tuple)},
        items_(items_of(shard_tuple, 3, "the shard")),
        tokens_(tokens_tuple),
        slots_(items_[0]),
        deal_(read_integer(items_[1], "ranks"), read_integer(items_[2], "rank"), slots_.slots.window()) {}

  void begin_append(PyObject* layout_name, PyObject* message) {
    const Layout layout = read_layout(layout_name, "layout");
    read_storage(layout);
    if (!tokens_.given()) refuse(Rule::tensor_kind, "k", py::none());
    accept(layout, {});
    if (deal_.ranks() > 1) {
      digest_.add("append");
      add_tokens_to_digest(layout);
    }
    write_header(bytes_view(message, "message"), digest_);
  }

  // The states, if the message has no room for them, and how many bytes each rank has of them.
  py::tuple begin_attend(PyObject* q, PyObject* options, PyObject* message_object) {
    objects_[2] = py::reinterpret_borrow<py::object>(q);
    objects_[3] = py::reinterpret_borrow<py::object>(options);
    OptionReader& reader = reader_.emplace(options);
    reader.read_numbers();
    const int64_t left = reader.options().left;
    const Slots& slots = slots_.slots;
    if (slots.window() > 0) reader.limit_left(slots.window() - 1);
    const Layout layout = reader.options().layout;
    read_storage(layout);
    q_ = query_view(views_, q);
    reader.read_tensors(views_);
    check_query(q_, slots_.keys.data, 4, layout);
    if (q_.shape[0] != slots.batch()) refuse_size(Rule::size_as, "q", "batch", q_.shape[0], slots.batch(), "the cache");
    if (tokens_.given()) accept(layout, reader.options().out);
    else if (tokens_.lengths.view().given()) refuse(Rule::lengths_alone, "lengths");

    Call call(reader.options());
    const int64_t queries = q_.shape[layout.token];
    const MaskShape mask_shape{slots.batch(), queries, slots.longest()};
    if (!call.set_query(q_) || !call.add_store(slots_.keys, slots_.values) ||
        (tokens_.given() && !call.add_store(append_->k(), append_->v())) || !call.set_options(&mask_shape))
      raise(call.refusal());
    if (!shard_->plan(queries, reader.options().left)) raise(shard_->refusal());

    digest_.add("attend");
    digest_.add(left);
    digest_.add(reader.options());
    add_tokens_to_digest(layout);
    digest_.add(q_, !has_padding(queries));

    place_states(call, layout);
    const TensorView message = bytes_view(message_object, "message");
    write_header(message, digest_);
    const std::vector<int64_t>& counts = shard_->block_counts();
    const int64_t own = counts[size_t(deal_.rank())];
    const int64_t most = *std::max_element(counts.begin(), counts.end());
    py::object states = py::none();
    char* data = message.data + header_bytes;
    if (most * slot_bytes_ > message.shape[0] - header_bytes) {
      py::array array = new_array({1, {own * slot_bytes_}}, DType::u8, Py_None);
      data = static_cast<char*>(array.mutable_data());
      states = array;
    }
    TensorView view = states_;
    view.data = data;
    view.writable = true;
    view.shape[0] = own;
    if (!call.set_states(view)) raise(call.refusal());
    SequenceList& list = call.sequences(mask_shape);
    if (!shard_->list_own(list)) raise(list.refusal());
    without_gil([&] { call.run_to_states(); });
    py::list sizes;
    if (!states.is_none())
      for (const int64_t n : counts) sizes.append(n * slot_bytes_);
    return py::make_tuple(states, sizes, most * slot_bytes_);
  }

  // gathered: messages of all ranks, or, if those have no room for them, the states of all ranks one after another.
  py::object end_attend(PyObject* gathered_object, bool messages) {
    const TensorView gathered = bytes_view(gathered_object, "gathered");
    const std::vector<int64_t>& counts = shard_->block_counts();
    std::vector<int64_t> first_slots;
    int64_t end = 0;
    for (size_t rank = 0; rank < counts.size(); rank++) {
      const int64_t size = counts[rank] * slot_bytes_;
      const int64_t first = messages ? int64_t(rank) * (gathered.shape[0] / deal_.ranks()) + header_bytes : end;
      first_slots.push_back(first / unit);
      end = first + size;
      if (end > gathered.shape[0]) throw py::value_error("gathered is too small");
    }
    TensorView subtrees = states_;
    subtrees.data = gathered.data;
    subtrees.shape[0] = std::max<int64_t>(gathered.shape[0] - slot_bytes_, -unit) / unit + 1;
    subtrees.strides[0] = unit;
    Options ended = reader_->options();
    ended.mask = TensorView();
    ended.program = nullptr;
    ended.captured.clear();
    Call call(ended);
    if (!call.set_query(q_) || !call.set_subtrees(subtrees, slots_.keys.data.shape[ended.layout.head]) ||
        !call.set_options(nullptr))
      raise(call.refusal());
    SequenceList& list = call.sequences({});
    if (!shard_->list_merges(list, first_slots, slot_bytes_ / unit)) raise(list.refusal());
    py::object result = compute(call, *reader_, objects_[2].ptr());
    if (tokens_.given()) write();
    return result;
  }

  void write() { slots_.write(*append_, shard_->moves()); }

 private:
  void read_storage(Layout layout) {
    tokens_.read(views_);
    slots_.read_storage(views_);
    shard_.emplace(slots_.slots, deal_, slots_.keys.data.shape[layout.token]);
  }

  void accept(Layout layout, const TensorView& out) {
    append_.emplace(slots_.keys, slots_.values, layout);
    slots_.accept(*append_, tokens_, out);
  }

  // Whether some of `tokens` new ones of each sequence are not taken.
  bool has_padding(int64_t tokens) const {
    const std::vector<int64_t>& counts = slots_.slots.counts();
    return std::any_of(counts.begin(), counts.end(), [&](int64_t n) { return n < tokens; });
  }

  void add_tokens_to_digest(Layout layout) {
    digest_.add(slots_.slots.counts());
    const bool whole = !tokens_.given() || !has_padding(tokens_.k.data.shape[layout.token]);
    digest_.add(tokens_.k, whole);
    digest_.add(tokens_.v, whole);
  }

  // What an array of states looks like, whose data and number of slots come later.
  void place_states(const Call& call, Layout layout) {
    const int64_t item = bytes_of(call.lse_type()), row = slots_.values.data.shape[3] + 2;
    states_.axes = 4;
    states_.type = call.lse_type();
    states_.shape[1] = q_.shape[layout.head], states_.shape[2] = q_.shape[layout.token], states_.shape[3] = row;
    states_.strides[3] = item, states_.strides[2] = row * item;
    states_.strides[1] = states_.shape[2] * states_.strides[2];
    slot_bytes_ = ceil_div(states_.shape[1] * states_.strides[1], unit) * unit;
    states_.strides[0] = slot_bytes_;
  }

  py::object objects_[4];
  PyObject* const* const items_;
  NewTokens tokens_;
  SlotsArgument slots_;
  const Deal deal_;
  Views views_;
  std::optional<OptionReader> reader_;
  TensorView q_;
  std::optional<Append> append_;
  std::optional<Shard> shard_;
  Digest digest_;
  TensorView states_;
  int64_t slot_bytes_ = 0;
};

py::capsule capsule_of(std::unique_ptr<Step> step) {
  py::capsule capsule(step.get(), step_name,
                      [](PyObject* object) { delete static_cast<Step*>(PyCapsule_GetPointer(object, step_name)); });
  (void)step.release();
  return capsule;
}

Step& step_of(PyObject* capsule) {
  void* const step = PyCapsule_GetPointer(capsule, step_name);
  if (!step) throw py::error_already_set();
  return *static_cast<Step*>(step);
}

// (tokens, shard, layout, message) -> step. shard: (slots, ranks, rank).
PyObject* begin_append(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    require_arguments("begin_append", count, 4);
    auto step = std::make_unique<Step>(args[0], args[1]);
    step->begin_append(args[2], args[3]);
    return capsule_of(std::move(step));
  });
}

PyObject* end_append(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    require_arguments("end_append", count, 1);
    step_of(args[0]).write();
    return py::none();
  });
}

// (q, tokens, shard, options, message) -> (step, (states or None, bytes of each rank, the most of any rank)).
PyObject* begin_attend(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    require_arguments("begin_attend", count, 5);
    auto step = std::make_unique<Step>(args[1], args[2]);
    py::tuple states = step->begin_attend(args[0], args[3], args[4]);
    return py::make_tuple(capsule_of(std::move(step)), std::move(states));
  });
}

// (step, gathered, whether those are messages) -> the output, or (output, lse).
PyObject* end_attend(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    require_arguments("end_attend", count, 3);
    return step_of(args[0]).end_attend(args[1], read_flag(args[2], "messages"));
  });
}

// (messages, ranks) -> whether none has an error, and all have the same digest.
PyObject* messages_agree(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    require_arguments("messages_agree", count, 2);
    const TensorView messages = bytes_view(args[0], "messages");
    const int64_t ranks = read_integer(args[1], "ranks"), size = messages.shape[0] / ranks;
    Header first, other;
    std::memcpy(&first, messages.data, sizeof first);
    bool agree = first.failed == 0;
    for (int64_t rank = 1; rank < ranks && agree; rank++) {
      std::memcpy(&other, messages.data + rank * size, sizeof other);
      agree = other.failed == 0 && other.digest == first.digest;
    }
    return py::bool_(agree);
  });
}

int64_t digest_of(py::handle x) {
  Views views;
  Digest digest;
  digest.add(views.view(x.ptr(), "the array", Role::captured), true);
  return digest.value();
}

PyMethodDef methods[] = {
    method<begin_append>("begin_append", "Checks new tokens for append."),
    method<end_append>("end_append", "Writes those that this rank holds."),
    method<begin_attend>("begin_attend", "Computes the states of this rank's blocks."),
    method<end_attend>("end_attend", "Merges the states of all ranks, and writes the new tokens that this rank holds."),
    method<messages_agree>("messages_agree", "Whether all ranks make the same call, without an error."),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_shard(py::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
  m.attr("HEADER_BYTES") = header_bytes;
  m.def("digest", &digest_of);
  m.def("deal_blocks", [](int64_t ranks, int64_t window, int64_t first, int64_t last) {
    py::list blocks;
    Deal(ranks, 0, window).each_block(first, last, [&](const Block& block) {
      blocks.append(py::make_tuple(block.piece, block.first, block.last, block.owner));
    });
    return blocks;
  });
  m.def("deal_held", [](int64_t ranks, int64_t rank, int64_t window, int64_t token) {
    return Deal(ranks, rank, window).held(token);
  });
  m.def("deal_room", [](int64_t ranks, int64_t rank, int64_t window, int64_t capacity) {
    return Deal(ranks, rank, window).room(capacity);
  });
}

}  // namespace gqa
