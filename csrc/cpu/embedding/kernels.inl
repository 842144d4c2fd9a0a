// All embedding kernels, in one table. Included once per instruction set (see vectors.inl).
#pragma once

#include "cpu/embedding/backward/merge.inl"
#include "cpu/embedding/backward/merge_in_shares.inl"
#include "cpu/embedding/backward/row_set.inl"
#include "cpu/embedding/bags/bags.inl"
#include "cpu/embedding/lookup/lookup.inl"
#include "cpu/embedding/optim/adam.inl"
#include "cpu/embedding/optim/adam_schedule.inl"
#include "cpu/embedding/optim/update.inl"

template <typename W>
constexpr TypedKernels<W> kTyped = {{merge<W, int32_t>, merge_share<W, int32_t>},
                                    {merge<W, int64_t>, merge_share<W, int64_t>},
                                    kUpdates<W>,
                                    kAdam<W>,
                                    {pool<W, int32_t>, mark_bags<int32_t, Compute<W>>, merge_bags<W, int32_t>},
                                    {pool<W, int64_t>, mark_bags<int64_t, Compute<W>>, merge_bags<W, int64_t>}};

template <typename Id>
constexpr LookupKernels<Id> kLookups = {lookup<Id>};

template <typename Id>
constexpr RankKernels<Id> kRanks = {rank<Id>, mark_shared<Id>};

constexpr EmbeddingKernels kKernels = {rising,
                                       kRowSets,
                                       {kLookups<int32_t>, kLookups<int64_t>},
                                       {kRanks<int32_t>, kRanks<int64_t>},
                                       {kTyped<float>, kTyped<double>, kTyped<BFloat16>, kTyped<Float16>}};
