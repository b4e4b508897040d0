// What the sidecar of an engine says of the machine and the shapes that it was built for.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "netvlad/image.h"
#include "netvlad/json.h"

namespace netvlad {

// Least, usual and most length of an axis.
struct AxisRange {
  std::size_t least = 1;
  std::size_t usual = 1;
  std::size_t most = 1;

  bool holds(std::size_t length) const { return least <= length && length <= most; }
};

// The shapes of images that one optimization profile is for.
struct EngineProfile {
  AxisRange batch, height, width;

  bool holds(Size size) const { return batch.holds(1) && height.holds(size.height) && width.holds(size.width); }
  std::string text() const;  // as in `1x240x320 to 8x480x640`
};

// A GPU by name and compute capability, such as `8.7`.
struct Gpu {
  std::string name;
  std::string compute_capability;
};

struct EngineRecord {
  std::string version;  // of the TensorRT that built it
  Gpu gpu;
  bool hardware_compatible = false;
  bool version_compatible = false;
  std::vector<EngineProfile> profiles;

  // Reads the record of a sidecar. Throws Error if it is none of TensorRT's engines of images.
  static EngineRecord of(const Json& sidecar);

  // Returns the number of the smallest profile that holds one image; throws Error if none does.
  std::size_t fitting_profile(Size size) const;

  // Returns in words all that keeps the engine from running on this TensorRT and this GPU; nothing if it fits.
  std::string differences(const std::string& running_version, const Gpu& running_gpu) const;
};

}  // namespace netvlad
