// Images in memory: as a camera gives them, and as this library keeps them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace netvlad {

enum class Colour { rgb, bgr, grey };

// A height and a width.
struct Size {
  std::size_t height = 0;
  std::size_t width = 0;

  friend bool operator==(const Size& a, const Size& b) { return a.height == b.height && a.width == b.width; }
  friend bool operator!=(const Size& a, const Size& b) { return !(a == b); }
};

// An image of 8 bits a channel that belongs to somebody else; a row may be followed by bytes that are no pixels.
struct ImageView {
  const std::uint8_t* pixels = nullptr;  // channels stand beside each other
  Size size;
  std::size_t row_bytes = 0;  // from the start of a row to the start of the next
  Colour colour = Colour::rgb;

  std::size_t channels() const { return colour == Colour::grey ? 1 : 3; }
  const std::uint8_t* row(std::size_t number) const { return pixels + number * row_bytes; }
};

// An image of 8 bits a channel, without gaps between its rows.
struct Image {
  std::vector<std::uint8_t> values;
  Size size;
  Colour colour = Colour::rgb;

  ImageView view() const {
    const std::size_t channels = colour == Colour::grey ? 1 : 3;
    return {values.data(), size, size.width * channels, colour};
  }
};

}  // namespace netvlad
