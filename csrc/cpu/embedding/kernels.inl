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

template <typename W, typename Id>
constexpr IndexKernels<W, Id> kIndexed = {{merge<W, Id>, merge_share<W, Id>},
                                          {pool<W, Id>, mark_bags<Id, Compute<W>>, merge_bags<W, Id>},
                                          adam_lookup<Id, W>};

template <typename W>
constexpr TypedKernels<W> kTyped = {kUpdates<W>, kAdam<W>, {kIndexed<W, int32_t>, kIndexed<W, int64_t>}};

template <typename Id>
constexpr IdKernels<Id> kIds = {lookup<Id>, rank<Id>, mark_shared<Id>};

constexpr EmbeddingKernels kKernels = {rising,
                                       kRowSets,
                                       {kIds<int32_t>, kIds<int64_t>},
                                       {kTyped<float>, kTyped<double>, kTyped<BFloat16>, kTyped<Float16>}};
