/* Uses as many megabytes of stack as its input says; and 4 when it is loaded, as a constructor may. */
#include <alloca.h>
#include <stdint.h>
#include <string.h>

static void use(volatile char *stack, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 4096) stack[i] = 1;
}

__attribute__((constructor)) static void loaded(void) {
    volatile char stack[4 << 20];
    use(stack, sizeof stack);
}

uint32_t deep(void *input, uint32_t input_bytes, void *output) {
    uint32_t megabytes = *(uint32_t *)input;
    volatile char *stack = alloca((size_t)megabytes << 20);
    use(stack, (size_t)megabytes << 20);
    memcpy(output, input, input_bytes);
    return input_bytes;
}
