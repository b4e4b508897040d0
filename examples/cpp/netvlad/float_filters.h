// The filters of torch on tensors, and OpenCV's area, which compute with fractions until the end.
#pragma once

#include <optional>

#include "netvlad/resample.h"

namespace netvlad {

// Returns an image at another size by antialiased, aliased, area or nearest.
Image float_resample(const ImageView& image, Size size, Filter filter, std::optional<double> factor);

}  // namespace netvlad
