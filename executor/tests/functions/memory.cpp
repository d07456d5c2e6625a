// Functions that ask for more memory than they get.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// Takes what there is, and does not look at whether it got it.
extern "C" uint32_t take_all(void *, uint32_t, void *) {
    for (;;) std::memset(std::malloc(8 << 20), 1, 8 << 20);
}

// Asks for more than there is at once.
extern "C" uint32_t ask_for_too_much(void *, uint32_t, void *output) {
    char *much = new char[std::size_t(1) << 40];
    std::memcpy(output, &much, sizeof much);
    return sizeof much;
}

// Finds that it gets nothing, gives up what it has, and goes on.
extern "C" uint32_t expects_it(void *, uint32_t, void *output) {
    char *much = new (std::nothrow) char[std::size_t(1) << 40];
    *static_cast<char *>(output) = much == nullptr;
    return 1;
}
