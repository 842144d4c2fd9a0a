// libtorch's stable ABI of torch 2.11. Before any header of it comes the version; in a file with this one, pybind11 may
// not be included, which torch 2.11 forbids.
#pragma once

#if !defined(TORCH_TARGET_VERSION)
#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 11) << 48))
#endif

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
