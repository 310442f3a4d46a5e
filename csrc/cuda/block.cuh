// How every kernel is launched.
#pragma once

namespace srtod {

constexpr int kThreads = 256;  // of a block
constexpr int kWarps = kThreads / 32;
// At least so many blocks fit a multiprocessor at once: leaves 128 registers to a thread, of which none is spilled.
constexpr int kBlocksPerMultiprocessor = 2;

}  // namespace srtod
