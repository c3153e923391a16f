/* Counts primes and adds them up. Needs MODULE, LIMIT and EXPECTED, the number of primes. */
#include "modules.h"

static void cross_out(unsigned char *composite)
{
    for (uint32_t i = 2; i * i < LIMIT; i++)
        for (uint32_t j = i * i; !composite[i] && j < LIMIT; j += i)
            composite[j] = 1;
}

uint32_t MODULE(uint32_t seed)
{
    static unsigned char composite[LIMIT];
    uint32_t count = 0;
    uint64_t sum = seed + sizeof MARKER;
    cross_out(composite);
    for (uint32_t i = 2; i < LIMIT; i++) {
        if (composite[i])
            continue;
        count++;
        sum += i * (uint64_t)(unsigned char)MARKER[i % (sizeof MARKER - 1)];
    }
    require(count == EXPECTED);
    return fold(sum);
}
