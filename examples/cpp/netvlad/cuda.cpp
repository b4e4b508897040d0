// Signatures: CUDA Runtime API, sections 5.1, 5.4 and 5.10. A release that fails has nobody to tell, so its status is
// not looked at: what was done wrong before has been reported by then.
#include "netvlad/cuda.h"

#include <string>

#include "netvlad/error.h"

namespace netvlad {

void check_cuda(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw Error(std::string(call) + " failed: " + cudaGetErrorName(status));
}

int current_device() {
  int count = 0, device = 0;
  check_cuda(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (count == 0) throw Error("no NVIDIA GPU on this machine: cudaGetDeviceCount found none");
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

Gpu gpu_of(int device) {
  cudaDeviceProp found{};
  check_cuda(cudaGetDeviceProperties(&found, device), "cudaGetDeviceProperties");
  return {found.name, std::to_string(found.major) + "." + std::to_string(found.minor)};
}

OnDevice::OnDevice(int device) {
  check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
  check_cuda(cudaSetDevice(device), "cudaSetDevice");
}

OnDevice::~OnDevice() { static_cast<void>(cudaSetDevice(previous_)); }

Stream::Stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }

Stream::~Stream() { static_cast<void>(cudaStreamDestroy(stream_)); }

void Stream::wait() const { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

Memory::~Memory() { release(); }

void Memory::release() noexcept {
  if (data_ == nullptr) return;
  static_cast<void>(place_ == Place::device ? cudaFree(data_) : cudaFreeHost(data_));
  data_ = nullptr;
  bytes_ = 0;
}

void Memory::hold(std::size_t bytes) {
  if (bytes <= bytes_) return;
  release();
  void* taken = nullptr;
  if (place_ == Place::device) {
    check_cuda(cudaMalloc(&taken, bytes), "cudaMalloc");
  } else {
    check_cuda(cudaMallocHost(&taken, bytes), "cudaMallocHost");
  }
  data_ = taken;
  bytes_ = bytes;
}

}  // namespace netvlad
