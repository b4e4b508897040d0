// SHA-256, by which a file is told from all others.
#pragma once

#include <string>
#include <string_view>

namespace netvlad {

// Returns the SHA-256 of bytes as 64 lower-case hexadecimal digits.
std::string sha256(std::string_view bytes);

}  // namespace netvlad
