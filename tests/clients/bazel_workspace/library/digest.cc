#include "library/digest.h"

#include "marker.h"

std::uint64_t Digest(const std::string& text) {
  std::uint64_t value = 14695981039346656037ull;
  for (unsigned char letter : text + MARKER) {
    value = (value ^ letter) * 1099511628211ull;
  }
  return value;
}
