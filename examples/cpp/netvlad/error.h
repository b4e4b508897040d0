// The one kind of exception of this library.
#pragma once

#include <stdexcept>

namespace netvlad {

// What was found, what was expected and what to do, in one line.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace netvlad
