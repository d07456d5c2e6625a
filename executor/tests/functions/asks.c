/* Functions that ask for more than their input, and write what they are answered. */
#define _GNU_SOURCE
#include <pthread.h>
#include <rfaas_function.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

RFAAS_TABLE

static _Thread_local uint32_t initialised; /* how often, in this thread */
static int32_t answered;                   /* by an entry, in rfaas_init */

/* What FUNCTION_INIT says: 'r' and a number returns that, 'c' crashes, 'h' hangs, 't' ends the thread, 'f' forks and
 * returns in both processes. */
int32_t rfaas_init(const struct rfaas_api *api) {
    const char *how = getenv("FUNCTION_INIT");
    initialised++;
    rfaas_keep(api);
    answered = rfaas_emit(0, 0);
    switch (how ? how[0] : 0) {
    case 'r':
        return atoi(how + 1);
    case 'c':
        abort();
    case 'h':
        for (;;) {
            struct timespec second = {1, 0};
            nanosleep(&second, NULL);
        }
    case 't':
        syscall(SYS_exit, 0);
        return 1;
    case 'f':
        fork();
        return 0;
    default:
        return 0;
    }
}

/* How often rfaas_init was called in this thread, what an entry answered it, and how large an output may be. */
uint32_t prepared(const void *input, uint32_t bytes, void *output) {
    const int32_t are[] = {(int32_t)initialised, answered, (int32_t)rfaas_room()};
    (void)input, (void)bytes;
    memcpy(output, are, sizeof are);
    return sizeof are;
}

/* Each run has the sum of its bytes; one without bytes has no value, and one of 'f' fails with what is behind that. If
 * the first has an 'a' as its only byte, all fail with their number. */
int32_t RFAAS_BATCH(sums)(struct rfaas_run *const *runs, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *input = runs[i]->input;
        uint32_t bytes = runs[i]->input_bytes, sum = runs[i]->slot;
        if (bytes == 1 && input[0] == 'a') return (int32_t)count;
        if (bytes == 0) {
            rfaas_run_none(runs[i]);
        } else if (input[0] == 'f') {
            rfaas_run_fail(runs[i], bytes == 2 ? input[1] : -1);
        } else {
            const struct rfaas_self *self = rfaas_self();
            for (uint32_t at = 0; at < bytes; at++) sum += input[at];
            sum += self && self->inputs == 1 && rfaas_emit(0, 0) == RFAAS_RIGHTS ? 1000 : 0;
            memcpy(runs[i]->output, &sum, sizeof sum);
            runs[i]->output_bytes = runs[i]->room;
        }
    }
    return 0;
}

/* In how long the node is left; and what is answered to a note, and to one without a name. */
uint32_t left(const void *input, uint32_t bytes, void *output) {
    const uint64_t ns = rfaas_leaving();
    const int32_t answers[] = {rfaas_note("left", -5), rfaas_note(NULL, 1)};
    (void)input, (void)bytes;
    memcpy(output, &ns, sizeof ns);
    memcpy((uint8_t *)output + sizeof ns, answers, sizeof answers);
    return sizeof ns + sizeof answers;
}

/* What each entry answers. */
static uint32_t each(int32_t answers[9]) {
    const void *at;
    void *to;
    uint32_t n;
    uint64_t second = 1000000000;
    const int32_t are[] = {
        rfaas_self() != NULL,        rfaas_input(0, &at, &n),   rfaas_output(0, &to, &n),
        rfaas_emit(0, 0),            rfaas_call(0, 0, &at, &n, second),
        (int32_t)rfaas_again("", 0), (int32_t)rfaas_fail(1),    (int32_t)rfaas_none(),
        (int32_t)rfaas_room(),
    };
    memcpy(answers, are, sizeof are);
    return sizeof are;
}

uint32_t asks(const void *input, uint32_t bytes, void *output) {
    (void)input, (void)bytes;
    return each(output);
}

static void *in_thread(void *answers) {
    each(answers);
    return NULL;
}

/* From another thread. */
uint32_t thread_asks(const void *input, uint32_t bytes, void *output) {
    pthread_t thread;
    (void)input, (void)bytes;
    if (pthread_create(&thread, NULL, in_thread, output)) return 0;
    pthread_join(thread, NULL);
    return 9 * sizeof(int32_t);
}

/* From another process, whose answers come through a pipe. */
uint32_t child_asks(const void *input, uint32_t bytes, void *output) {
    int32_t answers[9];
    int pipes[2], status;
    pid_t child;
    (void)input, (void)bytes;
    if (pipe(pipes)) return 0;
    child = fork();
    if (child == 0) {
        each(answers);
        _exit(write(pipes[1], answers, sizeof answers) != sizeof answers);
    }
    if (waitpid(child, &status, 0) != child || status) return 0;
    if (read(pipes[0], answers, sizeof answers) != sizeof answers) return 0;
    close(pipes[0]), close(pipes[1]);
    memcpy(output, answers, sizeof answers);
    return sizeof answers;
}

/* Ends its call as its input says, and returns what is to be returned: 'a' and a state, moved over itself; 'l' with too
 * large a state; 'f' and a code; 'n'. */
uint32_t end(const unsigned char *input, uint32_t bytes, unsigned char *output) {
    switch (input[0]) {
    case 'a':
        memcpy(output + 1, input + 1, bytes - 1);
        return rfaas_again(output + 1, bytes - 1);
    case 'l':
        return rfaas_again(output, rfaas_room() + 1);
    case 'f':
        return rfaas_fail(input[1]);
    default:
        return rfaas_none();
    }
}

/* All that it may in a graph: what it was answered, then who it is, its inputs and the answer to its call. */
uint32_t graph(const void *input, uint32_t bytes, void *output) {
    const struct rfaas_self *self = rfaas_self();
    struct rfaas_writer to = rfaas_writer_of(output, rfaas_room());
    const void *at;
    uint32_t n, i;
    int32_t answer[3];
    (void)input, (void)bytes;
    rfaas_add_item(&to, self->bytes, self, sizeof *self);
    for (i = 0; i <= self->inputs; i++) {
        int32_t is = rfaas_input(i, &at, &n);
        rfaas_add_item(&to, (uint32_t)is, at, is ? 0 : n);
    }
    answer[0] = rfaas_emit_copy(0, "sent", 4);
    answer[1] = rfaas_emit_copy(0, "more than fits, by far", 23);
    answer[2] = rfaas_call_copy(1, "asked", 5, &at, &n, 1000);
    rfaas_add_item(&to, 0, answer, sizeof answer);
    rfaas_add_item(&to, 1, at, n);
    return to.bytes;
}
