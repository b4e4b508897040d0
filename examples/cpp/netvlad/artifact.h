// An artifact of netvlad-deploy: an ONNX file or an engine, and the sidecar beside it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>

#include "netvlad/engine_record.h"
#include "netvlad/prepare.h"

namespace netvlad {

// How images lie in the input of a graph: uint8 RGB (1,H,W,3), or float32 from 0 to 255.
struct Layout {
  bool is_float = false;
  bool is_grey = false;
  bool channels_first = false;
};

// What a runner of images must know of an artifact, and the bytes of its file, which were compared with their hash.
struct Artifact {
  std::filesystem::path path;
  std::string kind;  // onnx or engine
  std::string precision;
  std::string input;   // name of the tensor of images
  std::string output;  // name of the descriptor
  Layout layout;
  Preparation preparation;
  std::optional<EngineRecord> engine;  // of an engine alone
  std::string content;
};

// Reads PATH and PATH.json. Throws Error if one is missing or too large, the sidecar was changed after it was written,
// the file is not the one that the sidecar describes, or it is no graph from images to one float32 descriptor.
Artifact load_artifact(const std::filesystem::path& path);

}  // namespace netvlad
