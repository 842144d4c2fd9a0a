#include "cpu/runtime/capability.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace adaftr_fast {
namespace {

constexpr const char* kNames[kCapabilities] = {"generic", "avx2", "avx512", "avx512_bf16", "amx"};

#if defined(__x86_64__) && defined(__linux__)
// AMX tile state must be asked for once per process (Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)).
bool amx_granted() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const bool tile = (edx >> 24) & 1, bf16 = (edx >> 22) & 1;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return tile && bf16 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

Capability detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma")))
    return Capability::kGeneric;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx512) return Capability::kAvx2;
  if (!__builtin_cpu_supports("avx512bf16")) return Capability::kAvx512;
#if defined(__linux__)
  if (amx_granted()) return Capability::kAmx;
#endif
  return Capability::kAvx512Bf16;
#else
  return Capability::kGeneric;
#endif
}

Capability detected() {
  static const Capability found = detect();
  return found;
}

std::atomic<int> restricted{-1};  // -1: no restriction

}  // namespace

Capability capability() {
  const int limit = restricted.load(std::memory_order_relaxed);
  return limit < 0 ? detected() : static_cast<Capability>(limit);
}

const char* name_of(Capability capability) { return kNames[static_cast<int>(capability)]; }

void set_capability(const std::string& name) {
  if (name.empty()) {
    restricted.store(-1);
    return;
  }
  for (int i = 0; i < kCapabilities; ++i) {
    if (name != kNames[i]) continue;
    if (i > static_cast<int>(detected())) {
      throw std::runtime_error("set_cpu_capability: this machine does not run " + name +
                               " (best: " + name_of(detected()) + ")");
    }
    restricted.store(i);
    return;
  }
  throw std::invalid_argument("set_cpu_capability: expected generic, avx2, avx512, avx512_bf16 or amx, got " + name);
}

std::vector<std::string> compiled_capabilities() {
#if defined(__x86_64__)
  return {kNames, kNames + kCapabilities};
#else
  return {"generic"};
#endif
}

std::vector<std::string> supported_capabilities() { return {kNames, kNames + static_cast<int>(detected()) + 1}; }

}  // namespace adaftr_fast
