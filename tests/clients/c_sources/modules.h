/* What every module of the test program includes. */
#ifndef MODULES_H
#define MODULES_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void require(int holds)
{
    if (!holds)
        abort();
}

static inline uint32_t fold(uint64_t wide)
{
    return (uint32_t)(wide ^ wide >> 32);
}

static inline uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

#include "declared.h"

#endif
