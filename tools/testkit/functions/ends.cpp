// Functions that print, and functions that end their process, each in one way that C++ programs do.
//
// Built by tests with `cc -shared -fPIC … -lstdc++`. Numbers in inputs are of this machine's byte order.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <pthread.h>
#include <stdexcept>
#include <string>
#include <unistd.h>

#define FUNCTION extern "C" uint32_t

// Behaves: prints its input as a line on standard output, and how long it is on standard error. Returns nothing.
FUNCTION print(void *input, uint32_t bytes, void *) {
    std::cout << std::string(static_cast<char *>(input), bytes) << std::endl;
    std::cerr << bytes << " bytes\n";
    return 0;
}

// Writes so many bytes to standard output as its input says, and then the line "the end".
FUNCTION flood(void *input, uint32_t, void *) {
    uint32_t left;
    std::memcpy(&left, input, sizeof left);
    const std::string line(1023, 'x');
    for (; left >= 1024; left -= 1024) std::cout << line << '\n';
    std::cout << std::string(left, 'y') << "\nthe end" << std::endl;
    return 0;
}

// Prints on both streams and dies of a null pointer: SIGSEGV.
FUNCTION last_words(void *, uint32_t, void *) {
    std::cout << "out: about to fail" << std::endl;
    std::cerr << "err: this is why\n";
    volatile int *nowhere = nullptr;
    *nowhere = 1;
    return 0;
}

FUNCTION divide_by_zero(void *, uint32_t, void *) {
    volatile int dividend = 1, zero = 0;
    return static_cast<uint32_t>(dividend / zero);
}

FUNCTION call_abort(void *, uint32_t, void *) { std::abort(); }

FUNCTION call_exit(void *, uint32_t, void *) { std::exit(7); }

FUNCTION call_exit_at_once(void *, uint32_t, void *) { _exit(8); }

FUNCTION call_terminate(void *, uint32_t, void *) { std::terminate(); }

FUNCTION throw_exception(void *, uint32_t, void *) { throw std::runtime_error("no such particle"); }

// Recursion without an end. The volatile array keeps the compiler from making a loop of it.
static uint32_t deeper(uint32_t depth) {
    volatile char frame[512];
    frame[0] = static_cast<char>(depth);
    return deeper(depth + 1) + static_cast<uint32_t>(frame[0]);
}

FUNCTION overflow_stack(void *, uint32_t, void *) { return deeper(0); }

// The same in a thread that the function has started.
static void *overflow(void *) {
    deeper(0);
    return nullptr;
}

FUNCTION overflow_stack_of_its_thread(void *, uint32_t, void *) {
    pthread_t thread;
    pthread_create(&thread, nullptr, overflow, nullptr);
    for (;;) pause();
}

FUNCTION run_for_ever(void *, uint32_t, void *) {
    std::cout << "still at it" << std::endl;
    for (;;) pause();
}

// Behaves: returns its input.
FUNCTION echo(void *input, uint32_t bytes, void *output) {
    std::memcpy(output, input, bytes);
    return bytes;
}
