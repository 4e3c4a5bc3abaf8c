#include "split.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <tuple>

#include "../seeding.h"

namespace fedhead {
namespace {

constexpr std::int64_t kTurns = -1;  // key of the order of the classes

// One of the classes that a phone has examples of.
struct Share {
  std::int64_t label;
  std::size_t count = 0, take = 0, turn = 0;
  double remainder = 0;
};

// Each class's place in this client's order: seeded, the same for all, and begun elsewhere by each
// client, in steps of the golden ratio.
void set_turns(std::vector<Share>& shares, std::uint64_t seed, std::uint64_t client) {
  const auto state = stream_state(static_cast<std::int64_t>(seed), Purpose::kLocalSplit, {kTurns});
  std::vector<std::size_t> order(shares.size());
  std::iota(order.begin(), order.end(), 0);
  const auto draw = [&](std::size_t k) {
    return word(state, static_cast<std::uint64_t>(shares[k].label)) >> 1;
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return draw(a) < draw(b); });
  const auto classes = shares.size();
  const auto begin = static_cast<std::size_t>(
      static_cast<unsigned __int128>(client * kGolden) * classes >> 64);
  for (std::size_t place = 0; place < classes; ++place) {
    shares[order[place]].turn = (place + classes - begin) % classes;
  }
}

// How many of each class go to the test part.
void set_takes(std::vector<Share>& shares, std::size_t total, double fraction) {
  auto missing = std::min(static_cast<std::int64_t>(
                              std::floor(static_cast<double>(total) * fraction + 0.5)),
                          static_cast<std::int64_t>(total) - 1);
  for (auto& share : shares) {
    const double quota = static_cast<double>(share.count) * fraction;
    share.take = static_cast<std::size_t>(std::floor(quota));
    // Rounded as numpy does, so that equal ones are equal.
    share.remainder = std::nearbyint((quota - std::floor(quota)) * 1e9) / 1e9;
    missing -= static_cast<std::int64_t>(share.take);
  }
  std::vector<Share*> order;
  for (auto& share : shares) order.push_back(&share);
  std::stable_sort(order.begin(), order.end(), [](const Share* a, const Share* b) {
    const auto key = [](const Share* s) {
      return std::tuple(s->take + 1 >= s->count, -s->remainder, s->turn);
    };
    return key(a) < key(b);
  });
  for (auto* share : order) {
    if (missing-- <= 0) break;
    ++share->take;
  }
}

}  // namespace

Positions evenly(std::uint64_t total, std::uint64_t most) {
  const auto count = std::min(most == 0 ? total : most, total);
  Positions positions;
  for (std::uint64_t i = 0; i < count; ++i) positions.push_back(i * total / count);
  return positions;
}

Positions permutation(std::size_t n, std::uint64_t state) {
  Positions order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [state](std::size_t a, std::size_t b) {
    return word(state, a) >> 1 < word(state, b) >> 1;
  });
  return order;
}

Positions batch_order(std::size_t n, std::uint64_t batch_seed, std::uint64_t epoch) {
  return permutation(n, mix((batch_seed ^ epoch) + kGolden));
}

Parts local_split(const std::vector<std::int64_t>& labels, double test_fraction,
                  std::uint64_t seed, std::uint64_t client) {
  std::map<std::int64_t, std::size_t> counts;
  for (const auto label : labels) ++counts[label];
  std::vector<Share> shares;
  for (const auto& [label, count] : counts) shares.push_back({label, count});
  if (!shares.empty()) set_turns(shares, seed, client);
  set_takes(shares, labels.size(), test_fraction);
  std::map<std::int64_t, std::size_t> left;
  for (const auto& share : shares) left[share.label] = share.take;
  std::vector<bool> is_test(labels.size());
  const auto state = stream_state(static_cast<std::int64_t>(seed), Purpose::kLocalSplit,
                                  {static_cast<std::int64_t>(client)});
  for (const auto i : permutation(labels.size(), state)) {
    auto& takes = left[labels[i]];
    if (takes == 0) continue;
    is_test[i] = true;
    --takes;
  }
  Parts parts;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    (is_test[i] ? parts.test : parts.train).push_back(i);
  }
  return parts;
}

}  // namespace fedhead
