// Compiled with -ffp-contract=off: a private update's numbers are the same on every machine.
#include "trainer.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace fedhead {
namespace {

constexpr double kResolution = 1 << 18;  // what the clip becomes as an integer
constexpr double kFine = 1 << 20;        // steps in which a norm is measured

}  // namespace

Clipped clipped(const Floats& update, double clip) {
  double peak = 0;
  for (const auto x : update) {
    if (!std::isfinite(x)) throw std::runtime_error("the update is not finite");
    peak = std::max(peak, std::fabs(static_cast<double>(x)));
  }
  const auto offset = static_cast<std::uint32_t>(kResolution);
  Clipped sent{std::vector<std::uint32_t>(update.size(), offset), true};
  if (peak == 0) return sent;
  std::uint64_t squares = 0;
  for (const auto x : update) {
    const auto steps = static_cast<std::uint64_t>(std::ceil(std::fabs(x / peak) * kFine));
    squares += steps * steps;
  }
  const double norm = std::sqrt(static_cast<double>(squares)) / kFine;
  sent.is_within = !(peak / clip * norm > 1);
  const double factor = sent.is_within ? peak / clip * kResolution : kResolution / norm;
  for (std::size_t i = 0; i < update.size(); ++i) {
    const auto whole = static_cast<std::int64_t>(std::trunc(update[i] / peak * factor));
    sent.numbers[i] = static_cast<std::uint32_t>(whole + offset);
  }
  return sent;
}

Clipped Trainer::train_clipped(const Examples& examples, const Floats& head, const Steps& steps,
                               double clip, const GoesOn& goes_on) {
  auto update = train(examples, head, steps, goes_on);
  for (std::size_t i = 0; i < update.size(); ++i) update[i] -= head[i];
  return clipped(update, clip);
}

}  // namespace fedhead
