// What the double of TensorRT and CUDA refuses, and a runner of an engine that threads share.
//
//   engine_probe misuse ENGINE     each wrong use of the double; a line for each that it did not refuse
//   engine_probe threads ARTIFACT  descriptors of an image each by four threads, on a GPU that is not theirs
//   engine_probe peek | leak       the host reads device memory; memory is not given back
#include <NvInfer.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "netvlad/error.h"
#include "netvlad/runner.h"

namespace {

class Silent final : public nvinfer1::ILogger {
  void log(Severity, nvinfer1::AsciiChar const*) noexcept override {}
};

void refused(bool was_done, const char* what) {
  if (was_done) std::printf("not refused: %s\n", what);
}

void done(bool was_done, const char* what) {
  if (!was_done) std::printf("refused: %s\n", what);
}

// The engine has one profile, from 1x8x8x3 to 1x16x16x3, and a descriptor of 4 values.
void misuse(const std::string& content) {
  Silent silent;
  const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(silent));
  refused(runtime->deserializeCudaEngine("garbage", 7) != nullptr, "garbage");
  const std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(content.data(), content.size()));
  const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  cudaStream_t stream = nullptr;
  done(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess, "a stream");
  void *input = nullptr, *output = nullptr, *small = nullptr, *host = nullptr;
  done(cudaMalloc(&input, 768) == cudaSuccess && cudaMalloc(&output, 16) == cudaSuccess, "memory");
  done(cudaMalloc(&small, 100) == cudaSuccess && cudaMallocHost(&host, 768) == cudaSuccess, "more memory");

  refused(context->setInputShape("images", {4, {1, 8, 8, 3}}), "a shape before a profile");
  refused(context->setOptimizationProfileAsync(1, stream), "a profile that is not there");
  refused(context->setOptimizationProfileAsync(0, nullptr), "a profile without a stream");
  done(context->setOptimizationProfileAsync(0, stream), "the profile");
  refused(context->enqueueV3(stream), "a run without a shape");
  refused(context->setInputShape("images", {4, {1, 17, 8, 3}}), "a shape above the profile");
  refused(context->setInputShape("images", {4, {1, 8, 7, 3}}), "a shape below the profile");
  refused(context->setInputShape("images", {3, {8, 8, 3}}), "a shape of another rank");
  done(context->setInputShape("images", {4, {1, 16, 16, 3}}), "the shape");
  refused(context->enqueueV3(stream), "a run without addresses");
  refused(context->setTensorAddress("images", host), "an address of the host");
  done(context->setTensorAddress("images", small) && context->setTensorAddress("descriptor", output), "addresses");
  refused(context->enqueueV3(stream), "a run on too little memory");
  done(context->setTensorAddress("images", input), "an address");
  done(cudaSetDevice(1) == cudaSuccess, "another GPU");
  refused(context->enqueueV3(stream), "a run on another GPU");
  done(cudaSetDevice(0) == cudaSuccess, "the first GPU");
  refused(cudaSetDevice(2) == cudaSuccess, "a GPU that is not there");
  std::array<char, 16> pageable{};
  refused(cudaMemcpyAsync(pageable.data(), output, 16, cudaMemcpyDeviceToHost, stream) == cudaSuccess, "pageable memory");
  refused(cudaMemcpyAsync(host, output, 17, cudaMemcpyDeviceToHost, stream) == cudaSuccess, "a copy past the end");
  done(cudaMemcpyAsync(input, host, 768, cudaMemcpyHostToDevice, stream) == cudaSuccess, "a copy");
  done(context->enqueueV3(stream) && cudaStreamSynchronize(stream) == cudaSuccess, "a run");
  done(cudaFree(input) == cudaSuccess, "an end");
  refused(context->enqueueV3(stream), "a run on freed memory");
  done(cudaFree(output) == cudaSuccess && cudaFree(small) == cudaSuccess && cudaFreeHost(host) == cudaSuccess, "ends");
  done(cudaStreamDestroy(stream) == cudaSuccess, "the end of a stream");
}

void threads(const char* path) {
  done(cudaSetDevice(1) == cudaSuccess, "another GPU");
  const auto runner = netvlad::open_runner(path);
  std::array<netvlad::Image, 4> images;
  std::array<std::vector<float>, 4> wanted;
  for (std::size_t which = 0; which < images.size(); ++which) {
    images[which].size = {12, 10};
    for (std::size_t i = 0; i < 360; ++i) images[which].values.push_back(static_cast<std::uint8_t>(i * (which + 7)));
    wanted[which] = runner->describe(images[which].view());
  }
  std::array<bool, 4> is_same{};
  std::vector<std::thread> all;
  for (std::size_t which = 0; which < images.size(); ++which) {
    all.emplace_back([&, which] {
      bool same = true;
      for (int i = 0; i < 50; ++i) same = same && runner->describe(images[which].view()) == wanted[which];
      int device = -1;  // a thread keeps its own GPU
      is_same[which] = same && cudaGetDevice(&device) == cudaSuccess && device == 0;
    });
  }
  for (auto& each : all) each.join();
  for (const bool same : is_same) std::puts(same ? "same" : "other");
  done(cudaSetDevice(0) == cudaSuccess, "the first GPU");  // the runner ends on another GPU than its own
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  try {
    if (mode == "misuse" && count == 3) {
      std::ifstream file(arguments[2], std::ios::binary);
      misuse({std::istreambuf_iterator<char>(file), {}});
    }
    if (mode == "threads" && count == 3) threads(arguments[2]);
  } catch (const netvlad::Error& error) {
    std::printf("error %s\n", error.what());
  }
  void* memory = nullptr;
  if (mode == "peek" || mode == "leak") done(cudaMalloc(&memory, 16) == cudaSuccess, "memory");
  if (mode == "peek") std::printf("%d\n", *static_cast<volatile int*>(memory));
  return 0;
}
