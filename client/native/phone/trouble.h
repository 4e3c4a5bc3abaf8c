// What can go wrong on a phone, in words for its owner and in a word for the gateway.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace fedhead {

// A phone cannot take part, or cannot do a task. The word goes to the gateway and says nothing of
// the owner's data; what() is for the owner's log alone.
class Trouble : public std::runtime_error {
 public:
  Trouble(std::string word, const std::string& details)
      : std::runtime_error(word + ": " + details), word_(std::move(word)) {}

  const std::string& word() const { return word_; }

 private:
  std::string word_;
};

// The owner's conditions for training do not hold any more.
struct Declined : std::runtime_error {
  Declined() : std::runtime_error("the conditions for training do not hold any more") {}
};

// The process was asked to end.
struct Stopped : std::runtime_error {
  Stopped() : std::runtime_error("stopped") {}
};

// Text for one line of a log: at most 200 bytes, without control characters.
std::string one_line(const std::string& text);

}  // namespace fedhead
