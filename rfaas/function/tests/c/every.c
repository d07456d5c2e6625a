/* Uses all of rfaas_function.h, in what C and C++ have in common. */
#include <rfaas_function.h>

#ifdef __cplusplus
#define EXPORTED extern "C"
#else
#define EXPORTED
uint32_t copy(const void *, uint32_t, void *);
uint32_t every(const void *, uint32_t, void *);
int32_t malformed(const void *, uint32_t);
int32_t RFAAS_BATCH(lengths)(struct rfaas_run *const *, uint32_t);
#endif

RFAAS_FUNCTIONS

/* Copies the items of its input. */
EXPORTED uint32_t copy(const void *input, uint32_t bytes, void *output) {
    struct rfaas_items items = rfaas_items_of(input, bytes);
    struct rfaas_writer to = rfaas_writer_of(output, rfaas_room());
    struct rfaas_item item;
    int32_t is;
    while ((is = rfaas_next_item(&items, &item)) == 1)
        if (rfaas_add_item(&to, item.key, item.data, item.bytes) != RFAAS_OK) return rfaas_fail(RFAAS_BOUNDS);
    return is == 0 ? to.bytes : rfaas_fail(is);
}

EXPORTED uint32_t every(const void *input, uint32_t bytes, void *output) {
    const struct rfaas_api *api = rfaas();
    const struct rfaas_self *self = rfaas_self();
    const void *at;
    void *to;
    uint32_t n;
    (void)output;
    if (api == NULL || !RFAAS_HAS(api, none)) return rfaas_fail(1);
    if (rfaas_leaving() != 7000000000u || rfaas_note("bytes", (int64_t)bytes)) return rfaas_fail(5);
    if (self == NULL) return rfaas_none();
    if (rfaas_input(0, &at, &n) || rfaas_output(0, &to, &n) || rfaas_emit(0, 0)) return rfaas_fail(2);
    if (rfaas_emit_copy(0, input, bytes) || rfaas_call(0, 0, &at, &n, 1)) return rfaas_fail(3);
    if (rfaas_call_copy(0, input, bytes, &at, &n, 1)) return rfaas_fail(4);
    return rfaas_again(at, n);
}

EXPORTED int32_t RFAAS_BATCH(lengths)(struct rfaas_run *const *runs, uint32_t count) {
    uint32_t i;
    for (i = 0; i < count; i++) {
        const uint32_t bytes = runs[i]->input_bytes;
        if (bytes == 0) {
            rfaas_run_none(runs[i]);
            runs[i]->output_bytes = 0;
        } else if (((const char *)runs[i]->input)[0] == 'f') {
            rfaas_run_fail(runs[i], (int32_t)bytes);
        } else {
            memcpy(runs[i]->output, &bytes, sizeof bytes);
            runs[i]->output_bytes = sizeof bytes;
        }
    }
    return count == 0;
}
