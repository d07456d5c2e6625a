// The functions of libfunctions.so in C++; see ../src/interface.rs for what they promise.
//
//     c++ -O2 -shared -fPIC -o libfunctions.so functions.cpp
//
// An exception must not leave a function: it ends the executor.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>

// Returns its whole input.
extern "C" uint32_t empty(void* args, uint32_t size, void* res)
{
  auto *src = static_cast<char*>(args), *dest = static_cast<char*>(res);
  std::copy(src, src + size, dest);
  return size;
}

// Returns as many bytes as its input, of which it copies the first and the last eight.
extern "C" uint32_t edges(void* args, uint32_t size, void* res)
{
  auto *src = static_cast<char*>(args), *dest = static_cast<char*>(res);
  uint32_t edge = std::min<uint32_t>(size, 8), last = size - edge;
  std::copy(src, src + edge, dest);
  std::copy(src + last, src + size, dest + last);
  return size;
}

// Sum of 64-bit floating-point numbers. Input and output are aligned to 64 bytes.
extern "C" uint32_t sum_f64(void* args, uint32_t size, void* res)
{
  auto *numbers = static_cast<double*>(args), *sum = static_cast<double*>(res);
  *sum = std::accumulate(numbers, numbers + size / sizeof(double), 0.0);
  return sizeof(double);
}

// CRC-32 of the input (IEEE 802.3).
extern "C" uint32_t crc32(void* args, uint32_t size, void* res)
{
  auto* bytes = static_cast<uint8_t*>(args);
  uint32_t crc = UINT32_MAX;
  std::for_each(bytes, bytes + size, [&crc](uint8_t byte) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit)
      crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  });
  *static_cast<uint32_t*>(res) = ~crc;
  return sizeof(uint32_t);
}

// Sorts unsigned 32-bit numbers.
extern "C" uint32_t sort_u32(void* args, uint32_t size, void* res)
{
  auto *numbers = static_cast<uint32_t*>(args), *sorted = static_cast<uint32_t*>(res);
  uint32_t count = size / sizeof(uint32_t);
  std::copy(numbers, numbers + count, sorted);
  std::sort(sorted, sorted + count);
  return count * sizeof(uint32_t);
}

// Keeps its core busy for as many microseconds as its input says.
extern "C" uint32_t spin_us(void* args, uint32_t size, void*)
{
  using clock = std::chrono::steady_clock;
  std::chrono::microseconds time{size < sizeof(uint32_t) ? 0 : *static_cast<uint32_t*>(args)};
  for (auto start = clock::now(); clock::now() - start < time;) {
  }
  return 0;
}
