/* Functions of graphs: what comes out tells which of them it went through. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Each byte, plus one. */
uint32_t add_one(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    for (uint32_t i = 0; i < bytes; i++)
        output[i] = input[i] + 1;
    return bytes;
}

/* Each byte, twice. */
uint32_t twice(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    for (uint32_t i = 0; i < bytes; i++)
        output[i] = 2 * input[i];
    return bytes;
}

/* The number of bytes. */
uint32_t count(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    (void)input;
    memcpy(output, &bytes, sizeof bytes);
    return sizeof bytes;
}

/* What the first byte says: 'c' crashes, 'e' exits, 'h' hangs, 'l' returns more than was agreed, 's' takes its time;
   others come back. */
uint32_t obey(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    switch (bytes ? input[0] : 0) {
    case 'c':
        abort();
    case 'e':
        _Exit(7);
    case 'h':
        for (;;) {
            struct timespec second = {1, 0};
            nanosleep(&second, NULL);
        }
    case 'l':
        return 1u << 30;
    case 's': {
        struct timespec while_it_is_killed = {0, 400 * 1000 * 1000};
        nanosleep(&while_it_is_killed, NULL);
        memcpy(output, input, bytes);
        return bytes;
    }
    case 'w': /* more than the smaller of two edges holds, not more than the larger one */
        memset(output, 'w', 1000);
        return 1000;
    default:
        memcpy(output, input, bytes);
        return bytes;
    }
}
