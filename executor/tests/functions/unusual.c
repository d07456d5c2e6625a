// Functions that reach the symbol table in other ways than the usual one.
#include <stdint.h>
#include <string.h>

typedef uint32_t function(void *in, uint32_t n, void *out);

uint32_t plain(void *in, uint32_t n, void *out) { memcpy(out, in, n); return n; }
static uint32_t reversed(unsigned char *in, uint32_t n, unsigned char *out) {
    for (uint32_t i = 0; i < n; i++) out[i] = in[n - 1 - i];
    return n;
}

// Chosen when the library is loaded, as compilers do for several processors.
static function *choose(void) { return (function *)reversed; }
uint32_t dispatched(void *in, uint32_t n, void *out) __attribute__((ifunc("choose")));
static function *choose_none(void) { return 0; }
uint32_t for_no_processor(void *in, uint32_t n, void *out) __attribute__((ifunc("choose_none")));

// Kept for those who were linked to it long ago.
__asm__(".symver before_1, before@V1");
uint32_t before_1(void *in, uint32_t n, void *out) { return 0; }

// An assembler was not told that it is a function.
#if defined(__x86_64__)
__asm__(".globl untyped\nuntyped: jmp plain@PLT");
#else
__asm__(".globl untyped\nuntyped: b plain");
#endif
