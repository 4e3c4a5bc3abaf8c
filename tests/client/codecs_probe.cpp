// The functions of client/native/codecs.h for ctypes; see test_native_codecs.py.
#include <algorithm>
#include <cstdio>
#include <exception>

#include "codecs.h"
#include "seeding.h"

namespace {
char failure[200];

template <typename F>
bool succeeds(F call) {
  try {
    call();
    return true;
  } catch (const std::exception& error) {
    std::snprintf(failure, sizeof failure, "%s", error.what());
    return false;
  }
}
}  // namespace

extern "C" {

// Text of the last failure.
const char* why() { return failure; }

// Bytes that were written to `out`, or -1.
std::int64_t encode(const char* codec, const float* values, std::uint64_t count,
                    std::uint64_t width, std::uint64_t seed, std::uint8_t* out) {
  std::int64_t size = -1;
  succeeds([&] {
    const fedhead::Rows rows{{values, values + count * width}, count, width};
    const auto payload = fedhead::find_codec(codec).encode(rows, seed);
    std::copy(payload.begin(), payload.end(), out);
    size = static_cast<std::int64_t>(payload.size());
  });
  return size;
}

bool decode(const char* codec, const std::uint8_t* payload, std::uint64_t size, float* out,
            std::uint64_t count, std::uint64_t width, std::uint64_t seed) {
  return succeeds([&] {
    const auto rows = fedhead::find_codec(codec).decode({payload, size}, count, width, seed);
    std::copy(rows.values.begin(), rows.values.end(), out);
  });
}

// Adds a change to `held`, in place.
bool add_change(const char* codec, const std::uint8_t* payload, std::uint64_t size, float* held,
                std::uint64_t count, std::uint64_t width, std::int64_t seed, std::int64_t round) {
  return succeeds([&] {
    fedhead::Rows rows{{held, held + count * width}, count, width};
    rows = fedhead::add_change(rows, {payload, size}, fedhead::find_codec(codec), seed, round);
    std::copy(rows.values.begin(), rows.values.end(), held);
  });
}

std::uint64_t uplink_state(std::int64_t seed, std::int64_t round, std::int64_t client) {
  return fedhead::stream_state(seed, fedhead::Purpose::kUplink, {round, client, 0});
}
}
