// Every embedding kernel, for the files that compile them for one instruction set.
#include "cpu/embedding_convert.inl"
#include "cpu/embedding_kernels.inl"
#include "cpu/embedding_update.inl"
// The rest builds on these.
#include "cpu/embedding_adam.inl"
// And the last on these.
#include "cpu/embedding_bags.inl"

namespace adaftr_fast {
namespace {

template <typename W>
constexpr TypedKernels<W> kTyped = {{merge<W, int32_t>},
                                    {merge<W, int64_t>},
                                    kUpdates<W>,
                                    kAdam<W>,
                                    {pool<W, int32_t>, mark_bags<int32_t, Compute<W>>, merge_bags<W, int32_t>},
                                    {pool<W, int64_t>, mark_bags<int64_t, Compute<W>>, merge_bags<W, int64_t>}};

constexpr EmbeddingKernels kKernels = {
    rising,
    {LookupKernels<int32_t>{lookup<int32_t>, mark<int32_t>}, LookupKernels<int64_t>{lookup<int64_t>, mark<int64_t>}},
    {kTyped<float>, kTyped<double>, kTyped<BFloat16>, kTyped<Float16>}};

}  // namespace
}  // namespace adaftr_fast
