// An engine of the double is a line of text: the word `double`, name and data type of the input, name and data type of
// the output, length of the descriptor, tensor format of the input, number of profiles, then 3 shapes of 4 lengths of
// each. Value k of its descriptor is the mean over all input values v(i) of v(i) * ((i + k) % 7 + 1), plus the number of
// the profile.
#include <NvInfer.h>

#include <array>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "double.h"
#include "stream.h"

namespace nvinfer1 {

struct IRuntime::State {
  ILogger* logger;
  bool host_code_allowed;
  int engines;

  bool refused(const char* why) const {
    logger->log(ILogger::Severity::kERROR, why);
    logger->log(ILogger::Severity::kINFO, "some more words");
    return false;
  }
};

struct ICudaEngine::State {
  IRuntime::State* runtime;
  int device;
  int contexts;
  std::string input, output;
  int input_type, output_type, format;
  std::int64_t length;
  std::vector<std::array<Dims, 3>> profiles;
};

struct IExecutionContext::State {
  ICudaEngine::State* engine;
  int profile;
  cudaStream_t profile_stream;
  Dims shape;  // of the input; no lengths while it is not set
  void* input;
  void* output;
};

namespace {

bool fails(const IRuntime::State* runtime, const char* call) {
  return double_of::fails(call) && !runtime->refused("told to\nfail");
}

std::size_t values(const Dims& shape) {
  std::size_t number = 1;
  for (int i = 0; i < shape.nbDims; ++i) number *= static_cast<std::size_t>(shape.d[i]);
  return number;
}

std::size_t input_bytes(const IExecutionContext::State& context) {
  return values(context.shape) * (context.engine->input_type == static_cast<int>(DataType::kUINT8) ? 1 : 4);
}

std::size_t output_bytes(const IExecutionContext::State& context) {
  return static_cast<std::size_t>(context.shape.d[0] * context.engine->length) * sizeof(float);
}

bool is_input(const ICudaEngine::State* engine, const char* name) {
  if (engine->input != name && engine->output != name) double_of::misused("a tensor of an unknown name");
  return engine->input == name;
}

cudaError_t describe(const IExecutionContext::State& context) {
  const std::size_t in_bytes = input_bytes(context), out_bytes = output_bytes(context);
  if (!double_of::is_device(context.input, in_bytes) || !double_of::is_device(context.output, out_bytes)) {
    return cudaErrorIllegalAddress;
  }
  const double_of::OnGpu reading(context.input, in_bytes), writing(context.output, out_bytes);
  const std::size_t number = values(context.shape);
  for (std::size_t k = 0; k < out_bytes / sizeof(float); ++k) {
    double sum = 0;
    for (std::size_t i = 0; i < number; ++i) {
      const double value = in_bytes == number ? static_cast<const std::uint8_t*>(context.input)[i]
                                              : static_cast<double>(static_cast<const float*>(context.input)[i]);
      sum += value * static_cast<double>((i + k) % 7 + 1);
    }
    static_cast<float*>(context.output)[k] = static_cast<float>(sum / static_cast<double>(number) + context.profile);
  }
  return cudaSuccess;
}

}  // namespace

IRuntime::~IRuntime() noexcept {
  if (mImpl->engines != 0) double_of::misused("a runtime ended before its engine");
  delete mImpl;
  double_of::count("runtimes", -1);
}

void IRuntime::setEngineHostCodeAllowed(bool allowed) noexcept { mImpl->host_code_allowed = allowed; }

ICudaEngine* IRuntime::deserializeCudaEngine(void const* blob, std::size_t size) noexcept {
  if (fails(mImpl, "deserializeCudaEngine")) return nullptr;
  std::istringstream text(std::string(static_cast<const char*>(blob), size));
  std::string word;
  ICudaEngine::State state{mImpl, double_of::this_device(), 0, {}, {}, 0, 0, 0, 0, {}};
  std::size_t profiles = 0;
  text >> word >> state.input >> state.input_type >> state.output >> state.output_type >> state.length >>
      state.format >> profiles;
  if (!text || (word != "double" && word != "double-with-code")) {
    mImpl->refused("no engine");
    return nullptr;
  }
  if (word == "double-with-code" && !mImpl->host_code_allowed) {
    mImpl->refused("host code is not allowed");
    return nullptr;
  }
  state.profiles.resize(profiles);
  for (auto& profile : state.profiles) {
    for (Dims& shape : profile) {
      shape = {4, {}};
      for (int i = 0; i < 4; ++i) text >> shape.d[i];
    }
  }
  auto* engine = new ICudaEngine;
  engine->mImpl = new ICudaEngine::State(state);
  ++mImpl->engines;
  double_of::count("engines", 1);
  return engine;
}

ICudaEngine::~ICudaEngine() noexcept {
  if (mImpl->contexts != 0) double_of::misused("an engine ended before its context");
  if (mImpl->device != double_of::this_device()) double_of::misused("an engine ended on another device");
  --mImpl->runtime->engines;
  delete mImpl;
  double_of::count("engines", -1);
}

int32_t ICudaEngine::getNbIOTensors() const noexcept { return 2; }

char const* ICudaEngine::getIOTensorName(int32_t index) const noexcept {
  if (fails(mImpl->runtime, "getIOTensorName") || index < 0 || index > 1) return nullptr;
  return (index == 0 ? mImpl->input : mImpl->output).c_str();
}

TensorIOMode ICudaEngine::getTensorIOMode(char const* tensorName) const noexcept {
  return is_input(mImpl, tensorName) ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
}

DataType ICudaEngine::getTensorDataType(char const* tensorName) const noexcept {
  return static_cast<DataType>(is_input(mImpl, tensorName) ? mImpl->input_type : mImpl->output_type);
}

TensorFormat ICudaEngine::getTensorFormat(char const* tensorName) const noexcept {
  return is_input(mImpl, tensorName) ? static_cast<TensorFormat>(mImpl->format) : TensorFormat::kLINEAR;
}

TensorLocation ICudaEngine::getTensorLocation(char const* tensorName) const noexcept {
  is_input(mImpl, tensorName);
  return TensorLocation::kDEVICE;
}

int32_t ICudaEngine::getNbOptimizationProfiles() const noexcept { return static_cast<int32_t>(mImpl->profiles.size()); }

Dims ICudaEngine::getProfileShape(char const* tensorName, int32_t profileIndex, OptProfileSelector select) const noexcept {
  if (!is_input(mImpl, tensorName)) double_of::misused("a profile of an output");
  return mImpl->profiles.at(static_cast<std::size_t>(profileIndex)).at(static_cast<std::size_t>(select));
}

IExecutionContext* ICudaEngine::createExecutionContext(ExecutionContextAllocationStrategy) noexcept {
  if (fails(mImpl->runtime, "createExecutionContext")) return nullptr;
  auto* context = new IExecutionContext;
  context->mImpl = new IExecutionContext::State{mImpl, -1, nullptr, {0, {}}, nullptr, nullptr};
  ++mImpl->contexts;
  double_of::count("contexts", 1);
  return context;
}

IExecutionContext::~IExecutionContext() noexcept {
  --mImpl->engine->contexts;
  delete mImpl;
  double_of::count("contexts", -1);
}

bool IExecutionContext::setOptimizationProfileAsync(int32_t profileIndex, cudaStream_t stream) noexcept {
  const IRuntime::State* runtime = mImpl->engine->runtime;
  mImpl->profile = -1;  // as it may be after a change that failed
  if (fails(runtime, "setOptimizationProfileAsync")) return false;
  if (!double_of::is_stream(stream)) return runtime->refused("no stream of this device");
  if (profileIndex < 0 || static_cast<std::size_t>(profileIndex) >= mImpl->engine->profiles.size()) {
    return runtime->refused("no such profile");
  }
  mImpl->profile = profileIndex;
  mImpl->profile_stream = stream;
  mImpl->shape = {0, {}};
  return true;
}

bool IExecutionContext::setInputShape(char const* tensorName, Dims const& dims) noexcept {
  const IRuntime::State* runtime = mImpl->engine->runtime;
  if (fails(runtime, "setInputShape")) return false;
  if (!is_input(mImpl->engine, tensorName)) return runtime->refused("the output has no shape to set");
  if (mImpl->profile < 0) return runtime->refused("no profile is set");
  const auto& profile = mImpl->engine->profiles.at(static_cast<std::size_t>(mImpl->profile));
  bool inside = dims.nbDims == 4;
  for (int i = 0; inside && i < 4; ++i) inside = profile[0].d[i] <= dims.d[i] && dims.d[i] <= profile[2].d[i];
  if (!inside) return runtime->refused("the shape is outside the profile");
  mImpl->shape = dims;
  return true;
}

Dims IExecutionContext::getTensorShape(char const* tensorName) const noexcept {
  if (fails(mImpl->engine->runtime, "getTensorShape")) return {-1, {}};
  if (is_input(mImpl->engine, tensorName)) return mImpl->shape;
  return {2, {mImpl->shape.nbDims == 0 ? -1 : mImpl->shape.d[0], mImpl->engine->length}};
}

bool IExecutionContext::setTensorAddress(char const* tensorName, void* data) noexcept {
  const IRuntime::State* runtime = mImpl->engine->runtime;
  if (fails(runtime, "setTensorAddress")) return false;
  if (!double_of::is_device(data, 1)) return runtime->refused("the address is no device memory");
  (is_input(mImpl->engine, tensorName) ? mImpl->input : mImpl->output) = data;
  return true;
}

bool IExecutionContext::enqueueV3(cudaStream_t stream) noexcept {
  const IRuntime::State* runtime = mImpl->engine->runtime;
  if (fails(runtime, "enqueueV3")) return false;
  if (mImpl->engine->device != double_of::this_device()) return runtime->refused("the engine is on another device");
  if (mImpl->shape.nbDims == 0) return runtime->refused("the shape of the input is not set");
  if (mImpl->input == nullptr || mImpl->output == nullptr) return runtime->refused("an address is not set");
  if (!double_of::is_device(mImpl->input, input_bytes(*mImpl))) return runtime->refused("the input is too small");
  if (!double_of::is_device(mImpl->output, output_bytes(*mImpl))) return runtime->refused("the output is too small");
  if (stream != mImpl->profile_stream) return runtime->refused("the profile was set on another stream");
  return double_of::queue(stream, [context = *mImpl] { return describe(context); }) || runtime->refused("no stream");
}

}  // namespace nvinfer1

extern "C" {

void* createInferRuntime_INTERNAL(void* logger, int32_t version) noexcept {
  auto* to = static_cast<nvinfer1::ILogger*>(logger);
  nvinfer1::IRuntime::State state{to, false, 0};
  if (nvinfer1::fails(&state, "createInferRuntime") || version != NV_TENSORRT_VERSION) return nullptr;
  auto* runtime = new nvinfer1::IRuntime;
  runtime->mImpl = new nvinfer1::IRuntime::State(state);
  double_of::count("runtimes", 1);
  return runtime;
}

int32_t getInferLibMajorVersion() noexcept { return NV_TENSORRT_MAJOR; }
int32_t getInferLibMinorVersion() noexcept { return NV_TENSORRT_MINOR; }
int32_t getInferLibPatchVersion() noexcept { return NV_TENSORRT_PATCH; }
int32_t getInferLibBuildVersion() noexcept { return NV_TENSORRT_BUILD; }
}
