/* Needs a function that no library has. */
#include <stdint.h>

extern uint32_t function_of_nobody(void);

uint32_t calls_nobody(void *input, uint32_t input_bytes, void *output) {
    (void)input, (void)input_bytes, (void)output;
    return function_of_nobody();
}
