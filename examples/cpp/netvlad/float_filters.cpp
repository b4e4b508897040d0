// Source: torch, UpSample.h (`area_pixel_compute_source_index`, `nearest_neighbor_compute_source_index`) and
// `_compute_indices_min_size_weights_aa`; OpenCV, `computeResizeAreaTab` in resize.cpp.
#include "netvlad/float_filters.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "netvlad/weights.h"

namespace netvlad {
namespace {

constexpr double sliver = 1e-3;  // OpenCV counts a smaller part of a pixel as none

using Places = Weights<float>;

Places aliased(std::size_t length, std::size_t target, float scale) {
  Places weights(target);
  for (std::size_t place = 0; place < target; ++place) {
    const double exact = static_cast<double>(scale) * (static_cast<double>(place) + 0.5) - 0.5;
    const float at = std::max(static_cast<float>(exact), 0.0F);
    const std::size_t first = std::min(static_cast<std::size_t>(at), length - 1);
    const float share = at - static_cast<float>(first);
    weights[place].first = first;
    weights[place].shares = first == length - 1 ? std::vector<float>{1.0F} : std::vector<float>{1.0F - share, share};
  }
  return weights;
}

Places antialiased(std::size_t length, std::size_t target, float scale) {
  Places weights(target);
  const float support = std::max(scale, 1.0F);
  std::vector<double> exact;
  for (std::size_t place = 0; place < target; ++place) {
    const float centre = scale * (static_cast<float>(place) + 0.5F);
    const float low = centre - support + 0.5F, high = centre + support + 0.5F;
    const std::size_t first = low > 0.0F ? static_cast<std::size_t>(low) : 0;
    const std::size_t stop = std::min(static_cast<std::size_t>(high), length);
    exact.clear();
    double sum = 0.0;
    for (std::size_t at = first; at < stop; ++at) {
      const double distance =
          (static_cast<double>(at) - static_cast<double>(centre) + 0.5) / static_cast<double>(support);
      exact.push_back(std::max(1.0 - std::abs(distance), 0.0));
      sum += exact.back();
    }
    weights[place].first = first;
    for (const double share : exact) weights[place].shares.push_back(static_cast<float>(share / sum));
  }
  return weights;
}

Places area(std::size_t length, std::size_t target) {
  Places weights(target);
  const double scale = static_cast<double>(length) / static_cast<double>(target);
  for (std::size_t place = 0; place < target; ++place) {
    const double low = static_cast<double>(place) * scale;
    const double high = std::min(low + scale, static_cast<double>(length));
    const std::size_t first = std::min(static_cast<std::size_t>(low + sliver), length - 1);
    weights[place].first = first;
    for (std::size_t at = first; at < length && static_cast<double>(at) < high; ++at) {
      const double pixel = static_cast<double>(at), under = std::min(pixel + 1.0, high) - std::max(pixel, low);
      weights[place].shares.push_back(under > sliver ? static_cast<float>(under / (high - low)) : 0.0F);
    }
  }
  return weights;
}

Places nearest(std::size_t length, std::size_t target, float scale) {
  Places weights(target);
  for (std::size_t place = 0; place < target; ++place) {
    const auto at = static_cast<std::size_t>(scale * static_cast<float>(place));
    weights[place] = {std::min(at, length - 1), {1.0F}};
  }
  return weights;
}

Places weights_of(Filter filter, std::size_t length, std::size_t target, std::optional<double> factor) {
  if (filter == Filter::area) return area(length, target);
  const float scale =
      factor ? static_cast<float>(1.0 / *factor) : static_cast<float>(length) / static_cast<float>(target);
  switch (filter) {
    case Filter::antialiased:
      return antialiased(length, target, scale);
    case Filter::nearest:
      return nearest(length, target, scale);
    default:
      return aliased(length, target, scale);
  }
}

std::uint8_t to_byte(float value) {
  return static_cast<std::uint8_t>(std::clamp(std::nearbyint(value), 0.0F, 255.0F));  // halves to the even number
}

}  // namespace

Image float_resample(const ImageView& image, Size size, Filter filter, std::optional<double> factor) {
  if (filter == Filter::area && (size.height > image.size.height || size.width > image.size.width)) {
    filter = Filter::aliased;  // OpenCV enlarges so, if either side grows
    factor.reset();
  }
  const Places rows = weights_of(filter, image.size.height, size.height, factor);
  const Places columns = weights_of(filter, image.size.width, size.width, factor);
  const std::size_t channels = image.channels();
  std::vector<float> sums(image.size.width * channels);
  Image result{{}, size, image.colour};
  result.values.reserve(size.height * size.width * channels);
  for (const auto& row : rows) {
    std::fill(sums.begin(), sums.end(), 0.0F);
    for (std::size_t tap = 0; tap < row.shares.size(); ++tap) {
      const std::uint8_t* in = image.row(row.first + tap);
      for (std::size_t at = 0; at < sums.size(); ++at) sums[at] += row.shares[tap] * static_cast<float>(in[at]);
    }
    for (const auto& column : columns) {
      for (std::size_t channel = 0; channel < channels; ++channel) {
        const float* in = sums.data() + column.first * channels + channel;
        float value = 0.0F;
        for (std::size_t tap = 0; tap < column.shares.size(); ++tap) value += column.shares[tap] * in[tap * channels];
        result.values.push_back(to_byte(value));
      }
    }
  }
  return result;
}

}  // namespace netvlad
