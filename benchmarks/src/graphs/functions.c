/* Functions of the graphs that are measured. One is called by one worker at a time, so what it keeps is its own. */
#include <stdint.h>
#include <string.h>
#include <time.h>

static uint64_t begun;
static uint32_t edge_bytes;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* The first of a chain: `in` is how many bytes go over its edges. */
uint32_t chain_begin(const void *in, uint32_t bytes, void *out) {
    (void)out;
    if (bytes >= sizeof edge_bytes) memcpy(&edge_bytes, in, sizeof edge_bytes);
    begun = now();
    return edge_bytes;
}

/* Passes on as many bytes, and touches none. */
uint32_t chain_pass(const void *in, uint32_t bytes, void *out) {
    (void)in;
    (void)out;
    return bytes;
}

/* Passes on the bytes. */
uint32_t chain_copy(const void *in, uint32_t bytes, void *out) {
    memcpy(out, in, bytes);
    return bytes;
}

/* The last of a chain, of the worker of the first: nanoseconds since that, and bytes that came. */
uint32_t chain_end(const void *in, uint32_t bytes, void *out) {
    (void)in;
    uint64_t told[2] = {now() - begun, bytes};
    memcpy(out, told, sizeof told);
    return sizeof told;
}

/* Works for so many microseconds. */
uint32_t work(const void *in, uint32_t bytes, void *out) {
    uint32_t microseconds = 0;
    if (bytes >= sizeof microseconds) memcpy(&microseconds, in, sizeof microseconds);
    uint64_t until = now() + 1000u * (uint64_t)microseconds;
    while (now() < until) {
    }
    memcpy(out, in, bytes);
    return bytes;
}
