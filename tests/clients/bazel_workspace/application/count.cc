#include <iostream>
#include <iterator>
#include <string>

#include "library/words.h"
#include "marker.h"

int main() {
  std::string text(std::istreambuf_iterator<char>(std::cin), {});
  std::cout << MARKER " " << Words(text).size() << "\n";
}
