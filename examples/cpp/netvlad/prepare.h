// The way from a camera's image to the pixels that enter a graph: resized by the sidecar's rule, the middle cut out.
#pragma once

#include <optional>

#include "netvlad/image.h"
#include "netvlad/resample.h"

namespace netvlad {

// The rule of a sidecar. At most one of the first four is set; with none an image stays as large as it is.
struct Preparation {
  std::optional<Size> stretched;        // every image gets this size
  std::optional<Size> cover;            // the shape is kept, and the image just covers this size
  std::optional<std::size_t> longest;   // most length of the longer side; smaller images stay
  std::optional<std::size_t> shortest;  // length of the shorter side
  Filter filter = Filter::bilinear;
  std::optional<Size> crop;  // the middle that is kept after the resize

  // Returns the size of an image after the resize, before the crop.
  Size target(Size size) const;
};

// Returns the image as the graph takes it, in RGB; a grey image has three equal channels then.
// Throws Error if the view holds no image, or the image is smaller than the crop or too large.
Image prepare(const ImageView& image, const Preparation& rule);

}  // namespace netvlad
