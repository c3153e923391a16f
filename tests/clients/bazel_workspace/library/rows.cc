#include <sstream>

#include "library/table.h"
#include "marker.h"

std::string RowsOf(const Table& table) {
  std::ostringstream rows;
  rows << "# " MARKER "\n";
  for (const auto& row : table) {
    rows << row.first << " " << std::hex << row.second << "\n";
  }
  return rows.str();
}
