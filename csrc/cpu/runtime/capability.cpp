#include "cpu/runtime/capability.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace adaftr_fast {
namespace {

#if defined(__x86_64__) && defined(__linux__)
// AMX tile state must be asked for once per process (Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)).
bool amx_granted() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const bool tile = (edx >> 24) & 1, bf16 = (edx >> 22) & 1;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return tile && bf16 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#elif defined(__aarch64__)
bool multiplies_bf16() {
#if defined(__linux__)
  constexpr unsigned long kBf16 = 1 << 14;
  return getauxval(AT_HWCAP2) & kBf16;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof(has);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has;
#else
  return false;
#endif
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
#elif defined(__aarch64__)
  return multiplies_bf16() ? Capability::kNeonBf16 : Capability::kNeon;
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

const char* name_of(Capability capability) { return kCapabilityNames[static_cast<int>(capability)]; }

void set_capability(const std::string& name) {
  if (name.empty()) {
    restricted.store(-1);
    return;
  }
  for (int i = 0; i < kCapabilities; ++i) {
    if (name != kCapabilityNames[i]) continue;
    if (i > static_cast<int>(detected())) {
      throw std::runtime_error("set_cpu_capability: this machine does not run " + name +
                               " (best: " + name_of(detected()) + ")");
    }
    restricted.store(i);
    return;
  }
  std::string known;
  for (const char* each : kCapabilityNames) known += std::string(each) + ", ";
  throw std::invalid_argument("set_cpu_capability: expected one of " + known + "got " + name);
}

std::vector<std::string> compiled_capabilities() { return {std::begin(kCapabilityNames), std::end(kCapabilityNames)}; }

std::vector<std::string> supported_capabilities() {
  return {kCapabilityNames, kCapabilityNames + static_cast<int>(detected()) + 1};
}

}  // namespace adaftr_fast
