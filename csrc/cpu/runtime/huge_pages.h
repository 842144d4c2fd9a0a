// Pages of 2 MiB, for memory that is read at random: with pages of 4 KiB most reads would miss the TLB as well as the
// cache.
#pragma once

#include <cstddef>

namespace adaftr_fast {

constexpr size_t kHugePage = size_t{1} << 21;

// Asks for huge pages where they fit whole into [data, data + bytes), before it is first written. Advice only: a system
// without huge pages refuses it, and nothing is lost.
void advise_huge_pages(void* data, size_t bytes);

}  // namespace adaftr_fast
