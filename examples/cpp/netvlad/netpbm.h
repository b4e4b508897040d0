// Reads the image files of describe: PPM and PGM, binary, 8 bits.
#pragma once

#include <filesystem>

#include "netvlad/image.h"

namespace netvlad {

// Returns the image of a file `P5` (grey) or `P6` (RGB) with values up to 255. Throws Error if it is another file.
Image read_netpbm(const std::filesystem::path& path);

}  // namespace netvlad
