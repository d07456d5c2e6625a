/* Functions of graphs that ask for more than their input. */

#include <stdint.h>
#include <string.h>
#include <time.h>

#include <rfaas_function.h>

RFAAS_FUNCTIONS

#define EXPORT __attribute__((visibility("default")))

/* All inputs that are there, one after the other, each behind its number. */
EXPORT uint32_t gather(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    uint32_t size = 0;
    const struct rfaas_self *self = rfaas_self();
    (void)input, (void)bytes;
    if (!self) return rfaas_fail(1);
    for (uint32_t number = 0; number < self->inputs; number++) {
        const void *at;
        uint32_t length;
        int32_t is = rfaas_input(number, &at, &length);
        if (is == RFAAS_ABSENT) continue;
        if (is != RFAAS_OK) return rfaas_fail(is);
        output[size++] = (uint8_t)number;
        memcpy(output + size, at, length);
        size += length;
    }
    return size;
}

/* An item for each byte, with the byte as its key. */
EXPORT uint32_t split(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    struct rfaas_writer list = rfaas_writer_of(output, rfaas_room());
    for (uint32_t i = 0; i < bytes; i++)
        if (rfaas_add_item(&list, input[i], input + i, 1) != RFAAS_OK) return rfaas_fail(2);
    return list.bytes;
}

/* The byte plus one, behind the number of the worker. */
EXPORT uint32_t who_adds_one(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    const struct rfaas_self *self = rfaas_self();
    if (!self || bytes != 1) return rfaas_fail(3);
    output[0] = (uint8_t)self->member;
    output[1] = (uint8_t)(input[0] + 1);
    return 2;
}

/* How many items a key has: the number of the worker, and that. */
EXPORT uint32_t count_items(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    const struct rfaas_self *self = rfaas_self();
    struct rfaas_items items = rfaas_items_of(input, bytes);
    struct rfaas_item item;
    int32_t is;
    uint8_t count = 0;
    while ((is = rfaas_next_item(&items, &item)) == 1) count++;
    if (is < 0 || !self) return rfaas_fail(is);
    output[0] = (uint8_t)self->member;
    output[1] = count;
    return 2;
}

/* Keys and bytes of the items of all inputs: each key as one byte, then the bytes. */
EXPORT uint32_t flatten(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    uint32_t size = 0;
    const struct rfaas_self *self = rfaas_self();
    (void)input, (void)bytes;
    for (uint32_t number = 0; self && number < self->inputs; number++) {
        const void *at;
        uint32_t length;
        struct rfaas_item item;
        int32_t is = rfaas_input(number, &at, &length);
        if (is == RFAAS_ABSENT) continue;
        struct rfaas_items items = rfaas_items_of(at, length);
        while ((is = rfaas_next_item(&items, &item)) == 1) {
            output[size++] = (uint8_t)item.key;
            memcpy(output + size, item.data, item.bytes);
            size += item.bytes;
        }
        if (is < 0) return rfaas_fail(is);
    }
    return size;
}

/* The square of a byte, unless that is 4: then nothing. */
EXPORT uint32_t square_but_4(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    uint8_t square = (uint8_t)(input[0] * input[0]);
    (void)bytes;
    if (square == 4) return rfaas_none();
    output[0] = square;
    return 1;
}

/* Fails with the number that the first byte is, unless that is 0: then the rest. */
EXPORT uint32_t fail_with(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    if (bytes && input[0]) return rfaas_fail(input[0]);
    memcpy(output, input, bytes);
    return bytes;
}

/* As many milliseconds later as the first byte says, the input. */
EXPORT uint32_t later(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    struct timespec time = {0, (bytes ? input[0] : 0) * 1000000L};
    nanosleep(&time, NULL);
    memcpy(output, input, bytes);
    return bytes;
}

/* Counts the first byte down to 0, in so many calls; the second one counts them. */
EXPORT uint32_t count_down(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    uint8_t state[2] = {input[0], bytes > 1 ? (uint8_t)(input[1] + 1) : 1};
    if (state[0] > 0) {
        state[0]--;
        return rfaas_again(state, sizeof state);
    }
    memcpy(output, state, sizeof state);
    return sizeof state;
}

/* Sends the first half over edge 0 before it returns the other one; the return value goes over edge 1. */
EXPORT uint32_t halves(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    int32_t is = rfaas_emit_copy(0, input, bytes / 2);
    if (is != RFAAS_OK) return rfaas_fail(is);
    if (rfaas_emit(0, 0) != RFAAS_BUSY || rfaas_emit(9, 0) != RFAAS_NO_SUCH) return rfaas_fail(4);
    void *at; /* who gets it may read it now */
    uint32_t capacity;
    if (rfaas_output(0, &at, &capacity) != RFAAS_BUSY) return rfaas_fail(5);
    memcpy(output, input + bytes / 2, bytes - bytes / 2);
    return bytes - bytes / 2;
}

/* Asks the function behind edge 0 twice: what it makes of the input, and of that. */
EXPORT uint32_t ask_twice(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    const void *answer;
    uint32_t length;
    for (int turn = 0; turn < 2; turn++) {
        int32_t is = rfaas_call_copy(0, turn ? answer : input, turn ? length : bytes, &answer, &length, 1000000000);
        if (is != RFAAS_OK) return rfaas_fail(-is);
    }
    memcpy(output, answer, length);
    return length;
}

/* Asks the function behind edge 0, and waits for a millisecond: says what became of it. */
EXPORT uint32_t ask_in_vain(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    const void *answer;
    uint32_t length;
    output[0] = (uint8_t)-rfaas_call_copy(0, input, bytes, &answer, &length, 1000000);
    output[1] = (uint8_t)-rfaas_call(0, 0, &answer, &length, 1000000);
    return 2;
}

/* Does what it has no right to: what each says. */
EXPORT uint32_t overreach(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    const void *at;
    void *to;
    uint32_t length;
    (void)input, (void)bytes;
    output[0] = (uint8_t)-rfaas_emit(0, 0);
    output[1] = (uint8_t)-rfaas_call(0, 0, &at, &length, 0);
    output[2] = (uint8_t)-rfaas_input(63, &at, &length);
    output[3] = (uint8_t)-rfaas_output(63, &to, &length);
    return 4;
}

/* As many bytes as the first four say, none of which it touches. */
EXPORT uint32_t promise(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    uint32_t size = 0;
    memcpy(&size, input, bytes < 4 ? bytes : 4);
    memcpy(output, &size, 4);
    return size;
}

/* Notes how many bytes it has, and more than can be noted; returns in how many nanoseconds its node is left. */
EXPORT uint32_t notes(const uint8_t *input, uint32_t bytes, uint8_t *output) {
    const uint64_t left = rfaas_leaving();
    (void)input;
    if (rfaas_note("bytes", 1) || rfaas_note("bytes", bytes) || rfaas_note("sixteen letters.", -1)) return rfaas_fail(1);
    rfaas_note("seventeen letters", 1); /* refused, where there is a trace */
    memcpy(output, &left, sizeof left);
    return sizeof left;
}

/* With how many runs at once it is called, in front of the input of each. A first byte of 'f' fails that run, 'a' all of
 * them, 'n' has no value, 'h' hangs. */
EXPORT int32_t RFAAS_BATCH(together)(struct rfaas_run *const *runs, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        struct rfaas_run *run = runs[i];
        const uint8_t *input = run->input;
        uint8_t *output = run->output;
        rfaas_note("runs", count);
        switch (run->input_bytes ? input[0] : 0) {
        case 'f':
            rfaas_run_fail(run, 7);
            continue;
        case 'a':
            return 8;
        case 'n':
            rfaas_run_none(run);
            continue;
        case 'h':
            for (;;) {
                struct timespec second = {1, 0};
                nanosleep(&second, NULL);
            }
        default:
            if (run->room < run->input_bytes + 1) return RFAAS_BOUNDS;
            output[0] = (uint8_t)count;
            memcpy(output + 1, input, run->input_bytes);
            run->output_bytes = run->input_bytes + 1;
        }
    }
    return 0;
}
