// Runs an engine with TensorRT 10, after the checks of netvlad_deploy/tensorrt/loader.py: an engine is executable code.
#include <NvInfer.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <utility>

#include "netvlad/cuda.h"
#include "netvlad/error.h"
#include "netvlad/feed.h"
#include "netvlad/runner.h"

#if NV_TENSORRT_MAJOR < 10
#error "the headers of TensorRT 10 or later are needed"
#endif

namespace netvlad {
namespace {

constexpr const char* remedy = ": build the engine again on this machine";

// Keeps TensorRT's last error, which it may report from any thread.
class Log final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      const std::lock_guard<std::mutex> alone(mutex_);
      last_ = message;
      std::replace_if(last_.begin(), last_.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
    } catch (...) {  // no memory for the words of an error: the error itself is reported by its call
    }
  }

  void forget() {
    const std::lock_guard<std::mutex> alone(mutex_);
    last_.clear();
  }

  // Throws Error with the words of the last error unless `done`.
  void check(bool done, const char* call) {
    if (done) return;
    const std::lock_guard<std::mutex> alone(mutex_);
    throw Error("TensorRT: " + std::string(call) + " failed: " + (last_.empty() ? "no reason given" : last_));
  }

 private:
  std::mutex mutex_;
  std::string last_;
};

std::string running_version() {
  return std::to_string(getInferLibMajorVersion()) + "." + std::to_string(getInferLibMinorVersion()) + "." +
         std::to_string(getInferLibPatchVersion()) + "." + std::to_string(getInferLibBuildVersion());
}

std::string text_of(const nvinfer1::Dims& shape) {
  std::string text;
  for (int i = 0; i < std::clamp(shape.nbDims, 0, nvinfer1::Dims::MAX_DIMS); ++i) {
    text += (i == 0 ? "" : "x") + std::to_string(shape.d[i]);
  }
  return text;
}

nvinfer1::Dims dims_of(const TensorShape& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

std::string dtype_of(nvinfer1::DataType type) {
  if (type == nvinfer1::DataType::kFLOAT) return "float32";
  if (type == nvinfer1::DataType::kUINT8) return "uint8";
  return "data type " + std::to_string(static_cast<std::int32_t>(type));
}

using Profiles = std::vector<std::array<nvinfer1::Dims, 3>>;

std::string in_words(const std::string& name, const char* mode, const std::string& dtype, const Profiles& profiles) {
  std::string words = name + " (" + mode + " " + dtype;
  for (const auto& [least, usual, most] : profiles) {
    words += ", " + text_of(least) + " to " + text_of(usual) + " to " + text_of(most);
  }
  return words + ")";
}

// The tensors as the sidecar says them, in the words of `found_tensors`.
std::string said_tensors(const Artifact& artifact) {
  Profiles profiles;
  for (const EngineProfile& each : artifact.engine->profiles) {
    const auto shape = [&](std::size_t AxisRange::*end) {
      return dims_of(shape_of(artifact.layout, each.batch.*end, {each.height.*end, each.width.*end}));
    };
    profiles.push_back({shape(&AxisRange::least), shape(&AxisRange::usual), shape(&AxisRange::most)});
  }
  std::array<std::string, 2> words = {
      in_words(artifact.input, "input", artifact.layout.is_float ? "float32" : "uint8", profiles),
      in_words(artifact.output, "output", "float32", {})};
  std::sort(words.begin(), words.end());
  return words[0] + ", " + words[1];
}

std::string found_tensors(const nvinfer1::ICudaEngine& engine, Log& log) {
  std::vector<std::string> found;
  for (std::int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
    const char* name = engine.getIOTensorName(i);
    log.check(name != nullptr, "getIOTensorName");
    const bool is_input = engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    Profiles profiles;
    for (std::int32_t profile = 0; is_input && profile < engine.getNbOptimizationProfiles(); ++profile) {
      using Selector = nvinfer1::OptProfileSelector;
      profiles.push_back({engine.getProfileShape(name, profile, Selector::kMIN),
                          engine.getProfileShape(name, profile, Selector::kOPT),
                          engine.getProfileShape(name, profile, Selector::kMAX)});
    }
    found.push_back(in_words(name, is_input ? "input" : "output", dtype_of(engine.getTensorDataType(name)), profiles));
    if (engine.getTensorFormat(name) != nvinfer1::TensorFormat::kLINEAR) found.back() += " in a format of its own";
    if (engine.getTensorLocation(name) != nvinfer1::TensorLocation::kDEVICE) found.back() += " on the host";
  }
  std::sort(found.begin(), found.end());
  std::string text;
  for (const std::string& each : found) text += (text.empty() ? "" : ", ") + each;
  return text;
}

// A loaded engine with its context, stream and buffers. One thread at a time may run it, on the GPU it was made on.
class EngineSession {
 public:
  explicit EngineSession(const Artifact& artifact) : input_(artifact.input), output_(artifact.output) {
    runtime_.reset(nvinfer1::createInferRuntime(log_));
    log_.check(runtime_ != nullptr, "createInferRuntime");
    // an engine for later versions carries a runtime of its own, as native code
    if (artifact.engine->version_compatible) runtime_->setEngineHostCodeAllowed(true);
    engine_.reset(runtime_->deserializeCudaEngine(artifact.content.data(), artifact.content.size()));
    log_.check(engine_ != nullptr, "deserializeCudaEngine");
    const std::string found = found_tensors(*engine_, log_), said = said_tensors(artifact);
    if (found != said) throw Error("it has " + found + ", its sidecar says " + said + remedy);
    context_.reset(engine_->createExecutionContext());
    log_.check(context_ != nullptr, "createExecutionContext");
  }

  std::vector<float> run(const void* values, std::size_t bytes, const TensorShape& shape, std::size_t profile) {
    log_.forget();
    try {
      return run_queued(values, bytes, shape, static_cast<std::int32_t>(profile));
    } catch (const Error&) {
      static_cast<void>(cudaStreamSynchronize(stream_.get()));  // what is queued still uses the buffers
      throw;
    }
  }

 private:
  std::vector<float> run_queued(const void* values, std::size_t bytes, const TensorShape& shape, std::int32_t profile) {
    take_profile(profile);
    log_.check(context_->setInputShape(input_.c_str(), dims_of(shape)), "setInputShape");
    const nvinfer1::Dims found = context_->getTensorShape(output_.c_str());
    log_.check(found.nbDims >= 0, "getTensorShape");
    if (found.nbDims != 2 || found.d[0] != 1 || found.d[1] < 1) {
      throw Error("the descriptor has the shape " + text_of(found) + ", expected 1xP" + remedy);
    }
    std::vector<float> descriptor(static_cast<std::size_t>(found.d[1]));
    const std::size_t out_bytes = descriptor.size() * sizeof(float);
    host_in_.hold(bytes);
    device_in_.hold(bytes);
    host_out_.hold(out_bytes);
    device_out_.hold(out_bytes);
    log_.check(context_->setTensorAddress(input_.c_str(), device_in_.data()), "setTensorAddress");
    log_.check(context_->setTensorAddress(output_.c_str(), device_out_.data()), "setTensorAddress");

    std::memcpy(host_in_.data(), values, bytes);
    copy(device_in_, host_in_, bytes, cudaMemcpyHostToDevice);
    log_.check(context_->enqueueV3(stream_.get()), "enqueueV3");
    copy(host_out_, device_out_, out_bytes, cudaMemcpyDeviceToHost);
    stream_.wait();
    std::memcpy(descriptor.data(), host_out_.data(), out_bytes);
    return descriptor;
  }

  void take_profile(std::int32_t profile) {
    if (profile == profile_) return;
    profile_ = -1;  // unknown, should the change fail
    log_.check(context_->setOptimizationProfileAsync(profile, stream_.get()), "setOptimizationProfileAsync");
    profile_ = profile;
  }

  void copy(const Memory& target, const Memory& source, std::size_t bytes, cudaMemcpyKind way) const {
    check_cuda(cudaMemcpyAsync(target.data(), source.data(), bytes, way, stream_.get()), "cudaMemcpyAsync");
  }

  // In this order, since each must outlive those below it. No work is queued when they end: every run waits for its own.
  std::string input_, output_;
  Log log_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  Memory host_in_{Memory::Place::pinned}, host_out_{Memory::Place::pinned};
  Memory device_in_{Memory::Place::device}, device_out_{Memory::Place::device};
  Stream stream_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::int32_t profile_ = -1;
};

class EngineRunner final : public Runner {
 public:
  explicit EngineRunner(const Artifact& artifact)
      : Runner(artifact.preparation), record_(*artifact.engine), layout_(artifact.layout), device_(current_device()) {
    const std::string apart = record_.differences(running_version(), gpu_of(device_));
    if (!apart.empty()) throw Error("it does not fit this machine: " + apart + remedy);
    session_ = std::make_unique<EngineSession>(artifact);
  }

  ~EngineRunner() override {
    try {
      const OnDevice current(device_);
      session_.reset();
    } catch (const Error&) {  // the driver is gone: what is left is released as well as it can be
      session_.reset();
    }
  }

 private:
  std::vector<float> run(const Image& prepared) const override {
    const std::size_t profile = record_.fitting_profile(prepared.size);
    const TensorShape shape = shape_of(layout_, 1, prepared.size);
    const std::vector<float> values = layout_.is_float ? laid_out(prepared, layout_) : std::vector<float>();
    const std::lock_guard<std::mutex> alone(mutex_);
    const OnDevice current(device_);
    if (layout_.is_float) return session_->run(values.data(), values.size() * sizeof(float), shape, profile);
    return session_->run(prepared.values.data(), prepared.values.size(), shape, profile);
  }

  EngineRecord record_;
  Layout layout_;
  int device_;
  mutable std::mutex mutex_;
  std::unique_ptr<EngineSession> session_;
};

}  // namespace

std::unique_ptr<Runner> open_engine(const Artifact& artifact) {
  try {
    return std::make_unique<EngineRunner>(artifact);
  } catch (const Error& error) {
    throw Error(artifact.path.string() + ": " + error.what());
  }
}

}  // namespace netvlad
