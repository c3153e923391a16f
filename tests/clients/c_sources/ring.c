/* A ring buffer that is filled and emptied at random. Needs MODULE and CAPACITY. */
#include "modules.h"

typedef struct {
    uint32_t slot[CAPACITY];
    size_t first, count;
} ring;

static int push(ring *buffer, uint32_t value)
{
    if (buffer->count == CAPACITY)
        return 0;
    buffer->slot[(buffer->first + buffer->count++) % CAPACITY] = value;
    return 1;
}

static int pop(ring *buffer, uint32_t *value)
{
    if (buffer->count == 0)
        return 0;
    *value = buffer->slot[buffer->first];
    buffer->first = (buffer->first + 1) % CAPACITY;
    buffer->count--;
    return 1;
}

uint32_t MODULE(uint32_t seed)
{
    ring buffer = {{0}, 0, 0};
    uint32_t in = 0, out = 0, value = 0;
    uint64_t sum = (unsigned char)MARKER[0];
    for (int step = 0; step < 2000; step++) {
        if (next_random(&seed) % 2)
            in += (uint32_t)push(&buffer, in);
        else if (pop(&buffer, &value))
            require(value == out++);
        sum = sum * 41 + buffer.count + (unsigned char)MARKER[step % (int)sizeof MARKER];
    }
    require(in - out == buffer.count);
    return fold(sum);
}
