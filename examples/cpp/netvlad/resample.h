// The filters that resize an image, as Pillow, torch and OpenCV compute them.
#pragma once

#include <optional>
#include <string>

#include "netvlad/image.h"

namespace netvlad {

enum class Filter { bilinear, box, bicubic, lanczos, nearest_centre, antialiased, aliased, area, nearest };

// Returns the filter of a name in a sidecar; throws Error for a name that is not known here.
Filter filter_of(const std::string& name);

// Returns an image at another size, in the same order of colours. `factor` is the multiplier of both sides before they
// were rounded down to `size`: torch's filters then place the pixels by it.
Image resample(const ImageView& image, Size size, Filter filter, std::optional<double> factor = std::nullopt);

}  // namespace netvlad
