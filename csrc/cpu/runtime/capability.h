// Which instruction set the CPU kernels use: detected once at run time; tests can restrict it.
#pragma once

#include <string>
#include <vector>

namespace adaftr_fast {

enum class Capability { kGeneric = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmx = 4 };
constexpr int kCapabilities = 5;

// The best set that this build holds and this machine runs, or what set_capability restricted it to.
Capability capability();

// Throws std::invalid_argument for an unknown name and std::runtime_error where the machine lacks the set;
// an empty name lifts the restriction.
void set_capability(const std::string& name);

const char* name_of(Capability capability);
std::vector<std::string> compiled_capabilities();
std::vector<std::string> supported_capabilities();

}  // namespace adaftr_fast
