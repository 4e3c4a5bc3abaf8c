// Which of its examples a phone trains on, and in which order: the draws of common/seeding.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fedhead {

using Positions = std::vector<std::size_t>;

// Of at most `most` (0: all) of `total` examples, evenly spread: common.partition.evenly.
Positions evenly(std::uint64_t total, std::uint64_t most);

// The stable argsort of the first n draws of a stream, which is named by its state.
Positions permutation(std::size_t n, std::uint64_t state);

// The order of visits in one epoch, from 0; the seed is a task's batch_seed.
Positions batch_order(std::size_t n, std::uint64_t batch_seed, std::uint64_t epoch);

struct Parts {
  Positions train, test;  // ascending
};

// A client's own test part, label by label if numbers allow: common.partition.local_split. The
// fraction is in [0, 1); labels are those of the examples to split.
Parts local_split(const std::vector<std::int64_t>& labels, double test_fraction,
                  std::uint64_t seed, std::uint64_t client);

}  // namespace fedhead
