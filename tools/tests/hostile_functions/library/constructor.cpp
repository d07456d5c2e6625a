/* A library whose constructor is hostile: what it does is chosen by a macro. */
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

/* The compiler does not know what is there. */
[[maybe_unused]] static volatile int *volatile nowhere = nullptr;

__attribute__((constructor)) static void construct() {
#if defined CRASHES
    *nowhere = 1;
#elif defined HANGS
    for (volatile uint64_t turns = 0;;) turns = turns + 1;
#elif defined EXITS
    exit(9);
#elif defined PRINTS
    static char line[1 << 16];
    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\n';
    for (int lines = 0; lines < 1600; lines++) { /* 100 MB */
        if (write(1, line, sizeof line) < 0) break;
    }
#endif
}

extern "C" uint32_t echo(void *input, uint32_t bytes, void *output) {
    memcpy(output, input, bytes);
    return bytes;
}
