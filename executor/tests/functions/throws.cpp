// An exception that nobody catches.
#include <cstdint>
#include <stdexcept>

extern "C" uint32_t throws(void *, uint32_t, void *) { throw std::runtime_error("nobody catches this"); }
