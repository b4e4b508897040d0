#include "netvlad/feed.h"

#include <cstddef>
#include <cstdint>

namespace netvlad {
namespace {

// Source: Pillow, Convert.c, the shares of ITU-R 601-2 in units of 2^-16; three equal values give that value.
float grey_of(const std::uint8_t* rgb) {
  const std::uint32_t sum = rgb[0] * 19595U + rgb[1] * 38470U + rgb[2] * 7471U + 0x8000U;
  return static_cast<float>(sum >> 16);
}

}  // namespace

TensorShape shape_of(const Layout& layout, std::size_t batch, Size size) {
  const auto images = static_cast<std::int64_t>(batch);
  const auto height = static_cast<std::int64_t>(size.height), width = static_cast<std::int64_t>(size.width);
  const std::int64_t channels = layout.is_grey ? 1 : 3;
  return layout.channels_first ? TensorShape{images, channels, height, width}
                               : TensorShape{images, height, width, channels};
}

std::vector<float> laid_out(const Image& prepared, const Layout& layout) {
  const std::size_t pixels = prepared.size.height * prepared.size.width;
  const std::size_t channels = layout.is_grey ? 1 : 3;
  std::vector<float> values(pixels * channels);
  for (std::size_t at = 0; at < pixels; ++at) {
    const std::uint8_t* rgb = prepared.values.data() + 3 * at;
    for (std::size_t channel = 0; channel < channels; ++channel) {
      const std::size_t place = layout.channels_first ? channel * pixels + at : at * channels + channel;
      values[place] = layout.is_grey ? grey_of(rgb) : static_cast<float>(rgb[channel]);
    }
  }
  return values;
}

}  // namespace netvlad
