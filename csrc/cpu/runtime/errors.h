// Errors of the ops, as Python sees them.
#pragma once

#include <sstream>
#include <string>

namespace adaftr_fast {

template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

enum class Error { kRuntime, kValue, kIndex, kType };

// Throws what Python sees as RuntimeError, ValueError, IndexError or TypeError; in a backward pass, as RuntimeError.
[[noreturn]] void raise(Error error, const std::string& message);

// The parts of the message are evaluated where the condition is false.
#define ADAFTR_CHECK_AS(error, condition, ...) \
  if (!(condition)) [[unlikely]]               \
  ::adaftr_fast::raise(error, ::adaftr_fast::message(__VA_ARGS__))
#define ADAFTR_CHECK(condition, ...) ADAFTR_CHECK_AS(::adaftr_fast::Error::kRuntime, condition, __VA_ARGS__)
#define ADAFTR_CHECK_VALUE(condition, ...) ADAFTR_CHECK_AS(::adaftr_fast::Error::kValue, condition, __VA_ARGS__)
#define ADAFTR_CHECK_INDEX(condition, ...) ADAFTR_CHECK_AS(::adaftr_fast::Error::kIndex, condition, __VA_ARGS__)
#define ADAFTR_CHECK_TYPE(condition, ...) ADAFTR_CHECK_AS(::adaftr_fast::Error::kType, condition, __VA_ARGS__)

}  // namespace adaftr_fast
