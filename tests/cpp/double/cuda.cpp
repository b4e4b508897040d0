#include <cuda_runtime_api.h>
#include <sanitizer/asan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "double.h"
#include "stream.h"

namespace {

constexpr int devices = 2;
constexpr std::size_t alignment = 256;

struct Allocation {
  std::size_t bytes;
  bool is_device;
};

struct World {
  std::recursive_mutex mutex;
  std::map<std::string, int> calls;
  std::map<std::string, int> alive;
  std::map<const char*, Allocation> memory;
  std::set<cudaStream_t> streams;

  ~World() {
    if (const char* path = std::getenv("DOUBLE_CALLS")) {
      std::ofstream file(path);
      for (const auto& [name, times] : calls) file << name << " " << times << "\n";
    }
    for (const auto& [kind, number] : alive) {
      if (number == 0) continue;
      std::fprintf(stderr, "double: %d of %s left\n", number, kind.c_str());
      std::_Exit(97);
    }
  }
};

World world;
thread_local int current = 0;

using Lock = std::lock_guard<std::recursive_mutex>;

bool is_memory(const void* address, std::size_t bytes, bool is_device) {
  const Lock alone(world.mutex);
  const char* start = static_cast<const char*>(address);
  auto found = world.memory.upper_bound(start);
  if (found == world.memory.begin()) return false;
  --found;
  const auto& [base, allocation] = *found;
  const auto offset = static_cast<std::size_t>(start - base);
  return allocation.is_device == is_device && offset <= allocation.bytes && bytes <= allocation.bytes - offset;
}

cudaError_t take(void** address, std::size_t bytes, bool is_device) {
  if (address == nullptr || bytes == 0) return cudaErrorInvalidValue;
  const std::size_t whole = (bytes + alignment - 1) / alignment * alignment;
  char* found = static_cast<char*>(std::aligned_alloc(alignment, whole));
  if (found == nullptr) return cudaErrorMemoryAllocation;
  std::memset(found, 0x5a, whole);
  ASAN_POISON_MEMORY_REGION(is_device ? found : found + bytes, is_device ? whole : whole - bytes);
  const Lock alone(world.mutex);
  world.memory[found] = {bytes, is_device};
  double_of::count(is_device ? "device memory" : "pinned memory", 1);
  *address = found;
  return cudaSuccess;
}

cudaError_t run(cudaStream_t stream) {
  cudaError_t status = cudaSuccess;
  for (const auto& each : stream->work) {
    if (status == cudaSuccess) status = each();
  }
  stream->work.clear();
  return status;
}

cudaError_t give_back(void* address, bool is_device) {
  const Lock alone(world.mutex);
  if (address == nullptr) return cudaSuccess;
  const auto found = world.memory.find(static_cast<char*>(address));
  if (found == world.memory.end() || found->second.is_device != is_device) double_of::misused("freed twice, or elsewhere");
  for (const cudaStream_t stream : world.streams) run(stream);  // as the real one waits for the GPU
  ASAN_UNPOISON_MEMORY_REGION(address, (found->second.bytes + alignment - 1) / alignment * alignment);
  world.memory.erase(found);
  double_of::count(is_device ? "device memory" : "pinned memory", -1);
  std::free(address);
  return cudaSuccess;
}

}  // namespace

namespace double_of {

bool fails(const char* call) {
  const Lock alone(world.mutex);
  const int times = ++world.calls[call];
  const char* wanted = std::getenv("DOUBLE_FAIL");
  return wanted != nullptr && (std::string(wanted) == call || wanted == std::string(call) + ":" + std::to_string(times));
}

void count(const char* kind, int change) {
  const Lock alone(world.mutex);
  world.alive[kind] += change;
}

void misused(const char* text) {
  std::fprintf(stderr, "double: %s\n", text);
  std::_Exit(98);
}

bool is_device(const void* address, std::size_t bytes) { return is_memory(address, bytes, true); }
bool is_pinned(const void* address, std::size_t bytes) { return is_memory(address, bytes, false); }

OnGpu::OnGpu(const void* address, std::size_t bytes) : address_(address), bytes_(bytes) {
  ASAN_UNPOISON_MEMORY_REGION(address_, bytes_);
}
OnGpu::~OnGpu() { ASAN_POISON_MEMORY_REGION(address_, bytes_); }

int this_device() { return current; }

bool is_stream(cudaStream_t stream) {
  const Lock alone(world.mutex);
  return world.streams.count(stream) == 1 && stream->device == current;
}

bool queue(cudaStream_t stream, std::function<cudaError_t()> work) {
  const Lock alone(world.mutex);
  if (!is_stream(stream)) return false;
  stream->work.push_back(std::move(work));
  return true;
}

}  // namespace double_of

extern "C" {

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    default: return "cudaErrorUnknown";
  }
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (double_of::fails("cudaGetDeviceCount")) return cudaErrorNoDevice;
  *count = std::getenv("DOUBLE_NO_GPU") == nullptr ? devices : 0;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  if (double_of::fails("cudaGetDevice")) return cudaErrorUnknown;
  *device = current;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (double_of::fails("cudaSetDevice")) return cudaErrorUnknown;
  if (device < 0 || device >= devices) return cudaErrorInvalidDevice;
  current = device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int device) {
  if (double_of::fails("cudaGetDeviceProperties")) return cudaErrorUnknown;
  if (device < 0 || device >= devices) return cudaErrorInvalidDevice;
  std::strcpy(prop->name, "Double GPU");
  prop->major = 8;
  prop->minor = 7;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** devPtr, std::size_t size) {
  return double_of::fails("cudaMalloc") ? cudaErrorMemoryAllocation : take(devPtr, size, true);
}

cudaError_t cudaMallocHost(void** ptr, std::size_t size) {
  return double_of::fails("cudaMallocHost") ? cudaErrorMemoryAllocation : take(ptr, size, false);
}

cudaError_t cudaFree(void* devPtr) { return give_back(devPtr, true); }
cudaError_t cudaFreeHost(void* ptr) { return give_back(ptr, false); }

cudaError_t cudaMemcpyAsync(void* dst, const void* src, std::size_t count, cudaMemcpyKind kind, cudaStream_t stream) {
  if (double_of::fails("cudaMemcpyAsync")) return cudaErrorInvalidValue;
  const bool to_device = kind == cudaMemcpyHostToDevice;
  if (!to_device && kind != cudaMemcpyDeviceToHost) return cudaErrorInvalidValue;
  const auto work = [=]() {
    const void* device = to_device ? dst : src;
    if (!double_of::is_device(device, count) || !double_of::is_pinned(to_device ? src : dst, count)) {
      return cudaErrorIllegalAddress;
    }
    const double_of::OnGpu copying(device, count);
    std::memcpy(dst, src, count);
    return cudaSuccess;
  };
  const void* device = to_device ? dst : src;
  if (!double_of::is_device(device, count) || !double_of::is_pinned(to_device ? src : dst, count)) {
    return cudaErrorInvalidValue;  // the real one takes pageable memory, too, and is slow then
  }
  return double_of::queue(stream, work) ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* pStream, unsigned int flags) {
  if (double_of::fails("cudaStreamCreateWithFlags")) return cudaErrorUnknown;
  if (flags != cudaStreamNonBlocking) return cudaErrorInvalidValue;
  const Lock alone(world.mutex);
  *pStream = new CUstream_st{current, {}};
  world.streams.insert(*pStream);
  double_of::count("streams", 1);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock alone(world.mutex);
  if (world.streams.erase(stream) == 0) double_of::misused("a stream that is none was destroyed");
  if (!stream->work.empty()) double_of::misused("a stream was destroyed with work on it");
  double_of::count("streams", -1);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock alone(world.mutex);
  if (world.streams.count(stream) == 0) return cudaErrorInvalidResourceHandle;
  const cudaError_t status = run(stream);
  return double_of::fails("cudaStreamSynchronize") ? cudaErrorIllegalAddress : status;
}
}
