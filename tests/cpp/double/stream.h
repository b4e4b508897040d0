// A stream of the double: work runs when somebody waits for it, and no earlier.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <vector>

struct CUstream_st {
  int device;
  std::vector<std::function<cudaError_t()>> work;
};

namespace double_of {

int this_device();                       // of this thread
bool queue(cudaStream_t stream, std::function<cudaError_t()> work);  // false if it is no stream of this device
bool is_stream(cudaStream_t stream);

}  // namespace double_of
