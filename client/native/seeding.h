// The random streams of common/seeding.py: splitmix64, the same integers in every language.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace fedhead {

// What a stream is for; the numbers are those of common.seeding.Purpose.
enum class Purpose : std::uint64_t {
  kBatchOrder = 2,
  kLocalSplit = 5,
  kUplink = 16,
  kDownlink = 17
};

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15;

constexpr std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// State of a stream; the keys are parts of its name, such as round and client.
constexpr std::uint64_t stream_state(std::int64_t seed, Purpose purpose,
                                     std::initializer_list<std::int64_t> keys) {
  std::uint64_t state = mix(static_cast<std::uint64_t>(seed) + kGolden);
  state = mix((state ^ static_cast<std::uint64_t>(purpose)) + kGolden);
  for (const auto key : keys) state = mix((state ^ static_cast<std::uint64_t>(key)) + kGolden);
  return state;
}

// The stream's word number i, 64 random bits.
constexpr std::uint64_t word(std::uint64_t state, std::uint64_t i) {
  return mix(state + (i + 1) * kGolden);
}

}  // namespace fedhead
