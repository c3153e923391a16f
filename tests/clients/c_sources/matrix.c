/* Powers of a square matrix over a prime field. Needs MODULE, SIZE and PRIME. */
#include "modules.h"

typedef struct {
    uint64_t cell[SIZE][SIZE];
} matrix;

static matrix identity(void)
{
    matrix one = {{{0}}};
    for (int i = 0; i < SIZE; i++)
        one.cell[i][i] = 1;
    return one;
}

static matrix product(const matrix *a, const matrix *b)
{
    matrix result = {{{0}}};
    for (int row = 0; row < SIZE; row++)
        for (int column = 0; column < SIZE; column++)
            for (int i = 0; i < SIZE; i++)
                result.cell[row][column] =
                    (result.cell[row][column] + a->cell[row][i] * b->cell[i][column]) % PRIME;
    return result;
}

static matrix power(matrix base, unsigned exponent)
{
    matrix result = identity();
    for (; exponent > 0; exponent /= 2) {
        if (exponent % 2)
            result = product(&result, &base);
        base = product(&base, &base);
    }
    return result;
}

uint32_t MODULE(uint32_t seed)
{
    matrix base;
    for (int i = 0; i < SIZE * SIZE; i++)
        base.cell[i / SIZE][i % SIZE] = (next_random(&seed) + (unsigned)MARKER[0]) % PRIME;
    matrix left = power(base, 20), right = power(base, 22), whole = power(base, 42);
    matrix joined = product(&left, &right);
    uint64_t sum = 0;
    for (int i = 0; i < SIZE * SIZE; i++) {
        require(joined.cell[i / SIZE][i % SIZE] == whole.cell[i / SIZE][i % SIZE]);
        sum = sum * 33 + whole.cell[i / SIZE][i % SIZE];
    }
    return fold(sum);
}
