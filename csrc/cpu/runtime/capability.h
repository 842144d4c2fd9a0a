// Which instruction set the CPU kernels use: detected once at run time; tests can restrict it.
#pragma once

#include <iterator>
#include <string>
#include <vector>

namespace adaftr_fast {

// In order: a CPU that runs one runs those before it.
#if defined(__x86_64__)
enum class Capability { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmx };
constexpr const char* kCapabilityNames[] = {"generic", "avx2", "avx512", "avx512_bf16", "amx"};
#elif defined(__aarch64__)
enum class Capability { kGeneric, kNeon, kNeonBf16 };
constexpr const char* kCapabilityNames[] = {"generic", "neon", "neon_bf16"};
#else
enum class Capability { kGeneric };
constexpr const char* kCapabilityNames[] = {"generic"};
#endif
constexpr int kCapabilities = std::size(kCapabilityNames);

// The best set that this build holds and this machine runs, or what set_capability restricted it to.
Capability capability();

// Throws std::invalid_argument for an unknown name and std::runtime_error where the machine lacks the set;
// an empty name lifts the restriction.
void set_capability(const std::string& name);

const char* name_of(Capability capability);
std::vector<std::string> compiled_capabilities();
std::vector<std::string> supported_capabilities();

}  // namespace adaftr_fast
