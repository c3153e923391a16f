/* Shifts the letters of a sentence and turns its words round. Needs MODULE and SHIFT. */
#include "modules.h"

static char shifted(char letter, int by)
{
    if (letter < 'a' || letter > 'z')
        return letter;
    return (char)('a' + (letter - 'a' + by + 26) % 26);
}

static void shift_text(char *text, int by)
{
    for (; *text; text++)
        *text = shifted(*text, by);
}

static void reverse(char *first, char *last)
{
    while (first < last) {
        char kept = *first;
        *first++ = *last;
        *last-- = kept;
    }
}

static void reverse_words(char *text)
{
    while (*text) {
        size_t length = strcspn(text, " ");
        if (length > 1)
            reverse(text, text + length - 1);
        text += length + strspn(text + length, " ");
    }
}

uint32_t MODULE(uint32_t seed)
{
    static const char plain[] = "the stones of a vault carry each other " MARKER;
    char text[sizeof plain];
    uint64_t sum = seed;
    memcpy(text, plain, sizeof plain);
    shift_text(text, SHIFT);
    reverse_words(text);
    for (const char *c = text; *c; c++)
        sum = sum * 37 + (unsigned char)*c;
    reverse_words(text);
    shift_text(text, -SHIFT);
    require(strcmp(text, plain) == 0);
    return fold(sum);
}
