#ifndef LIBRARY_TABLE_H
#define LIBRARY_TABLE_H

#include <cstdint>
#include <map>
#include <string>

using Table = std::map<std::string, std::uint64_t>;

Table TableOf(const std::string& text);
std::string RowsOf(const Table& table);

#endif
