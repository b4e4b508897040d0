// The few parts of the CUDA runtime that an engine needs: what is taken is given back, and every status is looked at.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "netvlad/engine_record.h"

namespace netvlad {

// Throws Error with the name of the call and CUDA's own name of the error unless the status is a success.
void check_cuda(cudaError_t status, const char* call);

// Returns the number of this thread's GPU; a new thread starts on GPU 0. Throws Error if there is none.
int current_device();

// Returns name and compute capability of a GPU.
Gpu gpu_of(int device);

// Makes a GPU this thread's current one, until the end of the scope.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int previous_ = 0;
};

// A stream that waits for no other stream.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  void wait() const;  // throws Error if any of the queued work has failed

 private:
  cudaStream_t stream_ = nullptr;
};

// Memory on the GPU, or pinned memory of the host, which the GPU copies from and to directly.
class Memory {
 public:
  enum class Place { device, pinned };

  explicit Memory(Place place) : place_(place) {}
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void hold(std::size_t bytes);  // makes it at least this large; what it held is lost then
  void* data() const { return data_; }

 private:
  void release() noexcept;

  Place place_;
  std::size_t bytes_ = 0;
  void* data_ = nullptr;
};

}  // namespace netvlad
