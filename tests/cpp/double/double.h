// What the doubles of CUDA and TensorRT share: failures on request, and a count of all that is alive.
//
//   DOUBLE_FAIL=NAME     every call of this name fails
//   DOUBLE_FAIL=NAME:2   its second call fails
//   DOUBLE_CALLS=PATH    name and number of all calls are written there, a line each, when the program ends
//
// A program that ends with something alive ends with the status 97.
#pragma once

#include <cstddef>

namespace double_of {

bool fails(const char* call);  // notes the call, too
void count(const char* kind, int change);

// Ends the program with a line of text: for what would be undefined behaviour with the real libraries.
[[noreturn]] void misused(const char* text);

// Returns true if these bytes are device memory, or pinned memory, that is alive.
bool is_device(const void* address, std::size_t bytes);
bool is_pinned(const void* address, std::size_t bytes);

// While it lives, the bytes of device memory may be touched, as by a kernel; otherwise AddressSanitizer reports it.
class OnGpu {
 public:
  OnGpu(const void* address, std::size_t bytes);
  ~OnGpu();
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;

 private:
  const void* address_;
  std::size_t bytes_;
};

}  // namespace double_of
