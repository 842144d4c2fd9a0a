#include "cpu/embedding_scratch.h"

#include <ATen/ops/zero.h>

#include <mutex>

#include "cpu/embedding_pool.h"

namespace adaftr_fast {
namespace {

std::mutex mutex;
std::vector<std::unique_ptr<Scratch>>& idle() {
  static auto* list = new std::vector<std::unique_ptr<Scratch>>;  // never destroyed: threads may outlive main
  return *list;
}

void give_back(Scratch* scratch) {
  const std::lock_guard<std::mutex> lock(mutex);
  idle().emplace_back(scratch);
}

std::unique_ptr<Scratch> take() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (idle().empty()) return std::make_unique<Scratch>();
  auto scratch = std::move(idle().back());
  idle().pop_back();
  return scratch;
}

}  // namespace

std::shared_ptr<Scratch> borrow_scratch(const int64_t* first_row, int64_t fields) {
  std::shared_ptr<Scratch> scratch(take().release(), give_back);
  scratch->word.assign(fields + 1, 0);
  scratch->sumword.assign(fields + 1, 0);
  for (int64_t f = 0; f < fields; ++f) {
    const int64_t words = (first_row[f + 1] - first_row[f] + 63) / 64;
    scratch->word[f + 1] = scratch->word[f] + words;
    scratch->sumword[f + 1] = scratch->sumword[f] + (words + 63) / 64;
  }
  // Grown, never shrunk: what is beyond is zero, as is what is within.
  const int64_t bytes = scratch->word[fields] * static_cast<int64_t>(sizeof(RowSet::Word));
  if (!scratch->words.defined() || scratch->words.numel() < bytes) {
    scratch->words = pooled_empty({bytes}, at::TensorOptions().dtype(at::kByte)).zero_();
  }
  if (scratch->summary.size() < static_cast<size_t>(scratch->sumword[fields])) {
    scratch->summary.resize(scratch->sumword[fields]);
  }
  scratch->set = {static_cast<RowSet::Word*>(scratch->words.mutable_data_ptr()), scratch->summary.data(), scratch->word.data(), scratch->sumword.data()};
  return scratch;
}

}  // namespace adaftr_fast
