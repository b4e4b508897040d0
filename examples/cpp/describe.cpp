// netvlad-describe ARTIFACT IMAGE...: the descriptor of each PPM or PGM image, one line of numbers each.
#include <cstdio>
#include <exception>
#include <vector>

#include "netvlad/netpbm.h"
#include "netvlad/runner.h"

int main(int count, char** arguments) {
  if (count < 3) {
    std::fputs("usage: netvlad-describe ARTIFACT IMAGE.ppm...\n", stderr);
    return 2;
  }
  try {
    const auto runner = netvlad::open_runner(arguments[1]);
    for (int i = 2; i < count; ++i) {
      const netvlad::Image image = netvlad::read_netpbm(arguments[i]);
      const std::vector<float> descriptor = runner->describe(image.view());
      for (std::size_t at = 0; at < descriptor.size(); ++at) {
        std::printf(at == 0 ? "%.9g" : " %.9g", static_cast<double>(descriptor[at]));
      }
      std::printf("\n");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "netvlad-describe: %s\n", error.what());
    return 65;
  }
  return 0;
}
