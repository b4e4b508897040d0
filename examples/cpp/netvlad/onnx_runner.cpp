// Runs an ONNX file on ONNX Runtime's CPU provider.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <cstdint>

#include "netvlad/error.h"
#include "netvlad/feed.h"
#include "netvlad/runner.h"

namespace netvlad {
namespace {

// ONNX Runtime gives the table of its functions only in versions that it knows: at most its own.
void load_api() {
  const OrtApiBase* base = OrtGetApiBase();
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    throw Error("ONNX Runtime " + std::string(base->GetVersionString()) + " is older than the headers of version 1." +
                std::to_string(ORT_API_VERSION) + " that this program was built with: install that version or a newer one");
  }
  Ort::InitApi(api);
}

Error of_runtime(const Ort::Exception& error) {
  std::string text = error.what();
  for (char& c : text) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return Error("ONNX Runtime: " + text);
}

class OnnxRunner final : public Runner {
 public:
  OnnxRunner(const Artifact& artifact, int threads)
      : Runner(artifact.preparation), input_(artifact.input), output_(artifact.output), layout_(artifact.layout) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);
    session_ = std::make_unique<Ort::Session>(environment_, artifact.content.data(), artifact.content.size(), options);
  }

 private:
  std::vector<float> run(const Image& prepared) const override {
    if (!layout_.is_float) {
      std::vector<std::uint8_t> pixels = prepared.values;  // ONNX Runtime asks for memory that may be written
      return run_on(pixels, prepared.size);
    }
    std::vector<float> values = laid_out(prepared, layout_);
    return run_on(values, prepared.size);
  }

  template <class Value>
  std::vector<float> run_on(std::vector<Value>& values, Size size) const {
    const TensorShape shape = shape_of(layout_, 1, size);
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const char* const inputs[] = {input_.c_str()};
    const char* const outputs[] = {output_.c_str()};
    try {
      const auto tensor =
          Ort::Value::CreateTensor<Value>(memory, values.data(), values.size(), shape.data(), shape.size());
      const std::vector<Ort::Value> found = session_->Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);
      const auto kind = found.front().GetTensorTypeAndShapeInfo();
      if (kind.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) throw Error("the descriptor is not float32");
      const float* descriptor = found.front().GetTensorData<float>();
      return {descriptor, descriptor + kind.GetElementCount()};
    } catch (const Ort::Exception& error) {
      throw of_runtime(error);
    }
  }

  std::string input_, output_;
  Layout layout_;
  Ort::Env environment_{ORT_LOGGING_LEVEL_ERROR, "netvlad"};
  std::unique_ptr<Ort::Session> session_;
};

}  // namespace

std::unique_ptr<Runner> open_onnx(const Artifact& artifact, int threads) {
  load_api();
  try {
    return std::make_unique<OnnxRunner>(artifact, threads);
  } catch (const Ort::Exception& error) {
    throw of_runtime(error);
  }
}

}  // namespace netvlad
