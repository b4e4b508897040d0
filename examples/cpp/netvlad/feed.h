// The last step before a run: pixels become the values of the tensor that a graph takes.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "netvlad/artifact.h"
#include "netvlad/image.h"

namespace netvlad {

using TensorShape = std::array<std::int64_t, 4>;

// Returns the shape of the tensor that holds so many images of a size.
TensorShape shape_of(const Layout& layout, std::size_t batch, Size size);

// Returns the float32 values, from 0 to 255, of a prepared RGB image in a layout that is float.
std::vector<float> laid_out(const Image& prepared, const Layout& layout);

}  // namespace netvlad
