// Functions of client/native/phone for ctypes; see test_native_split.py.
#include <algorithm>

#include "split.h"
#include "trainer.h"

extern "C" {

// Writes 1 for each example of the test part, 0 for the others.
void local_split(const std::int64_t* labels, std::uint64_t count, double fraction,
                 std::uint64_t seed, std::uint64_t client, std::uint8_t* is_test) {
  const auto parts = fedhead::local_split({labels, labels + count}, fraction, seed, client);
  std::fill(is_test, is_test + count, 0);
  for (const auto i : parts.test) is_test[i] = 1;
}

void batch_order(std::uint64_t count, std::uint64_t seed, std::uint64_t epoch,
                 std::int64_t* order) {
  const auto found = fedhead::batch_order(count, seed, epoch);
  std::copy(found.begin(), found.end(), order);
}

// Returns how many there are.
std::uint64_t evenly(std::uint64_t total, std::uint64_t most, std::int64_t* positions) {
  const auto found = fedhead::evenly(total, most);
  std::copy(found.begin(), found.end(), positions);
  return found.size();
}

// 1: within the clip, 0: not, -1: not finite.
int clipped(const float* update, std::uint64_t count, double clip, std::uint32_t* numbers) {
  try {
    const auto sent = fedhead::clipped({update, update + count}, clip);
    std::copy(sent.numbers.begin(), sent.numbers.end(), numbers);
    return sent.is_within ? 1 : 0;
  } catch (const std::exception&) {
    return -1;
  }
}

}  // extern "C"
