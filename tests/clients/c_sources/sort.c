/* Heap sort. Needs MODULE and ELEMENT, an unsigned type. */
#include "modules.h"

enum { COUNT = 500 };

static void swap(ELEMENT *a, ELEMENT *b)
{
    ELEMENT kept = *a;
    *a = *b;
    *b = kept;
}

static void sift_down(ELEMENT *heap, size_t root, size_t count)
{
    for (size_t child = 2 * root + 1; child < count; child = 2 * root + 1) {
        if (child + 1 < count && heap[child] < heap[child + 1])
            child++;
        if (heap[root] >= heap[child])
            return;
        swap(&heap[root], &heap[child]);
        root = child;
    }
}

static void heap_sort(ELEMENT *items, size_t count)
{
    for (size_t root = count / 2; root-- > 0;)
        sift_down(items, root, count);
    while (count-- > 1) {
        swap(&items[0], &items[count]);
        sift_down(items, 0, count);
    }
}

uint32_t MODULE(uint32_t seed)
{
    ELEMENT items[COUNT];
    uint64_t sum = 0;
    for (size_t i = 0; i < COUNT; i++)
        items[i] = (ELEMENT)(next_random(&seed) + MARKER[i % (sizeof MARKER - 1)]);
    heap_sort(items, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        require(i == 0 || items[i - 1] <= items[i]);
        sum = sum * 31 + items[i];
    }
    return fold(sum);
}
