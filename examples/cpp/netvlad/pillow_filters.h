// Pillow's filters on bytes.
#pragma once

#include "netvlad/resample.h"

namespace netvlad {

// Returns an image at another size by bilinear, box, bicubic, lanczos or nearest_centre.
Image pillow_resample(const ImageView& image, Size size, Filter filter);

}  // namespace netvlad
