#ifndef LIBRARY_WORDS_H
#define LIBRARY_WORDS_H

#include <string>
#include <vector>

std::vector<std::string> Words(const std::string& text);
std::string Marked(const std::string& word);

#endif
