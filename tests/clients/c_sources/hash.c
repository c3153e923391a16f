/* Multiplicative hash of growing strings. Needs MODULE, WORD, START and FACTOR. */
#include "modules.h"

static WORD hash_bytes(const char *bytes, size_t length)
{
    WORD hash = START;
    for (size_t i = 0; i < length; i++) {
        hash ^= (unsigned char)bytes[i];
        hash *= FACTOR;
    }
    return hash;
}

uint32_t MODULE(uint32_t seed)
{
    char text[sizeof MARKER + 16];
    uint64_t sum = 0;
    for (uint32_t round = 0; round < 64; round++) {
        int length = snprintf(text, sizeof text, "%s%u", MARKER, seed % 1000 + round);
        sum += hash_bytes(text, (size_t)length);
    }
    return fold(sum);
}
