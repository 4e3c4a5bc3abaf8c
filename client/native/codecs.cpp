// Compiled with -ffp-contract=off. Where a processor can round a product and a sum in one go, as
// arm64 always can, compilers do so unasked; numpy rounds twice. In add_change that is another head.
#include "codecs.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "seeding.h"

#ifdef __FAST_MATH__
#error "codecs.cpp needs every rounding where it stands: compile it without -ffast-math"
#endif
static_assert(FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 16,  // 16 is float16's
              "float32 must be computed in float32");
static_assert(std::endian::native == std::endian::little, "as x86 and arm64 are");

namespace fedhead {
namespace {

constexpr std::size_t kWord = 64;   // signs that one random word holds
constexpr int kMostParts = 8;       // of a head's change

float largest(const float* row, std::size_t width) {
  float most = 0;
  for (std::size_t i = 0; i < width; ++i) {
    if (!std::isfinite(row[i])) throw std::runtime_error("a number to be sent is not finite");
    most = std::max(most, std::fabs(row[i]));
  }
  return most;
}

void check_size(std::span<const std::uint8_t> payload, std::size_t expected) {
  if (payload.size() != expected) {
    throw std::runtime_error("takes " + std::to_string(payload.size()) + " bytes, expected " +
                             std::to_string(expected));
  }
}

Rows zeros(std::size_t count, std::size_t width) {
  return {std::vector<float>(count * width), count, width};
}

// The payloads of int8 and drive: a scale for each row, then each row's codes.

std::uint8_t* codes_of(Bytes& payload, std::size_t count) {
  return payload.data() + count * sizeof(float);
}

void write_scale(Bytes& payload, std::size_t row, float scale) {
  std::memcpy(payload.data() + row * sizeof scale, &scale, sizeof scale);
}

float read_scale(std::span<const std::uint8_t> payload, std::size_t row) {
  float scale;
  std::memcpy(&scale, payload.data() + row * sizeof scale, sizeof scale);
  if (!(scale >= 0) || !std::isfinite(scale)) {
    throw std::runtime_error("has the scale " + std::to_string(scale) +
                             ", expected a number from 0");
  }
  return scale;
}

// none: the numbers.

Bytes encode_none(const Rows& rows, std::uint64_t) {
  Bytes payload(rows.values.size() * sizeof(float));
  if (!payload.empty()) std::memcpy(payload.data(), rows.values.data(), payload.size());
  return payload;
}

Rows decode_none(std::span<const std::uint8_t> payload, std::size_t count, std::size_t width,
                 std::uint64_t) {
  check_size(payload, count * width * sizeof(float));
  Rows rows = zeros(count, width);
  if (!payload.empty()) std::memcpy(rows.values.data(), payload.data(), payload.size());
  return rows;
}

// int8: whole multiples of a row's scale; a number goes up with the chance of its fraction.

constexpr float kMost = 127;

Bytes encode_int8(const Rows& rows, std::uint64_t seed) {
  Bytes payload(rows.count * (sizeof(float) + rows.width));
  for (std::size_t r = 0; r < rows.count; ++r) {
    const float* row = rows.values.data() + r * rows.width;
    const float scale = largest(row, rows.width) / kMost;
    write_scale(payload, r, scale);
    if (scale == 0) continue;
    for (std::size_t i = 0; i < rows.width; ++i) {
      const std::size_t at = r * rows.width + i;
      const float draw = static_cast<float>(word(seed, at) >> 40) * 0x1p-24f;
      const float x = row[i] / scale, down = std::floor(x);
      const float code = std::clamp(down + (draw < x - down ? 1.0f : 0.0f), -kMost, kMost);
      codes_of(payload, rows.count)[at] = static_cast<std::uint8_t>(static_cast<int>(code));
    }
  }
  return payload;
}

Rows decode_int8(std::span<const std::uint8_t> payload, std::size_t count, std::size_t width,
                 std::uint64_t) {
  check_size(payload, count * (sizeof(float) + width));
  Rows rows = zeros(count, width);
  const auto codes = payload.subspan(count * sizeof(float));
  for (std::size_t r = 0; r < count; ++r) {
    const float scale = read_scale(payload, r);
    for (std::size_t at = r * width; at < (r + 1) * width; ++at) {
      const auto code = static_cast<std::int8_t>(codes[at]);
      if (code < -kMost) throw std::runtime_error("holds the code -128, expected at least -127");
      rows.values[at] = scale * static_cast<float>(code);
    }
  }
  return rows;
}

// drive: the signs of a randomly rotated row, and one number. arXiv 2105.08339.

std::size_t padded(std::size_t width) { return std::max(std::bit_ceil(width), kWord); }

// The number of rotations of a padded row.
std::size_t passes(std::size_t size) { return size > 256 ? 3 : size == 256 ? 4 : 5; }

// Changes signs by the random bits of one of the row's passes.
void flip(std::vector<float>& row, std::uint64_t state, std::size_t pass) {
  const std::size_t words = row.size() / kWord;
  for (std::size_t i = 0; i < words; ++i) {
    const std::uint64_t bits = word(state, pass * words + i);
    for (std::size_t j = 0; j < kWord; ++j) {
      if (bits >> j & 1) row[i * kWord + j] = -row[i * kWord + j];
    }
  }
}

// Multiplies by Sylvester's matrix of +-1; the order of the strides is part of the bits.
void hadamard(std::vector<float>& row) {
  for (std::size_t stride = 1; stride < row.size(); stride *= 2) {
    for (std::size_t start = 0; start < row.size(); start += 2 * stride) {
      for (std::size_t i = start; i < start + stride; ++i) {
        const float a = row[i], b = row[i + stride];
        row[i] = a + b;
        row[i + stride] = a - b;
      }
    }
  }
}

// A sum by halves, in the order of common/codecs.
double folded(std::vector<double> terms) {
  for (std::size_t half = terms.size() / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) terms[i] += terms[i + half];
  }
  return terms[0];
}

// ... H S_1 H S_0 x, with signs S and Sylvester's matrix H.
void rotate(std::vector<float>& row, std::uint64_t state) {
  for (std::size_t pass = 0; pass < passes(row.size()); ++pass) {
    flip(row, state, pass);
    hadamard(row);
  }
}

// Its transpose.
void rotate_back(std::vector<float>& row, std::uint64_t state) {
  for (std::size_t pass = passes(row.size()); pass-- > 0;) {
    hadamard(row);
    flip(row, state, pass);
  }
}

Bytes encode_drive(const Rows& rows, std::uint64_t seed) {
  const std::size_t size = padded(rows.width);
  Bytes payload(rows.count * (sizeof(float) + size / 8));
  std::vector<float> y(size);
  std::vector<double> squares(size), sizes(size);
  for (std::size_t r = 0; r < rows.count; ++r) {
    const float* row = rows.values.data() + r * rows.width;
    const float most = largest(row, rows.width);
    if (most == 0) continue;
    // The scale is taken out as a power of two, so that no sum leaves float32.
    int exponent;
    std::frexp(most, &exponent);
    std::fill(y.begin(), y.end(), 0.0f);
    for (std::size_t i = 0; i < rows.width; ++i) y[i] = std::ldexp(row[i], -exponent);
    for (std::size_t i = 0; i < size; ++i) squares[i] = static_cast<double>(y[i]) * y[i];
    rotate(y, word(seed, r));
    std::uint8_t* bits = codes_of(payload, rows.count) + r * (size / 8);
    for (std::size_t i = 0; i < size; ++i) {
      sizes[i] = std::fabs(y[i]);
      if (y[i] < 0) bits[i / 8] |= static_cast<std::uint8_t>(1 << i % 8);
    }
    const auto ratio = static_cast<float>(folded(squares) / folded(sizes));
    write_scale(payload, r, std::ldexp(ratio, exponent));
  }
  return payload;
}

Rows decode_drive(std::span<const std::uint8_t> payload, std::size_t count, std::size_t width,
                  std::uint64_t seed) {
  const std::size_t size = padded(width);
  check_size(payload, count * (sizeof(float) + size / 8));
  Rows rows = zeros(count, width);
  std::vector<float> y(size);
  for (std::size_t r = 0; r < count; ++r) {
    const float scale = read_scale(payload, r);
    const auto bits = payload.subspan(count * sizeof(float) + r * (size / 8), size / 8);
    for (std::size_t i = 0; i < size; ++i) y[i] = bits[i / 8] >> i % 8 & 1 ? -1.0f : 1.0f;
    rotate_back(y, word(seed, r));
    for (std::size_t i = 0; i < width; ++i) rows.values[r * width + i] = scale * y[i];
  }
  return rows;
}

constexpr Codec kCodecs[] = {{"none", encode_none, decode_none},
                             {"int8", encode_int8, decode_int8},
                             {"drive", encode_drive, decode_drive}};

}  // namespace

const Codec& find_codec(const std::string& name) {
  std::string names;
  for (const auto& codec : kCodecs) {
    if (name == codec.name) return codec;
    names += std::string(names.empty() ? "" : ", ") + codec.name;
  }
  throw std::invalid_argument("no such codec: " + name + ", expected one of " + names);
}

Rows add_change(Rows held, std::span<const std::uint8_t> change, const Codec& codec,
                std::int64_t seed, std::int64_t round) {
  for (std::int64_t part = 0; !change.empty(); ++part) {
    float factor;
    std::uint32_t length = 0;
    constexpr std::size_t start = sizeof factor + sizeof length;
    const bool whole = change.size() >= start;
    if (whole) std::memcpy(&length, change.data() + sizeof factor, sizeof length);
    if (!whole || length > change.size() - start || part == kMostParts) {
      throw std::runtime_error("cannot be read from byte " + std::to_string(change.size()) +
                               " before its end");
    }
    std::memcpy(&factor, change.data(), sizeof factor);
    const auto state = stream_state(seed, Purpose::kDownlink, {round, part});
    const Rows rows = codec.decode(change.subspan(start, length), held.count, held.width, state);
    for (std::size_t i = 0; i < held.values.size(); ++i) held.values[i] += factor * rows.values[i];
    change = change.subspan(start + length);
  }
  return held;
}

}  // namespace fedhead
