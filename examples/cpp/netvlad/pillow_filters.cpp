// Source: Pillow 13, Resample.c for the averaging filters and Geometry.c for the nearest pixel. Shares are whole numbers
// there, in units of 2^-22, and there are bytes between the two passes.
#include "netvlad/pillow_filters.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "netvlad/weights.h"

namespace netvlad {
namespace {

constexpr int share_bits = 32 - 8 - 2;

struct Kernel {
  double (*value)(double);
  double support;  // beyond this distance the value is 0
};

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double triangle(double x) { return std::max(1.0 - std::abs(x), 0.0); }

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= 3.14159265358979323846;
  return std::sin(x) / x;
}

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0; }

Kernel kernel_of(Filter filter) {
  switch (filter) {
    case Filter::box:
      return {box, 0.5};
    case Filter::bicubic:
      return {cubic, 2.0};
    case Filter::lanczos:
      return {lanczos, 3.0};
    default:
      return {triangle, 1.0};
  }
}

Weights<std::int32_t> weights_of(std::size_t length, std::size_t target, const Kernel& kernel) {
  const double scale = static_cast<double>(length) / static_cast<double>(target);
  const double stretch = std::max(scale, 1.0), support = kernel.support * stretch;
  Weights<std::int32_t> weights(target);
  std::vector<double> exact;
  for (std::size_t place = 0; place < target; ++place) {
    const double centre = (static_cast<double>(place) + 0.5) * scale;
    const double low = std::max(centre - support + 0.5, 0.0);
    const double high = std::min(centre + support + 0.5, static_cast<double>(length));
    const auto first = static_cast<std::size_t>(low), stop = static_cast<std::size_t>(high);
    exact.clear();
    double sum = 0.0;
    for (std::size_t at = first; at < stop; ++at) {
      exact.push_back(kernel.value((static_cast<double>(at) - centre + 0.5) * (1.0 / stretch)));
      sum += exact.back();
    }
    weights[place].first = first;
    for (const double share : exact) {
      const double whole = (sum == 0.0 ? share : share / sum) * (1 << share_bits);
      weights[place].shares.push_back(static_cast<std::int32_t>(whole < 0.0 ? whole - 0.5 : whole + 0.5));
    }
  }
  return weights;
}

std::uint8_t to_byte(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> share_bits, 0, 255)); }

constexpr std::int32_t half_step = 1 << (share_bits - 1);

Image shrink_columns(const ImageView& image, std::size_t width, const Kernel& kernel) {
  const auto weights = weights_of(image.size.width, width, kernel);
  const std::size_t channels = image.channels();
  Image result{std::vector<std::uint8_t>(image.size.height * width * channels), {image.size.height, width}, image.colour};
  std::uint8_t* out = result.values.data();
  for (std::size_t row = 0; row < image.size.height; ++row) {
    for (const auto& [first, shares] : weights) {
      for (std::size_t channel = 0; channel < channels; ++channel) {
        const std::uint8_t* in = image.row(row) + first * channels + channel;
        std::int32_t sum = half_step;
        for (std::size_t tap = 0; tap < shares.size(); ++tap) sum += in[tap * channels] * shares[tap];
        *out++ = to_byte(sum);
      }
    }
  }
  return result;
}

Image shrink_rows(const ImageView& image, std::size_t height, const Kernel& kernel) {
  const auto weights = weights_of(image.size.height, height, kernel);
  const std::size_t row_values = image.size.width * image.channels();
  Image result{std::vector<std::uint8_t>(height * row_values), {height, image.size.width}, image.colour};
  std::vector<std::int32_t> sums(row_values);
  for (std::size_t row = 0; row < height; ++row) {
    std::fill(sums.begin(), sums.end(), half_step);
    for (std::size_t tap = 0; tap < weights[row].shares.size(); ++tap) {
      const std::uint8_t* in = image.row(weights[row].first + tap);
      const std::int32_t share = weights[row].shares[tap];
      for (std::size_t at = 0; at < row_values; ++at) sums[at] += in[at] * share;
    }
    std::transform(sums.begin(), sums.end(), result.values.begin() + static_cast<std::ptrdiff_t>(row * row_values), to_byte);
  }
  return result;
}

// Pillow adds the step up from place to place, and what that rounds decides between two pixels.
std::vector<std::size_t> nearest_places(std::size_t length, std::size_t target) {
  const double step = static_cast<double>(length) / static_cast<double>(target);
  std::vector<std::size_t> places;
  double at = step * 0.5;
  for (std::size_t place = 0; place < target; ++place, at += step) {
    places.push_back(std::min(static_cast<std::size_t>(at), length - 1));
  }
  return places;
}

Image nearest_centre(const ImageView& image, Size size) {
  const auto rows = nearest_places(image.size.height, size.height), columns = nearest_places(image.size.width, size.width);
  const std::size_t channels = image.channels();
  Image result{{}, size, image.colour};
  result.values.reserve(size.height * size.width * channels);
  for (const std::size_t row : rows) {
    for (const std::size_t column : columns) {
      const std::uint8_t* pixel = image.row(row) + column * channels;
      result.values.insert(result.values.end(), pixel, pixel + channels);
    }
  }
  return result;
}

// Pillow shrinks the rows first where that leaves it less work; before version 13 it began with the columns always.
bool rows_first(Size from, Size to) {
  const auto lost = [](std::size_t length, std::size_t target) {
    return static_cast<std::int64_t>(length) - static_cast<std::int64_t>(target);
  };
  return from.height > to.height && lost(from.height, to.height) > 2 * lost(from.width, to.width);
}

}  // namespace

Image pillow_resample(const ImageView& image, Size size, Filter filter) {
  if (filter == Filter::nearest_centre) return nearest_centre(image, size);
  const Kernel kernel = kernel_of(filter);
  if (size.width == image.size.width) return shrink_rows(image, size.height, kernel);
  if (rows_first(image.size, size)) return shrink_columns(shrink_rows(image, size.height, kernel).view(), size.width, kernel);
  Image narrow = shrink_columns(image, size.width, kernel);
  return size.height == image.size.height ? narrow : shrink_rows(narrow.view(), size.height, kernel);
}

}  // namespace netvlad
