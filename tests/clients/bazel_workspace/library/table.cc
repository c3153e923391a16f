#include "library/table.h"

#include "library/digest.h"
#include "library/words.h"
#include "marker.h"

Table TableOf(const std::string& text) {
  Table table{{MARKER, 0}};
  for (const std::string& word : Words(text)) {
    table[Marked(word)] = Digest(word);
  }
  return table;
}
