/* Says when it is loaded and unloaded, in the file FUNCTION_LOG; hangs then, if FUNCTION_HANG says so. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void event(const char *what, const char *hang) {
    const char *log = getenv("FUNCTION_LOG"), *hangs = getenv("FUNCTION_HANG");
    FILE *file = log ? fopen(log, "a") : NULL;
    if (file) {
        fprintf(file, "%s\n", what);
        fclose(file);
    }
    while (hangs && strcmp(hangs, hang) == 0) pause();
}

__attribute__((constructor)) static void loaded(void) { event("loaded", "start"); }
__attribute__((destructor)) static void unloaded(void) { event("unloaded", "end"); }

uint32_t nothing(void *input, uint32_t input_bytes, void *output) {
    (void)input, (void)input_bytes, (void)output;
    return 0;
}
