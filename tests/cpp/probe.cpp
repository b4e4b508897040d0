// Runs the C++ runner on what stands on standard input, for the tests.
//
//   probe pixels              cases: a line of numbers, then the bytes of the image; answers with prepared pixels
//   probe describe ARTIFACT   the same cases, whose rule is not used; answers with descriptors
//   probe load                paths of artifacts, one a line; answers "ok" or the error of each
//
// An answer is "ok HEIGHT WIDTH" or "ok COUNT" and a line end, then bytes; or "error TEXT".
#include <cstdio>
#include <exception>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "netvlad/error.h"
#include "netvlad/runner.h"

namespace {

struct Case {
  netvlad::ImageView view;
  netvlad::Preparation rule;
  std::unique_ptr<std::uint8_t[]> bytes;  // exactly as many as the view may read, so that AddressSanitizer sees more
};

std::optional<netvlad::Size> size_or_none(std::size_t height, std::size_t width) {
  return height == 0 ? std::nullopt : std::optional(netvlad::Size{height, width});
}

std::optional<std::size_t> length_or_none(std::size_t length) {
  return length == 0 ? std::nullopt : std::optional(length);
}

bool read_case(std::istream& stream, Case& given) {
  std::string line, colour, filter;
  if (!std::getline(stream, line)) return false;
  std::istringstream words(line);
  std::size_t count = 0, numbers[8];
  words >> given.view.size.height >> given.view.size.width >> given.view.row_bytes >> count >> colour >> filter;
  for (std::size_t& number : numbers) words >> number;
  if (!words) throw std::runtime_error("a case that is no case");
  given.view.colour = colour == "grey" ? netvlad::Colour::grey
                                       : (colour == "bgr" ? netvlad::Colour::bgr : netvlad::Colour::rgb);
  given.bytes = std::make_unique<std::uint8_t[]>(count);
  stream.read(reinterpret_cast<char*>(given.bytes.get()), static_cast<std::streamsize>(count));
  given.view.pixels = count == 0 ? nullptr : given.bytes.get();
  given.rule.stretched = size_or_none(numbers[0], numbers[1]);
  given.rule.cover = size_or_none(numbers[2], numbers[3]);
  given.rule.longest = length_or_none(numbers[4]);
  given.rule.shortest = length_or_none(numbers[5]);
  given.rule.crop = size_or_none(numbers[6], numbers[7]);
  given.rule.filter = netvlad::filter_of(filter);
  return true;
}

void write(const void* bytes, std::size_t count) {
  std::cout.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(count));
}

void answer_pixels(const Case& given) {
  const netvlad::Image image = netvlad::prepare(given.view, given.rule);
  std::cout << "ok " << image.size.height << " " << image.size.width << "\n";
  write(image.values.data(), image.values.size());
}

void answer_descriptor(const netvlad::Runner& runner, const Case& given) {
  const std::vector<float> descriptor = runner.describe(given.view);
  std::cout << "ok " << descriptor.size() << "\n";
  write(descriptor.data(), descriptor.size() * sizeof(float));
}

void answer(const netvlad::Runner* runner) {
  for (Case given; read_case(std::cin, given); given = Case{}) {
    try {
      runner == nullptr ? answer_pixels(given) : answer_descriptor(*runner, given);
    } catch (const netvlad::Error& error) {
      std::cout << "error " << error.what() << "\n";
    }
  }
}

void load() {
  for (std::string path; std::getline(std::cin, path);) {
    try {
      netvlad::load_artifact(path);
      std::cout << "ok\n";
    } catch (const netvlad::Error& error) {
      std::cout << "error " << error.what() << "\n";
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  try {
    if (mode == "pixels") answer(nullptr);
    if (mode == "describe" && count == 3) answer(netvlad::open_runner(arguments[2], 1).get());
    if (mode == "load") load();
  } catch (const netvlad::Error& error) {
    std::cout << "error " << error.what() << "\n";
  }
  return 0;
}
