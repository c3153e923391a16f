#ifndef LIBRARY_DIGEST_H
#define LIBRARY_DIGEST_H

#include <cstdint>
#include <string>

std::uint64_t Digest(const std::string& text);

#endif
