/* Calls every module in turn and prints what they add up to. */
#include "modules.h"

int main(void)
{
    static uint32_t (*const modules[])(uint32_t) = {MODULES};
    uint32_t sum = sizeof MARKER;
    for (size_t i = 0; i < sizeof modules / sizeof modules[0]; i++)
        sum = sum * 31 + modules[i](sum);
    printf("%08x\n", (unsigned)sum);
    return 0;
}
