#include "card.h"

#include <cstddef>
#include <stdexcept>

namespace fedhead {
namespace {

// Reads JSON from its first byte on.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  char next() {
    while (at_ < text_.size() && is_blank(text_[at_])) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  bool skip(char wanted) {
    if (next() != wanted || at_ == text_.size()) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!skip(wanted)) fail();
  }

  // What stands between the quotes; escapes stay as they are.
  std::string_view string() {
    expect('"');
    const auto start = at_;
    while (at_ < text_.size() && text_[at_] != '"') at_ += text_[at_] == '\\' ? 2 : 1;
    if (at_ >= text_.size()) fail();
    return text_.substr(start, at_++ - start);
  }

  void pass_value() {
    std::size_t depth = 0;
    do {
      const char first = next();
      if (first == '"') {
        string();
      } else if (first == '{' || first == '[') {
        ++depth;
        ++at_;
      } else if (depth > 0 && (first == '}' || first == ']')) {
        --depth;
        ++at_;
      } else if (depth > 0 && (first == ',' || first == ':')) {
        ++at_;
      } else {
        pass_word();
      }
    } while (depth > 0);
  }

  void end() {
    next();
    if (at_ != text_.size()) fail();
  }

  [[noreturn]] static void fail() { throw std::runtime_error("the card is not JSON"); }

 private:
  static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

  // A number, true, false or null.
  void pass_word() {
    const auto start = at_;
    const auto belongs = [](char c) {
      return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
             c == '+' || c == '-' || c == '.';
    };
    while (at_ < text_.size() && belongs(text_[at_])) ++at_;
    if (at_ == start) fail();
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

std::string fingerprint_in(std::string_view card) {
  Reader reader(card);
  std::string found;
  reader.expect('{');
  if (!reader.skip('}')) {
    do {
      const auto key = reader.string();
      reader.expect(':');
      if (key == "fingerprint" && reader.next() == '"') {
        found = reader.string();
      } else {
        reader.pass_value();
      }
    } while (reader.skip(','));
    reader.expect('}');
  }
  reader.end();
  if (found.empty()) throw std::runtime_error("the card has no fingerprint");
  return found;
}

}  // namespace fedhead
