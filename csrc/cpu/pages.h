// A large fresh output costs more in page faults than in arithmetic: 4 KiB pages are zeroed one fault at a time.
#pragma once
#include "../tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace srtod {

// Asks the kernel for 2 MiB pages under a freshly allocated tensor. Advice only: no effect where it is unavailable.
// Smaller tensors are left alone: the C library hands out memory up to 32 MiB from what it kept, whose pages exist
// already.
inline void use_huge_pages([[maybe_unused]] Tensor& fresh) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t{1} << 21;
  const auto begin = reinterpret_cast<uintptr_t>(fresh.mutable_data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(fresh.numel()) * fresh.element_size();
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  if (end - begin > (uintptr_t{32} << 20)) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace srtod
