#include "netvlad/prepare.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "netvlad/error.h"

namespace netvlad {
namespace {

constexpr std::size_t most_pixels = 89'478'485;  // a quarter GiB of RGB, as in the Python package
constexpr std::size_t most_side = 1U << 24;

std::string text(Size size) { return std::to_string(size.height) + "x" + std::to_string(size.width); }

void check_pixels(Size size, const char* what) {
  const bool sides = size.height != 0 && size.width != 0 && size.height <= most_side && size.width <= most_side;
  if (!sides || size.height * size.width > most_pixels) {
    throw Error(std::string(what) + " is " + text(size) + ", expected 1 to " + std::to_string(most_pixels) + " pixels");
  }
}

void check_view(const ImageView& image) {
  check_pixels(image.size, "the image");
  const std::size_t least = image.size.width * image.channels();
  if (image.pixels == nullptr) throw Error("the image has no pixels: its pointer is null");
  if (image.row_bytes < least) {
    throw Error("rows of " + std::to_string(image.row_bytes) + " bytes hold no " + std::to_string(image.size.width) +
                " pixels of " + std::to_string(image.channels()) + " bytes");
  }
}

// Python rounds halves to the even number, and so does nearbyint by default.
std::size_t rounded(double value) { return static_cast<std::size_t>(std::nearbyint(value)); }

Size cover_target(Size size, Size least) {
  if (least.height * size.width >= least.width * size.height) return {least.height, least.height * size.width / size.height};
  return {least.width * size.height / size.width, least.width};
}

std::optional<double> factor_of(Size size, const std::optional<Size>& cover) {
  if (!cover) return std::nullopt;
  return std::max(static_cast<double>(cover->height) / static_cast<double>(size.height),
                  static_cast<double>(cover->width) / static_cast<double>(size.width));
}

// Returns the part of an image that is kept. Source: torchvision, `center_crop`, for where the middle is.
ImageView middle(const ImageView& image, const std::optional<Size>& crop) {
  if (!crop) return image;
  if (image.size.height < crop->height || image.size.width < crop->width) {
    throw Error("after the resize the image is " + text(image.size) + ", smaller than the crop " + text(*crop));
  }
  const std::size_t top = rounded(static_cast<double>(image.size.height - crop->height) / 2);
  const std::size_t left = rounded(static_cast<double>(image.size.width - crop->width) / 2);
  return {image.row(top) + left * image.channels(), *crop, image.row_bytes, image.colour};
}

Image to_rgb(const ImageView& image) {
  Image result{{}, image.size, Colour::rgb};
  result.values.reserve(image.size.height * image.size.width * 3);
  const std::size_t step = image.channels();
  const std::size_t red = image.colour == Colour::bgr ? 2 : 0;
  const std::size_t green = image.colour == Colour::grey ? 0 : 1;
  const std::size_t blue = image.colour == Colour::rgb ? 2 : 0;
  for (std::size_t row = 0; row < image.size.height; ++row) {
    const std::uint8_t* pixel = image.row(row);
    for (std::size_t column = 0; column < image.size.width; ++column, pixel += step) {
      result.values.insert(result.values.end(), {pixel[red], pixel[green], pixel[blue]});
    }
  }
  return result;
}

}  // namespace

Size Preparation::target(Size size) const {
  const auto [height, width] = size;
  const std::size_t longer = std::max(height, width), shorter = std::min(height, width);
  if (stretched) return *stretched;
  if (cover) return cover_target(size, *cover);
  if (longest) {
    const double scale = std::min(1.0, static_cast<double>(*longest) / static_cast<double>(longer));
    return {std::max<std::size_t>(1, rounded(static_cast<double>(height) * scale)),
            std::max<std::size_t>(1, rounded(static_cast<double>(width) * scale))};
  }
  if (shortest) {
    const std::size_t other = std::max<std::size_t>(1, *shortest * longer / shorter);
    return height <= width ? Size{*shortest, other} : Size{other, *shortest};
  }
  return size;
}

Image prepare(const ImageView& image, const Preparation& rule) {
  check_view(image);
  const Size size = rule.target(image.size);
  check_pixels(size, "the resized image");
  Image resized;
  ImageView view = image;
  if (size != image.size) {
    resized = resample(image, size, rule.filter, factor_of(image.size, rule.cover));
    view = resized.view();
  }
  return to_rgb(middle(view, rule.crop));
}

}  // namespace netvlad
