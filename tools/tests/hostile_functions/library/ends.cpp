/* Functions that end, hang or spoil their own process. */
#include "common.h"

#include <csetjmp>
#include <csignal>
#include <stdexcept>
#include <sys/syscall.h>

/* Behaves: returns its input. */
FUNCTION(echo) {
    memcpy(output, input, bytes);
    return bytes;
}

FUNCTION(null_write) {
    UNUSED;
    volatile int *nowhere = nullptr;
    *nowhere = 1;
    return 0;
}

FUNCTION(wild_write) {
    UNUSED;
    *reinterpret_cast<volatile int *>(0x414141414000) = 1;
    return 0;
}

/* From its input down, until there is no memory. */
FUNCTION(write_before_input) {
    UNUSED;
    for (auto *at = static_cast<volatile char *>(input);; at -= 64) *at = 0x5a;
}

/* From its output up, until there is no memory. */
FUNCTION(write_past_output) {
    UNUSED;
    for (auto *at = static_cast<volatile char *>(output);; at += 64) *at = 0x5a;
}

FUNCTION(infinite_loop) {
    UNUSED;
    for (volatile uint64_t turns = 0;;) turns = turns + 1;
}

FUNCTION(exit_now) {
    UNUSED;
    exit(7);
}

FUNCTION(underscore_exit) {
    UNUSED;
    _exit(8);
}

FUNCTION(abort_now) {
    UNUSED;
    abort();
}

#pragma GCC diagnostic ignored "-Winfinite-recursion"

static int deeper(volatile char *above) {
    volatile char here[4096];
    here[0] = above[0];
    int below = deeper(here);
    return here[0] + below;
}

FUNCTION(stack_overflow) {
    UNUSED;
    volatile char top = 1;
    return static_cast<uint32_t>(deeper(&top));
}

static jmp_buf gone;

__attribute__((noinline)) static int remember() { return setjmp(gone); }

/* Into a frame that is no more. */
FUNCTION(long_jump) {
    UNUSED;
    if (remember() == 0) longjmp(gone, 1);
    return 0;
}

FUNCTION(uncaught_exception) {
    UNUSED;
    throw std::runtime_error("nobody catches this");
}

/* Every descriptor, those of its worker too. */
FUNCTION(close_descriptors) {
    UNUSED;
    syscall(SYS_close_range, 0U, ~0U, 0U);
    return 0;
}

/* Every descriptor becomes /dev/null. */
FUNCTION(replace_descriptors) {
    UNUSED;
    int nothing = open("/dev/null", O_RDWR);
    for (int descriptor = 0; descriptor < 1024; descriptor++) {
        if (descriptor != nothing && fcntl(descriptor, F_GETFD) >= 0) dup2(nothing, descriptor);
    }
    return 0;
}

static void nothing(int) {}

/* A fault that is handled by going on is met again and again; so is a request to end. */
FUNCTION(own_handlers) {
    UNUSED;
    for (int kind : {SIGSEGV, SIGTERM, SIGINT, SIGHUP, SIGALRM}) signal(kind, nothing);
    volatile int *nowhere = nullptr;
    *nowhere = 1;
    return 0;
}

FUNCTION(block_signals) {
    UNUSED;
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, nullptr);
    for (volatile uint64_t turns = 0;;) turns = turns + 1;
}

/* More than any output holds; nothing of it is there. */
FUNCTION(returned_size) {
    UNUSED;
    return UINT32_MAX;
}

/* All writable memory: first what is shared with others, then the rest. */
FUNCTION(scribble) {
    UNUSED;
    std::vector<std::pair<uintptr_t, uintptr_t>> shared, own;
    FILE *maps = fopen("/proc/self/maps", "re");
    if (maps == nullptr) return 0;
    for (char line[512]; fgets(line, sizeof line, maps) != nullptr;) {
        unsigned long begin, end;
        char rights[8];
        if (sscanf(line, "%lx-%lx %4s", &begin, &end, rights) != 3 || rights[1] != 'w') continue;
        (rights[3] == 's' ? shared : own).emplace_back(begin, end);
    }
    fclose(maps);
    const auto here = reinterpret_cast<uintptr_t>(&shared);
    for (auto *list : {&shared, &own}) {
        for (auto [begin, end] : *list) {
            if (begin <= here && here < end) continue; /* this thread's stack */
            for (auto at = begin; at < end; at += 8) {
                *reinterpret_cast<volatile uint64_t *>(at) = 0xa5a5a5a5a5a5a5a5;
            }
        }
    }
    return 0;
}
