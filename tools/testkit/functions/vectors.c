/* Functions of the vectors of other systems. Numbers are 32 bits, little endian. */

#include <stdint.h>
#include <string.h>
#include <time.h>

#include <rfaas_function.h>

RFAAS_FUNCTIONS

#define EXPORT __attribute__((visibility("default")))

static int32_t number(const uint8_t *at) {
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t put(uint8_t *output, uint32_t at, int32_t value) {
    memcpy(output + at, &value, sizeof value);
    return at + sizeof value;
}

/* The input. */
EXPORT uint32_t same(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    memcpy(output, input, bytes);
    return bytes;
}

/* The list of the item whose key is the number of this worker, ten milliseconds later for each worker before it. */
EXPORT uint32_t pick(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    const struct rfaas_self *self = rfaas_self();
    struct rfaas_items items = rfaas_items_of(input, bytes);
    struct rfaas_item item;
    if (!self) return rfaas_fail(1);
    struct timespec time = {0, self->member * 10000000L};
    nanosleep(&time, NULL);
    while (rfaas_next_item(&items, &item) == 1)
        if (item.key == self->member) {
            memcpy(output, item.data, item.bytes);
            return item.bytes;
        }
    return 0;
}

/* The items of a key, one after the other, with a blank behind each. */
EXPORT uint32_t of_key(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    struct rfaas_items items = rfaas_items_of(input, bytes);
    struct rfaas_item item;
    uint32_t size = 0;
    while (rfaas_next_item(&items, &item) == 1) {
        memcpy(output + size, item.data, item.bytes);
        size += item.bytes;
        output[size++] = ' ';
    }
    return size;
}

/* All inputs that are there, as items with their numbers. */
EXPORT uint32_t inputs(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    const struct rfaas_self *self = rfaas_self();
    struct rfaas_writer list = rfaas_writer_of(output, rfaas_room());
    (void)input, (void)bytes;
    if (!self) return rfaas_fail(1);
    for (uint32_t i = 0; i < self->inputs; i++) {
        const void *at;
        uint32_t length;
        if (rfaas_input(i, &at, &length) == RFAAS_OK && rfaas_add_item(&list, i, at, length) != RFAAS_OK)
            return rfaas_fail(2);
    }
    return list.bytes;
}

/* The square of the first number, unless that is one of the others; then all that were tried since the library was
 * loaded. */
EXPORT uint32_t square(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    static int32_t tried[64];
    static uint32_t count;
    if (bytes < 4) return rfaas_fail(1);
    int32_t x = number(input);
    if (count < 64) tried[count++] = x;
    for (uint32_t at = 4; at + 4 <= bytes; at += 4)
        if (number(input + at) == x * x) return rfaas_none();
    uint32_t size = put(output, 0, x * x);
    for (uint32_t i = 0; i < count; i++) size = put(output, size, tried[i]);
    return size;
}

/* Fails with the code that is its input. */
EXPORT uint32_t fails(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    (void)output;
    return rfaas_fail(bytes < 4 ? -1 : number(input));
}

/* Calls two others, over edges 0 and 1, and returns what both say. */
EXPORT uint32_t asks_both(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    uint32_t size = 0;
    for (uint32_t edge = 0; edge < 2; edge++) {
        const void *answer;
        uint32_t length;
        int32_t is = rfaas_call_copy(edge, input, bytes, &answer, &length, 1000000000);
        if (is != RFAAS_OK) return rfaas_fail(is);
        memcpy(output + size, answer, length);
        size += length;
    }
    return size;
}
