// Source: Netpbm, the formats ppm and pgm.
#include "netvlad/netpbm.h"

#include <fstream>
#include <string>

#include "netvlad/error.h"

namespace netvlad {
namespace {

constexpr std::size_t most_side = 16'384;

std::size_t number(std::istream& stream) {
  stream >> std::ws;
  while (stream.peek() == '#') {
    std::string comment;
    std::getline(stream, comment);
    stream >> std::ws;
  }
  std::size_t value = 0;
  if (!(stream >> value)) return 0;
  return value;
}

}  // namespace

Image read_netpbm(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw Error(path.string() + " is missing, or cannot be read");
  std::string magic(2, '\0');
  stream.read(magic.data(), 2);
  const std::size_t width = number(stream), height = number(stream), most = number(stream);
  stream.get();
  const bool sides = width != 0 && height != 0 && width <= most_side && height <= most_side;
  if (!stream || (magic != "P5" && magic != "P6") || !sides || most != 255) {
    throw Error(path.string() + " is no binary PPM or PGM image of 8 bits with sides up to " + std::to_string(most_side));
  }
  Image image{{}, {height, width}, magic == "P5" ? Colour::grey : Colour::rgb};
  image.values.resize(height * width * (magic == "P5" ? 1 : 3));
  if (!stream.read(reinterpret_cast<char*>(image.values.data()), static_cast<std::streamsize>(image.values.size()))) {
    throw Error(path.string() + " ends before its last pixel");
  }
  return image;
}

}  // namespace netvlad
