#include "netvlad/resample.h"

#include <array>
#include <utility>

#include "netvlad/error.h"
#include "netvlad/float_filters.h"
#include "netvlad/pillow_filters.h"

namespace netvlad {

Filter filter_of(const std::string& name) {
  static constexpr std::array<std::pair<const char*, Filter>, 9> known = {{{"bilinear", Filter::bilinear},
                                                                          {"box", Filter::box},
                                                                          {"bicubic", Filter::bicubic},
                                                                          {"lanczos", Filter::lanczos},
                                                                          {"nearest-centre", Filter::nearest_centre},
                                                                          {"bilinear-antialiased", Filter::antialiased},
                                                                          {"bilinear-aliased", Filter::aliased},
                                                                          {"area", Filter::area},
                                                                          {"nearest", Filter::nearest}}};
  for (const auto& [text, filter] : known) {
    if (name == text) return filter;
  }
  throw Error("the filter " + name.substr(0, 40) + " is not known to this runner: export with --resize ...,bilinear");
}

Image resample(const ImageView& image, Size size, Filter filter, std::optional<double> factor) {
  switch (filter) {
    case Filter::antialiased:
    case Filter::aliased:
    case Filter::area:
    case Filter::nearest:
      return float_resample(image, size, filter, factor);
    default:
      return pillow_resample(image, size, filter);
  }
}

}  // namespace netvlad
