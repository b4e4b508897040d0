// Stands for engine_runner.cpp where TensorRT's headers, or CUDA's, were not found.
#include "netvlad/error.h"
#include "netvlad/runner.h"

namespace netvlad {

std::unique_ptr<Runner> open_engine(const Artifact& artifact) {
  throw Error(artifact.path.string() +
              " is an engine, and this program was built without TensorRT: build it again where CMake finds NvInfer.h "
              "and cuda_runtime_api.h, or take the ONNX file");
}

}  // namespace netvlad
