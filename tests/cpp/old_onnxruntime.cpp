// An ONNX Runtime that is older than every program: it has the table of no version.
#include <onnxruntime_c_api.h>

namespace {

const OrtApi* no_api(uint32_t) noexcept { return nullptr; }
const char* version() noexcept { return "0.9.0"; }
const OrtApiBase base = {no_api, version};

}  // namespace

extern "C" const OrtApiBase* OrtGetApiBase() noexcept { return &base; }
