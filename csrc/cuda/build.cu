#include "cuda/build.h"

namespace adaftr_fast::cuda {

std::string version() { return std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__); }

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  for (const int number : {__CUDA_ARCH_LIST__}) names.push_back("sm_" + std::to_string(number / 10));  // 800 is sm_80
  return names;
}

}  // namespace adaftr_fast::cuda
