// How an update becomes bytes, and how bytes become a head's change: the codecs that phones use,
// with the bits of common/codecs. Plain C++, without torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace fedhead {

using Bytes = std::vector<std::uint8_t>;

// Rows of float32, one after the other.
struct Rows {
  std::vector<float> values;
  std::size_t count;
  std::size_t width;
};

// "none" (the numbers themselves), "int8" (a byte a number, stochastically rounded) or "drive"
// (a bit a number). The seed must be the same on both sides.
struct Codec {
  const char* name;
  // Throws std::runtime_error if a number is not finite.
  Bytes (*encode)(const Rows& rows, std::uint64_t seed);
  // The bytes are not trusted: throws std::runtime_error unless they are those of `count` rows.
  Rows (*decode)(std::span<const std::uint8_t> payload, std::size_t count, std::size_t width,
                 std::uint64_t seed);
};

// Throws std::invalid_argument that names all of them.
const Codec& find_codec(const std::string& name);

// What a client holds of the head after a round's change, which is in parts, as
// common.codecs.downlink writes it; no bytes change nothing. The seed is the run's. Throws
// std::runtime_error if the bytes are not a change in this codec.
Rows add_change(Rows held, std::span<const std::uint8_t> change, const Codec& codec,
                std::int64_t seed, std::int64_t round);

}  // namespace fedhead
