/* Functions that misbehave, each in one way; and two that behave, to see that the rest still works.
 *
 * Built by tests with `cc -shared -fPIC`. Numbers in inputs and outputs are of this machine's byte order.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static uint32_t number(const void *input, uint32_t input_bytes) {
    uint32_t value = 0;
    memcpy(&value, input, input_bytes < sizeof value ? input_bytes : sizeof value);
    return value;
}

/* Behaves: returns its input. */
uint32_t echo(void *input, uint32_t input_bytes, void *output) {
    memcpy(output, input, input_bytes);
    return input_bytes;
}

/* Behaves: how often it was called in this process, as a 32-bit number. Not for several workers. */
uint32_t count(void *input, uint32_t input_bytes, void *output) {
    static uint32_t calls;
    (void)input, (void)input_bytes;
    calls++;
    memcpy(output, &calls, sizeof calls);
    return sizeof calls;
}

/* Dies of a null pointer: SIGSEGV. */
uint32_t crash(void *input, uint32_t input_bytes, void *output) {
    volatile int *nowhere = NULL;
    (void)input, (void)input_bytes, (void)output;
    *nowhere = 1;
    return 0;
}

/* Dies of the signal whose number is its input. */
uint32_t raise_signal(void *input, uint32_t input_bytes, void *output) {
    (void)output;
    raise((int)number(input, input_bytes));
    return 0;
}

/* Dies of an assertion: SIGABRT. */
uint32_t abort_now(void *input, uint32_t input_bytes, void *output) {
    (void)input, (void)input_bytes, (void)output;
    abort();
}

/* Ends the process; the exit status is its input. */
uint32_t exit_with(void *input, uint32_t input_bytes, void *output) {
    (void)output;
    exit((int)number(input, input_bytes));
}

/* Ends the process from another thread; the exit status is its input. */
static void *exit_there(void *status) { exit(*(int *)status); }

uint32_t exit_elsewhere(void *input, uint32_t input_bytes, void *output) {
    static int status;
    pthread_t thread;
    (void)output;
    status = (int)number(input, input_bytes);
    pthread_create(&thread, NULL, exit_there, &status);
    for (;;) pause();
}

/* Ends its thread, and nobody else hears of it. */
uint32_t end_thread(void *input, uint32_t input_bytes, void *output) {
    (void)input, (void)input_bytes, (void)output;
    syscall(SYS_exit, 0);
    return 0;
}

/* Likewise, in the way that POSIX has for it. */
uint32_t leave_thread(void *input, uint32_t input_bytes, void *output) {
    (void)input, (void)input_bytes, (void)output;
    pthread_exit(NULL);
}

/* Forks, and both processes return. The output is the child's process id; the child, which has the same output
 * before it, writes nothing there. */
static uint32_t both_return(pid_t child, void *output) {
    if (child != 0) memcpy(output, &child, sizeof child);
    return sizeof child;
}

uint32_t fork_and_return(void *input, uint32_t input_bytes, void *output) {
    (void)input, (void)input_bytes;
    return both_return(fork(), output);
}

/* Likewise, without the C library. */
uint32_t clone_and_return(void *input, uint32_t input_bytes, void *output) {
    (void)input, (void)input_bytes;
    return both_return((pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0), output);
}

/* Dies of SIGABRT and leaves a process that has all its descriptors, for as many seconds as its input says. */
uint32_t crash_with_a_daemon(void *input, uint32_t input_bytes, void *output) {
    uint32_t seconds = number(input, input_bytes); /* before the fork: a child has no input (ibv_fork_init) */
    int ready[2];
    char byte;
    (void)output;
    if (pipe(ready) != 0) return 0;
    if (fork() == 0) {
        setsid();
        alarm(seconds);
        if (write(ready[1], "r", 1) != 1) _exit(1);
        for (;;) pause();
    }
    close(ready[1]); /* so that a child's early end is seen */
    if (read(ready[0], &byte, 1) != 1) return 0;
    abort();
}

/* Makes its process another program, which stays. */
uint32_t become_another_program(void *input, uint32_t input_bytes, void *output) {
    (void)input, (void)input_bytes, (void)output;
    execlp("sleep", "sleep", "1000", (char *)NULL);
    return 0;
}

/* Never returns, without using the processor. */
uint32_t sleep_forever(void *input, uint32_t input_bytes, void *output) {
    (void)input, (void)input_bytes, (void)output;
    for (;;) pause();
}

/* Never returns, using the processor. */
uint32_t spin_forever(void *input, uint32_t input_bytes, void *output) {
    volatile uint64_t turns = 0;
    (void)input, (void)input_bytes, (void)output;
    for (;;) turns++;
}

/* Never returns: waits for a lock that it holds itself. */
uint32_t deadlock(void *input, uint32_t input_bytes, void *output) {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    (void)input, (void)input_bytes, (void)output;
    pthread_mutex_lock(&lock);
    pthread_mutex_lock(&lock);
    return 0;
}

/* Takes as many milliseconds as its input says, then returns its input. */
uint32_t sleep_ms(void *input, uint32_t input_bytes, void *output) {
    uint32_t ms = number(input, input_bytes);
    struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&time, NULL);
    return echo(input, input_bytes, output);
}

/* Says that it wrote as many bytes as its input says, and writes none. */
uint32_t claim(void *input, uint32_t input_bytes, void *output) {
    (void)output;
    return number(input, input_bytes);
}

/* Writes as many bytes as its input says, whether they fit or not. */
uint32_t fill(void *input, uint32_t input_bytes, void *output) {
    uint32_t bytes = number(input, input_bytes);
    memset(output, 0x5a, bytes);
    return bytes;
}
