// How an op finds its kernels: each instruction set fills a table of function pointers, and capability() chooses.
#pragma once

#include <array>

#include "cpu/runtime/capability.h"

namespace adaftr_fast {

// One table for each Capability, in order; null where an instruction set adds nothing to those before it.
template <class Kernels>
using KernelTables = std::array<const Kernels*, kCapabilities>;

// The table of the best instruction set that has one.
template <class Kernels>
const Kernels& best_table(const KernelTables<Kernels>& tables) {
  auto set = static_cast<int>(capability());
  while (tables[set] == nullptr) --set;
  return *tables[set];
}

// One kernel, from the best instruction set whose table has it; one that converts to false where none has.
template <class Kernels, class Kernel>
Kernel best_kernel(const KernelTables<Kernels>& tables, Kernel Kernels::* which) {
  for (auto set = static_cast<int>(capability()); set >= 0; --set)
    if (tables[set] != nullptr && tables[set]->*which) return tables[set]->*which;
  return {};
}

}  // namespace adaftr_fast
