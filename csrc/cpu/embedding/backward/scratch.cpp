#include "cpu/embedding/backward/scratch.h"

#include <vector>

#include "cpu/runtime/caching_allocator.h"

namespace adaftr_fast {
namespace {

struct Scratch {
  OptionalTensor words;  // of FieldSet::Word, in huge pages where there are many
  std::vector<uint64_t> summary;
  std::vector<int64_t> word, sumword;
};

thread_local Scratch scratch;

}  // namespace

RowSet scratch_rows(const int64_t* field_offsets, int64_t fields) {
  Scratch& s = scratch;
  s.word.assign(fields + 1, 0);
  s.sumword.assign(fields + 1, 0);
  for (int64_t f = 0; f < fields; ++f) {
    const int64_t words = (field_offsets[f + 1] - field_offsets[f] + 63) / 64;
    s.word[f + 1] = s.word[f] + words;
    s.sumword[f + 1] = s.sumword[f] + (words + 63) / 64;
  }
  // Grown, never shrunk: what is beyond is zero, as is what is within.
  const int64_t bytes = s.word[fields] * static_cast<int64_t>(sizeof(FieldSet::Word));
  if (!s.words.has_value() || s.words->numel() < bytes) {
    s.words = cached_empty({bytes}, kByte);
    zero(*s.words);
  }
  if (s.summary.size() < static_cast<size_t>(s.sumword[fields])) s.summary.resize(s.sumword[fields]);
  auto* words = static_cast<FieldSet::Word*>(s.words->mutable_data_ptr());
  return {words, s.summary.data(), s.word.data(), s.sumword.data()};
}

FieldSet scratch_field(int64_t rows) {
  const int64_t field_offsets[] = {0, rows};
  const RowSet set = scratch_rows(field_offsets, 1);
  return {set.words, set.summary, set.sumword[1]};
}

}  // namespace adaftr_fast
