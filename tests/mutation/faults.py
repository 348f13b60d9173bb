"""Faults to sow into the kernels and the driver, one at a time: (file under csrc, what stands there, what to put).

Each is a mistake that somebody could make: an edge off by one, a lane too many, a case left out, an order changed.
Whatever says something of memory that is only touched by accident is left to the fuzz targets.
"""

FAULTS = [
    # -- which keys a query attends
    ("kernels/ranges.h", "position + a.right + 1", "position + a.right"),
    ("kernels/ranges.h", "position - a.left)", "position - a.left + 1)"),
    ("kernels/ranges.h", "within(high.begin), within(low.end)", "within(low.begin), within(low.end)"),
    ("kernels/ranges.h", "within(high.begin), within(low.end)", "within(high.begin), within(high.end)"),
    ("kernels/score_block.h", "key < load(low + v * w) ?", "key <= load(low + v * w) ?"),
    ("kernels/score_block.h", "max(whole[0], whole[1]), steps", "max(whole[0], whole[1]), steps - 1"),
    # -- masks
    ("kernels/mask.h", "x.byte ? 0 : -infinity<float>", "x.byte == 1 ? 0 : -infinity<float>"),
    ("kernels/mask.h", "return to_base2<T>(convert<T>(x)); }", "return convert<T>(x); }"),
    ("kernels/mask.h", "(sequence.mask_key + key) * stride", "key * stride"),
    ("kernels/mask.h", "finite &= fold", "finite |= fold"),
    ("kernels/score_block.h", "b == -infinity<T> ? b : score + b", "score + b"),
    # -- softmax
    ("kernels/score_block.h", "now == -infinity<T> ? splat(T(0)) : now", "now"),
    ("kernels/score_block.h", "sum[v] = load(l + v * w) * alpha[v]", "sum[v] = load(l + v * w)"),
    (
        "kernels/score_block.h",
        "tanh<T>(load(x + v * w) / cap) * (cap * unit)",
        "tanh<T>(load(x + v * w) / cap) * cap",
    ),
    # -- states and their merging
    (
        "kernels/states.h",
        "load(to + c) * mine + load(from + c) * theirs",
        "load(to + c) * mine + load(from + c) * mine",
    ),
    ("kernels/states.h", "l[r] = l[r] * mine + later.l[r] * theirs", "l[r] = l[r] * mine + later.l[r]"),
    ("kernels/states.h", "x * mine[v] + y * theirs[v]", "x * mine[v] + y"),
    ("kernels/states.h", "mine[v] = exp2<T>(m0 - shift), theirs", "mine[v] = exp2<T>(m1 - shift), theirs"),
    # -- few rows
    ("kernels/channels.h", "sum += buffers_.lane_sums[first * w + lane]", "sum = buffers_.lane_sums[first * w + lane]"),
    ("kernels/channels.h", "(edges || masked || applied.hidden) &&", "(masked || applied.hidden) &&"),
    ("kernels/channels.h", "edges || n % streams<T, R> != 0", "edges"),
    # -- many rows
    ("kernels/rows.h", "int(min(lanes, task_.row_end - first))", "lanes"),
    ("kernels/row_tile.h", "any && c + i < v_head_dim_ ?", "c + i < v_head_dim_ ?"),
    ("kernels/row_tile.h", "if (hidden && !all_finite(block))", "if (false)"),
    ("kernels/row_tile.h", "tile.started = true;", ""),
    # -- int8
    ("kernels/products/integers.h", "unit * scale[0] * k <= logit_error", "true"),
    ("kernels/products/integers.h", "units[l % R]", "units[0]"),
    # -- products of integers, on processors that have instructions for them
    ("kernels/products/vnni.cpp", "first_part + v", "v"),
    ("kernels/products/vnni.cpp", "good != 0xffff", "false"),
    ("kernels/products/vnni.cpp", "x * 256.0f", "x * 255.0f"),
    # -- the driver
    ("attention.cpp", "+ 1 < cut.parts || interrupted()", "+ 1 <= cut.parts || interrupted()"),
    ("attention.cpp", "s.offset + query - a.left", "s.offset - a.left"),
    (
        "schedule.cpp",
        "place.row_begin = block * cut.rows_per_unit",
        "place.row_begin = block * (cut.rows_per_unit - 1)",
    ),
    # -- score programs
    ("covers.cpp", "(one_query ? first_row % group : 0)", "first_row % group"),
    ("covers.cpp", "std::min(sequence.keys, sequence.offset + last_query + a_.right + 1)", "sequence.keys - 1"),
    # -- gradients
    ("kernels/gradient_tile.h", "if (masked) p = score == -infinity<T> ? Vec<T>{} : p;", ""),
    ("kernels/score_block.h", "T(1) - y * y", "T(1) - y"),
    ("kernels/gradient_totals.h", "if (!turn.first) sum +=", "sum +="),
    ("kernels/gradient_rows.h", "g_.dlse.data ? delta - dlse_of(row)", "false ? delta"),
    ("kernels/gradient_loop.h", "return max(first_block, (end - 1) / gradient_block);", "return first_block;"),
    (
        "kernels/gradient_mask.h",
        "for (int l = 0; l < n - j; l++)",
        "for (int l = 1; l < n - j; l++)",
    ),
    # -- caches
    ("slots.cpp", "position - left, 0)", "position - left + 1, 0)"),
    ("pages.cpp", "p.length + p.count, page_size", "p.length + p.count, page_size - 1"),
]
