#include "library/words.h"

#include <sstream>

#include "marker.h"

std::vector<std::string> Words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) {
    words.push_back(word);
  }
  return words;
}

std::string Marked(const std::string& word) { return word + "-" MARKER; }
