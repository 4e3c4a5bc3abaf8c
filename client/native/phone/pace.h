// When a phone calls again, so that a fleet spreads its calls and spares a server in trouble.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>

#include "phones.pb.h"
#include "trouble.h"

namespace fedhead {

class Pace {
 public:
  Pace() : random_(std::random_device{}()), last_(draw(0.5, 1)) {}

  // Seconds until the next call, uniform in a server's window. Throws Trouble if it is none.
  double later(const phones::v1::Later& window) {
    const auto first = window.min_seconds(), last = window.max_seconds();
    if (!(first >= 0 && first <= last && std::isfinite(last))) {
      throw Trouble("protocol", "the gateway's window is none");
    }
    last_ = std::max(draw(std::min(first, kLongestWindow), std::min(last, kLongestWindow)),
                     kShortest);
    return last_;
  }

  // Seconds until the next try after a failure: twice the last time, at most an hour. A window may
  // have been longer than that; a failure does not shorten it.
  double again() {
    last_ = std::max(last_, std::min(2 * last_, kLongest));
    return last_;
  }

 private:
  double draw(double first, double last) {
    return first + (last - first) * std::generate_canonical<double, 53>(random_);
  }

  static constexpr double kShortest = 0.05, kLongest = 3600, kLongestWindow = 7 * 24 * 3600.0;
  std::mt19937_64 random_;
  double last_;
};

}  // namespace fedhead
