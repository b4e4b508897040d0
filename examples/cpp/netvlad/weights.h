// What both kinds of filters share: which neighbours an output place has along one axis, and how much each counts.
#pragma once

#include <cstddef>
#include <vector>

namespace netvlad {

// Neighbours of one output place: those from `first` on, with one share each.
template <class Share>
struct Neighbours {
  std::size_t first = 0;
  std::vector<Share> shares;
};

template <class Share>
using Weights = std::vector<Neighbours<Share>>;  // one for each output place

}  // namespace netvlad
