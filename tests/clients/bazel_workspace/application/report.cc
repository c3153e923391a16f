#include <iostream>
#include <iterator>
#include <string>

#include "library/table.h"
#include "marker.h"

int main() {
  std::string text(std::istreambuf_iterator<char>(std::cin), {});
  std::cout << RowsOf(TableOf(text + " " MARKER));
}
