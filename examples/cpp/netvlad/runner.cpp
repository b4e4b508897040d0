#include "netvlad/runner.h"

#include <algorithm>
#include <cmath>

#include "netvlad/error.h"

namespace netvlad {

std::vector<float> Runner::describe(const ImageView& image) const {
  std::vector<float> descriptor = run(prepare(image, preparation_));
  if (!std::all_of(descriptor.begin(), descriptor.end(), [](float value) { return std::isfinite(value); })) {
    throw Error("the descriptor has values that are not finite: validate the artifact");
  }
  return descriptor;
}

std::unique_ptr<Runner> open_runner(const std::filesystem::path& path, int threads) {
  const Artifact artifact = load_artifact(path);
  if (artifact.kind == "onnx") return open_onnx(artifact, threads);
  if (artifact.kind == "engine") return open_engine(artifact);
  throw Error(path.string() + " is of the kind " + artifact.kind.substr(0, 40) + ", expected onnx or engine");
}

}  // namespace netvlad
