/* The functions of libfunctions.so in C; see ../src/interface.rs for what they promise.
 *
 *     cc -O2 -shared -fPIC -o libfunctions.so functions.c
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Returns its whole input. */
uint32_t empty(void *input, uint32_t input_bytes, void *output) {
    memcpy(output, input, input_bytes);
    return input_bytes;
}

/* Returns as many bytes as its input, of which it copies the first and the last eight. */
uint32_t edges(void *input, uint32_t input_bytes, void *output) {
    uint32_t edge = input_bytes < 8 ? input_bytes : 8, last = input_bytes - edge;
    memcpy(output, input, edge);
    memcpy((uint8_t *)output + last, (uint8_t *)input + last, edge);
    return input_bytes;
}

/* Sum of 64-bit floating-point numbers. Input and output are aligned to 64 bytes. */
uint32_t sum_f64(void *input, uint32_t input_bytes, void *output) {
    const double *numbers = input;
    double sum = 0;
    for (uint32_t i = 0; i < input_bytes / sizeof(double); i++) sum += numbers[i];
    *(double *)output = sum;
    return sizeof sum;
}

/* CRC-32 of the input (IEEE 802.3). */
uint32_t crc32(void *input, uint32_t input_bytes, void *output) {
    const uint8_t *bytes = input;
    uint32_t crc = UINT32_MAX;
    for (uint32_t i = 0; i < input_bytes; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    *(uint32_t *)output = ~crc;
    return sizeof crc;
}

static int compare(const void *a, const void *b) {
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

/* Sorts unsigned 32-bit numbers. */
uint32_t sort_u32(void *input, uint32_t input_bytes, void *output) {
    uint32_t count = input_bytes / sizeof(uint32_t);
    memcpy(output, input, count * sizeof(uint32_t));
    qsort(output, count, sizeof(uint32_t), compare);
    return count * sizeof(uint32_t);
}

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* Keeps its core busy for as many microseconds as its input says. */
uint32_t spin_us(void *input, uint32_t input_bytes, void *output) {
    uint64_t time = input_bytes < sizeof(uint32_t) ? 0 : *(uint32_t *)input, start = now_us();
    (void)output;
    while (now_us() - start < time) {
    }
    return 0;
}
