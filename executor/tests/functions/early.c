// A library whose constructor can be seen.
#include <stdint.h>
#include <unistd.h>

__attribute__((constructor)) static void construct(void) {
    static const char text[] = "constructed\n";
    if (write(2, text, sizeof text - 1) < 0) _exit(9);
}

uint32_t early(void *input, uint32_t bytes, void *output) {
    (void)input, (void)output;
    return bytes;
}
