// An artifact of netvlad-deploy: an ONNX file or an engine, and the sidecar beside it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

#include "netvlad/prepare.h"

namespace netvlad {

// What a runner of images must know of an artifact, and the bytes of its file, which were compared with their hash.
struct Artifact {
  std::string kind;  // onnx or engine
  std::string precision;
  std::string input;   // name of the tensor of images
  std::string output;  // name of the descriptor
  Preparation preparation;
  std::string tensorrt;  // version of TensorRT that built an engine; empty for an ONNX file
  std::string content;
};

// Reads PATH and PATH.json. Throws Error if one is missing or too large, the sidecar was changed after it was written,
// the file is not the one that the sidecar describes, or it is no graph from images to one float32 descriptor.
Artifact load_artifact(const std::filesystem::path& path);

}  // namespace netvlad
