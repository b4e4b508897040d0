// From an image in memory to its descriptor.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "netvlad/artifact.h"
#include "netvlad/image.h"

namespace netvlad {

// A graph that is ready to run. Threads may share a runner.
class Runner {
 public:
  virtual ~Runner() = default;
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  // Returns the descriptor of an image. Throws Error if the image does not fit the rule of the sidecar, the run fails
  // or a value of the descriptor is not finite.
  std::vector<float> describe(const ImageView& image) const;

 protected:
  explicit Runner(const Preparation& preparation) : preparation_(preparation) {}

 private:
  virtual std::vector<float> run(const Image& prepared) const = 0;

  Preparation preparation_;
};

// Opens an ONNX file on ONNX Runtime's CPU provider, or an engine on this thread's current GPU. `threads` is the number
// of threads of one run on the CPU, 0 for one a core. Throws Error as load_artifact does, if ONNX Runtime is too old or
// refuses the file, for an engine if this program was built without TensorRT, and if the engine was built by another
// TensorRT or for another GPU.
std::unique_ptr<Runner> open_runner(const std::filesystem::path& path, int threads = 0);

// The part of open_runner that knows ONNX Runtime, and the one that knows TensorRT.
std::unique_ptr<Runner> open_onnx(const Artifact& artifact, int threads);
std::unique_ptr<Runner> open_engine(const Artifact& artifact);

}  // namespace netvlad
