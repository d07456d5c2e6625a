/* What a function may ask for while it is called: for libraries in C (C99 and later) and C++ (C++11 and later).
 *
 * A function is `uint32_t name(void *input, uint32_t input_bytes, void *output)`, and needs nothing of this. One of a
 * graph may ask for more: its other inputs, to send before it returns, to call another function, to be called again.
 * One that is called with several runs of a graph at once has another type, and another name (RFAAS_BATCH).
 *
 *     #include <rfaas_function.h>
 *     RFAAS_FUNCTIONS                      // in one file of the library
 *
 *     uint32_t step(const void *input, uint32_t bytes, void *output) {
 *         double x;
 *         if (bytes != sizeof x) return rfaas_fail(1);                     // the run fails, with code 1
 *         memcpy(&x, input, sizeof x);
 *         double next = (x + 2 / x) / 2;
 *         if (next != x) return rfaas_again(&next, sizeof next);           // called again, with that as input
 *         memcpy(output, &next, sizeof next);
 *         return sizeof next;                                              // done
 *     }
 *
 * Each entry but `self`, `room`, `leaving` and those that end a call returns RFAAS_OK or a negative number with a name. Without a
 * right to something, in a call that belongs to no graph, in a thread that the function has started and in a process
 * that it has forked, that is RFAAS_RIGHTS. No entry may be used in a signal handler.
 *
 * Pointers that an entry gives are valid until the function returns, and are not to be given to others.
 *
 * The library exports `rfaas_init`, which is none of its functions. In each worker it is called once, by the thread
 * that makes the calls, before the first of them; in several workers at the same time. It returns 0, or the library is
 * not used and the client is told what it returned. RFAAS_FUNCTIONS defines one that keeps the table. */
#ifndef RFAAS_FUNCTION_H
#define RFAAS_FUNCTION_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What entries return. */
enum {
    RFAAS_OK = 0,
    RFAAS_NO_SUCH = -1, /* there is no such input or edge */
    RFAAS_ABSENT = -2,  /* the input did not come, or has no value */
    RFAAS_RIGHTS = -3,  /* the graph does not say that this function may do that */
    RFAAS_BOUNDS = -4,  /* more bytes than fit */
    RFAAS_BUSY = -5,    /* it was sent in this run, or the answer to the call before has not come */
    RFAAS_TIME = -6,    /* the answer did not come in time */
    RFAAS_LOST = -7     /* the function that was called has failed, or its worker is gone */
};

/* Who is called. It only grows, at its end: `bytes` says how far it goes. */
struct rfaas_self {
    uint32_t bytes;
    uint16_t function; /* number of the function in its graph */
    uint16_t member;   /* which of its workers this is, from 0 */
    uint16_t members;  /* how many it has */
    uint16_t slot;     /* of the run: no other that is under way has it */
    uint32_t inputs;   /* those that are not there in this run included */
    uint32_t edges;    /* that lead from it */
};

/* The table. It is the same for all workers and only grows, at its end: `bytes` says how far it goes (RFAAS_HAS). */
struct rfaas_api {
    uint32_t version; /* 1 */
    uint32_t bytes;

    /* Who is called. NULL in a call that belongs to no graph. */
    const struct rfaas_self *(*self)(void);
    /* Bytes that `output` of this call holds. Also in a call that belongs to no graph; 0 where nothing is called. */
    uint32_t (*room)(void);
    /* Where input `number` is, and its bytes. Input 0 is the one that the function is called with, if that is there. */
    int32_t (*input)(uint32_t number, const void **at, uint32_t *bytes);
    /* Where to write what goes over edge `edge`, and how many bytes that holds. */
    int32_t (*output)(uint32_t edge, void **at, uint32_t *capacity);
    /* Sends that many bytes of `output(edge)` now. They are not sent again when the function returns. */
    int32_t (*emit)(uint32_t edge, uint32_t bytes);
    /* Calls the function behind `edge` with that many bytes of `output(edge)`, and waits for at most `limit_ns`. The
     * answer stays until the next call over that edge. */
    int32_t (*call)(uint32_t edge, uint32_t bytes, const void **answer, uint32_t *answer_bytes, uint64_t limit_ns);

    /* These end a call: each returns what the function has to return then. Where it has no right to end so, the run
     * fails with that as its code; in a call that belongs to no graph, the call fails.
     *
     * It is called again in the same run, with `state` as its input 0. That is copied, and may be part of `output`. */
    uint32_t (*again)(const void *state, uint32_t bytes);
    /* The run fails, with a code for who looks into it. */
    uint32_t (*fail)(int32_t code);
    /* It has no value in this run. */
    uint32_t (*none)(void);

    /* In how many nanoseconds the node is left, as far as its executor has heard: that takes seconds. UINT64_MAX if it
     * stays. Also in a call that belongs to no graph. */
    uint64_t (*leaving)(void);
    /* Notes a number in the trace of the run, under a name of 1 to 16 bytes. At most four names; of each, the last number
     * counts. In a graph that is not traced, it does nothing. */
    int32_t (*note)(const char *key, int64_t value);
};

/* Whether the table goes as far as the entry of this name. For those that come after version 1. */
#define RFAAS_HAS(api, entry) \
    (offsetof(struct rfaas_api, entry) + sizeof((api)->entry) <= (size_t)(api)->bytes)

/* Called in each worker, if the library has it. */
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
int32_t rfaas_init(const struct rfaas_api *api);

/* The table that the library was given; NULL before. Of this library alone, whatever else the process has loaded. */
#if defined(__GNUC__)
__attribute__((visibility("hidden")))
#endif
extern const struct rfaas_api *rfaas_table;

#ifdef __cplusplus
#define RFAAS_EXTERN_C extern "C"
#else
#define RFAAS_EXTERN_C
#endif

/* Defines both, in one file of the library. */
#define RFAAS_FUNCTIONS                                              \
    RFAAS_TABLE                                                      \
    RFAAS_EXTERN_C int32_t rfaas_init(const struct rfaas_api *api) { \
        if (api->version != 1) return RFAAS_NO_SUCH;                 \
        rfaas_keep(api);                                             \
        return RFAAS_OK;                                             \
    }

/* Defines the table alone, for a library with an `rfaas_init` of its own. That hands it on to rfaas_keep. */
#define RFAAS_TABLE const struct rfaas_api *rfaas_table = NULL;

/* Keeps the table, which is the same in all workers. */
static inline void rfaas_keep(const struct rfaas_api *api) {
    __atomic_store_n(&rfaas_table, api, __ATOMIC_RELAXED);
}

/* The table, or NULL where nobody has given one: an executor that knows of none, or a program that is none. */
static inline const struct rfaas_api *rfaas(void) {
    return __atomic_load_n(&rfaas_table, __ATOMIC_RELAXED);
}

/* --- the entries, also where there is no table ------------------------------------------------------------------ */

/* Who is called, or NULL. */
static inline const struct rfaas_self *rfaas_self(void) {
    const struct rfaas_api *api = rfaas();
    return api ? api->self() : NULL;
}

/* Bytes that `output` holds; 0 if that is not known. */
static inline uint32_t rfaas_room(void) {
    const struct rfaas_api *api = rfaas();
    return api ? api->room() : 0;
}

static inline int32_t rfaas_input(uint32_t number, const void **at, uint32_t *bytes) {
    const struct rfaas_api *api = rfaas();
    return api ? api->input(number, at, bytes) : RFAAS_RIGHTS;
}

static inline int32_t rfaas_output(uint32_t edge, void **at, uint32_t *capacity) {
    const struct rfaas_api *api = rfaas();
    return api ? api->output(edge, at, capacity) : RFAAS_RIGHTS;
}

static inline int32_t rfaas_emit(uint32_t edge, uint32_t bytes) {
    const struct rfaas_api *api = rfaas();
    return api ? api->emit(edge, bytes) : RFAAS_RIGHTS;
}

/* Sends these bytes, which are copied. */
static inline int32_t rfaas_emit_copy(uint32_t edge, const void *data, uint32_t bytes) {
    void *at;
    uint32_t capacity;
    int32_t is = rfaas_output(edge, &at, &capacity);
    if (is != RFAAS_OK) return is;
    if (bytes > capacity) return RFAAS_BOUNDS;
    if (bytes) memmove(at, data, bytes);
    return rfaas_emit(edge, bytes);
}

static inline int32_t rfaas_call(uint32_t edge, uint32_t bytes, const void **answer, uint32_t *answer_bytes,
                                 uint64_t limit_ns) {
    const struct rfaas_api *api = rfaas();
    return api ? api->call(edge, bytes, answer, answer_bytes, limit_ns) : RFAAS_RIGHTS;
}

/* Calls with these bytes, which are copied. */
static inline int32_t rfaas_call_copy(uint32_t edge, const void *data, uint32_t bytes, const void **answer,
                                      uint32_t *answer_bytes, uint64_t limit_ns) {
    void *at;
    uint32_t capacity;
    int32_t is = rfaas_output(edge, &at, &capacity);
    if (is != RFAAS_OK) return is;
    if (bytes > capacity) return RFAAS_BOUNDS;
    if (bytes) memmove(at, data, bytes);
    return rfaas_call(edge, bytes, answer, answer_bytes, limit_ns);
}

static inline uint32_t rfaas_again(const void *state, uint32_t bytes) {
    const struct rfaas_api *api = rfaas();
    return api ? api->again(state, bytes) : (uint32_t)RFAAS_RIGHTS;
}

static inline uint32_t rfaas_fail(int32_t code) {
    const struct rfaas_api *api = rfaas();
    return api ? api->fail(code) : (uint32_t)RFAAS_RIGHTS;
}

static inline uint32_t rfaas_none(void) {
    const struct rfaas_api *api = rfaas();
    return api ? api->none() : (uint32_t)RFAAS_RIGHTS;
}

/* UINT64_MAX also where that is not known. */
static inline uint64_t rfaas_leaving(void) {
    const struct rfaas_api *api = rfaas();
    return api && RFAAS_HAS(api, leaving) ? api->leaving() : UINT64_MAX;
}

static inline int32_t rfaas_note(const char *key, int64_t value) {
    const struct rfaas_api *api = rfaas();
    return api && RFAAS_HAS(api, note) ? api->note(key, value) : RFAAS_RIGHTS;
}

/* --- batches: a function that is called with several runs at once ------------------------------------------------
 *
 *     int32_t RFAAS_BATCH(sum)(struct rfaas_run *const *runs, uint32_t count) {
 *         for (uint32_t i = 0; i < count; i++) {
 *             const uint8_t *input = (const uint8_t *)runs[i]->input;
 *             uint32_t sum = 0;
 *             if (runs[i]->room < sizeof sum) {
 *                 rfaas_run_fail(runs[i], 1);             // this run fails, with code 1
 *                 continue;
 *             }
 *             for (uint32_t at = 0; at < runs[i]->input_bytes; at++) sum += input[at];
 *             memcpy(runs[i]->output, &sum, sizeof sum);
 *             runs[i]->output_bytes = sizeof sum;         // what goes over the edges of this run
 *         }
 *         return 0;                                       // anything else: all of them fail, with that as their code
 *     }
 *
 * A graph calls it as `sum` where it says that `sum` takes batches, and nothing else does. A library may have a `sum` for
 * one run as well. Inputs and outputs are those of each run; of the entries of the table, it has `self`, with the slot
 * of the first run, `leaving`, and `note`, which is about all of them. A run that is not ended, by its output_bytes or otherwise, fails. */

/* What its symbol is. */
#define RFAAS_BATCH(name) rfaas_batch_##name

/* How a run of a batch is ended. */
enum {
    RFAAS_VALUE = 0,
    RFAAS_FAILED = 1,
    RFAAS_NO_VALUE = 2
};

/* A run of a batch. It only grows, at its end: `bytes` says how far it goes. */
struct rfaas_run {
    uint32_t bytes;
    uint32_t slot; /* no other run that is under way has it */
    const void *input;
    uint32_t input_bytes;
    uint32_t room; /* bytes that `output` holds */
    void *output;
    /* Set by the function. */
    uint32_t output_bytes; /* those that it has written; UINT32_MAX before */
    uint32_t ended;        /* RFAAS_VALUE before */
    int32_t code;          /* of a run that has failed */
};

/* The run fails, with a code for who looks into it. The others go on. */
static inline void rfaas_run_fail(struct rfaas_run *run, int32_t code) {
    run->ended = RFAAS_FAILED;
    run->code = code;
}

/* The function has no value in this run. */
static inline void rfaas_run_none(struct rfaas_run *run) { run->ended = RFAAS_NO_VALUE; }

/* --- items: a payload that is a list of them, over edges that deal them out ---------------------------------------
 *
 * In front of each is its key and its size, 32 bits each, little endian; behind it, what brings the next one to a
 * multiple of 8 bytes from the start of the payload. */

/* An item of a payload. */
struct rfaas_item {
    uint32_t key; /* any number */
    uint32_t bytes;
    const void *data;
};

/* What is left to read of a payload. */
struct rfaas_items {
    const unsigned char *at;
    uint32_t left;
};

static inline struct rfaas_items rfaas_items_of(const void *payload, uint32_t bytes) {
    struct rfaas_items items;
    items.at = (const unsigned char *)payload;
    items.left = bytes;
    return items;
}

static inline uint32_t rfaas_get_u32(const unsigned char *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static inline void rfaas_put_u32(unsigned char *at, uint32_t value) {
    at[0] = (unsigned char)value;
    at[1] = (unsigned char)(value >> 8);
    at[2] = (unsigned char)(value >> 16);
    at[3] = (unsigned char)(value >> 24);
}

/* Takes the next item. Returns 1 if there is one, 0 at the end, RFAAS_BOUNDS if the rest is no list of items. */
static inline int32_t rfaas_next_item(struct rfaas_items *items, struct rfaas_item *item) {
    uint64_t whole;
    if (items->left == 0) return 0;
    if (items->left < 8) return RFAAS_BOUNDS;
    item->key = rfaas_get_u32(items->at);
    item->bytes = rfaas_get_u32(items->at + 4);
    item->data = items->at + 8;
    if (item->bytes > items->left - 8) return RFAAS_BOUNDS;
    whole = (8 + (uint64_t)item->bytes + 7) & ~(uint64_t)7;
    if (whole > items->left) whole = items->left; /* nothing needs to stand behind the last one */
    items->at += whole;
    items->left -= (uint32_t)whole;
    return 1;
}

/* A payload that is written item by item: at `at`, of which `capacity` bytes can be written and `bytes` are. */
struct rfaas_writer {
    unsigned char *at;
    uint32_t capacity;
    uint32_t bytes; /* what a function returns, or sends */
};

static inline struct rfaas_writer rfaas_writer_of(void *at, uint32_t capacity) {
    struct rfaas_writer writer;
    writer.at = (unsigned char *)at;
    writer.capacity = capacity;
    writer.bytes = 0;
    return writer;
}

/* Adds an item of `bytes` bytes that are to be written where `data` points then; or RFAAS_BOUNDS. */
static inline int32_t rfaas_reserve_item(struct rfaas_writer *writer, uint32_t key, uint32_t bytes, void **data) {
    uint64_t whole = (8 + (uint64_t)bytes + 7) & ~(uint64_t)7;
    unsigned char *at = writer->at + writer->bytes;
    if (writer->bytes > writer->capacity || whole > writer->capacity - writer->bytes) return RFAAS_BOUNDS;
    rfaas_put_u32(at, key);
    rfaas_put_u32(at + 4, bytes);
    memset(at + 8 + bytes, 0, (size_t)(whole - 8 - bytes));
    writer->bytes += (uint32_t)whole;
    *data = at + 8;
    return RFAAS_OK;
}

/* Adds an item, whose bytes are copied; or RFAAS_BOUNDS. */
static inline int32_t rfaas_add_item(struct rfaas_writer *writer, uint32_t key, const void *data, uint32_t bytes) {
    void *to;
    int32_t is = rfaas_reserve_item(writer, key, bytes, &to);
    if (is == RFAAS_OK && bytes) memmove(to, data, bytes);
    return is;
}

#ifdef __cplusplus
}
#endif

#endif /* RFAAS_FUNCTION_H */
