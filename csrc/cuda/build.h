// What the CUDA kernels are compiled with. nvcc alone knows it, so it is read in a .cu file.
#pragma once

#include <string>
#include <vector>

namespace adaftr_fast::cuda {

// The version of CUDA, as "13.0".
std::string version();

// The GPU architectures, as "sm_80".
std::vector<std::string> architectures();

}  // namespace adaftr_fast::cuda
