// The kernels of all losses, in one table. Included once per instruction set (see vectors.inl).
#pragma once

#include "cpu/infonce/blocks/sweep.inl"
#include "cpu/infonce/fma.inl"
#include "cpu/infonce/sigmoid/sweep.inl"
#include "cpu/infonce/symmetric/sweep.inl"

template <class T>
constexpr LossKernels<T> kLosses = {kernel_of<FmaSweep<T>>(),
                                    kernel_of<FmaSweep<T, SigmoidSweep<T>>>(),
                                    {workspace_bytes<SymmetricSweep<T>>, run_symmetric<T>},
                                    run_blocks<T>};

constinit const InfoNCEKernels kInfoNCE = {.f32 = kLosses<float>, .f64 = kLosses<double>};
