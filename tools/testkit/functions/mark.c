/* Functions for a traced worker. Built by tests with `cc -shared -fPIC`. */
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* Returns its input. */
uint32_t echo(void *input, uint32_t input_bytes, void *output) {
    memcpy(output, input, input_bytes);
    return input_bytes;
}

/* Makes the one system call getppid, which nothing else here makes. */
uint32_t mark(void *input, uint32_t input_bytes, void *output) {
    (void)input, (void)input_bytes, (void)output;
    getppid();
    return 0;
}
