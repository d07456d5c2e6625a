/* Uses as many megabytes of stack as its input says. */
#include <alloca.h>
#include <stdint.h>
#include <string.h>

uint32_t deep(void *input, uint32_t input_bytes, void *output) {
    uint32_t megabytes = *(uint32_t *)input;
    volatile char *stack = alloca((size_t)megabytes << 20);
    for (size_t i = 0; i < (size_t)megabytes << 20; i += 4096) stack[i] = 1;
    memcpy(output, input, input_bytes);
    return input_bytes;
}
