/* Writes bytes as letters of BITS bits each and reads them back. Needs MODULE and BITS. */
#include "modules.h"

static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";

static size_t encode(const char *bytes, size_t length, char *text)
{
    uint32_t held = 0;
    int bits = 0;
    size_t written = 0;
    for (size_t i = 0; i < length; i++) {
        held = held << 8 | (unsigned char)bytes[i];
        for (bits += 8; bits >= BITS; bits -= BITS)
            text[written++] = letters[held >> (bits - BITS) & ((1u << BITS) - 1)];
    }
    if (bits > 0)
        text[written++] = letters[held << (BITS - bits) & ((1u << BITS) - 1)];
    return written;
}

static size_t decode(const char *text, size_t length, char *bytes)
{
    uint32_t held = 0;
    int bits = 0;
    size_t written = 0;
    for (size_t i = 0; i < length; i++) {
        held = held << BITS | (uint32_t)(strchr(letters, text[i]) - letters);
        bits += BITS;
        if (bits >= 8) {
            bits -= 8;
            bytes[written++] = (char)(held >> bits);
        }
    }
    return written;
}

uint32_t MODULE(uint32_t seed)
{
    char text[8 * sizeof MARKER], bytes[8 * sizeof MARKER];
    size_t length = encode(MARKER, sizeof MARKER, text);
    uint64_t sum = seed;
    require(decode(text, length, bytes) == sizeof MARKER);
    require(memcmp(bytes, MARKER, sizeof MARKER) == 0);
    for (size_t i = 0; i < length; i++)
        sum = sum * 43 + (unsigned char)text[i];
    return fold(sum);
}
