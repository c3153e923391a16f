/* Table-driven reflected CRC-32. Needs MODULE, POLYNOMIAL and CHECK, the CRC of "123456789". */
#include "modules.h"

static uint32_t table[256];

static void fill_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t entry = i;
        for (int bit = 0; bit < 8; bit++)
            entry = entry & 1 ? entry >> 1 ^ POLYNOMIAL : entry >> 1;
        table[i] = entry;
    }
}

static uint32_t crc(const char *bytes, size_t length)
{
    uint32_t value = 0xffffffffu;
    for (size_t i = 0; i < length; i++)
        value = table[(value ^ (unsigned char)bytes[i]) & 0xff] ^ value >> 8;
    return ~value;
}

uint32_t MODULE(uint32_t seed)
{
    fill_table();
    require(crc("123456789", 9) == CHECK);
    return crc(MARKER, sizeof MARKER - 1) ^ seed;
}
