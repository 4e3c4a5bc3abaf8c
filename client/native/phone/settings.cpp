#include "settings.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <stdexcept>

#include "files.h"

namespace fedhead {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kLargestFile = 1 << 16;

// One line of the file.
class Line {
 public:
  explicit Line(const std::string& text) : text_(text) {}

  void skip_blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
  }

  bool is_over() {
    skip_blanks();
    return at_ == text_.size() || text_[at_] == '#';
  }

  void expect(char wanted) {
    skip_blanks();
    if (at_ == text_.size() || text_[at_] != wanted) {
      throw std::runtime_error(std::string("expected ") + wanted);
    }
    ++at_;
  }

  std::string key() {
    const auto start = at_;
    const auto belongs = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '-' || c == '_';
    };
    while (at_ < text_.size() && belongs(text_[at_])) ++at_;
    if (at_ == start) throw std::runtime_error("expected key = value");
    return text_.substr(start, at_ - start);
  }

  TomlValue value() {
    skip_blanks();
    if (at_ < text_.size() && (text_[at_] == '"' || text_[at_] == '\'')) return quoted(text_[at_]);
    const auto end = std::min(text_.find_first_of(" \t#", at_), text_.size());
    const auto word = text_.substr(at_, end - at_);
    at_ = end;
    if (word == "true" || word == "false") return word == "true";
    if (std::int64_t whole = 0; read(word, whole)) return whole;
    if (double number = 0; read(word, number)) return number;
    throw std::runtime_error("expected a text in quotes, a number, true or false");
  }

 private:
  template <typename T>
  static bool read(const std::string& word, T& value) {
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    return error == std::errc() && end == word.data() + word.size();
  }

  std::string quoted(char quote) {
    std::string out;
    for (++at_; at_ < text_.size() && text_[at_] != quote; ++at_) {
      if (quote == '"' && text_[at_] == '\\') {
        if (++at_ == text_.size()) break;
        const std::string known = "\"\\nt", meant = "\"\\\n\t";
        const auto which = known.find(text_[at_]);
        if (which == std::string::npos) throw std::runtime_error("an unknown escape in a text");
        out += meant[which];
      } else {
        out += text_[at_];
      }
    }
    if (at_ == text_.size()) throw std::runtime_error("a text without its second quote");
    ++at_;
    return out;
  }

  const std::string& text_;
  std::size_t at_ = 0;
};

std::string text_of(const std::map<std::string, TomlValue>& values, const std::string& key,
                    const char* otherwise) {
  const auto found = values.find(key);
  if (found == values.end()) {
    if (otherwise != nullptr) return otherwise;
    throw std::runtime_error(key + " is missing");
  }
  const auto* text = std::get_if<std::string>(&found->second);
  if (text == nullptr) throw std::runtime_error(key + ": expected a text in quotes");
  return *text;
}

std::uint64_t count_of(const std::map<std::string, TomlValue>& values, const std::string& key) {
  const auto found = values.find(key);
  if (found == values.end()) return 0;
  const auto* number = std::get_if<std::int64_t>(&found->second);
  if (number == nullptr || *number < 0) {
    throw std::runtime_error(key + ": expected a whole number, at least 0");
  }
  return static_cast<std::uint64_t>(*number);
}

void check_gateway(const std::string& gateway) {
  const auto colon = gateway.rfind(':');
  const auto is_plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           c == '.' || c == '-' || c == '_' || c == ':' || c == '[' || c == ']';
  };
  unsigned port = 0;
  const bool whole = colon != std::string::npos && colon > 0 &&
                     std::all_of(gateway.begin(), gateway.end(), is_plain);
  if (whole) std::from_chars(gateway.data() + colon + 1, gateway.data() + gateway.size(), port);
  if (!whole || port < 1 || port > 65535) {
    throw std::runtime_error("gateway is \"" + gateway + "\", expected \"host:port\"");
  }
}

void read_data(Settings& settings, const fs::path& folder, const std::string& data) {
  const auto colon = data.find(':');
  const auto kind = data.substr(0, colon);
  if (colon == std::string::npos || colon + 1 == data.size() ||
      (kind != "folder" && kind != "features")) {
    throw std::runtime_error("data is \"" + data +
                             "\", expected \"folder:PATH\" or \"features:FILE\"");
  }
  settings.data = folder / data.substr(colon + 1);
  settings.holds_features = kind == "features";
}

std::string read_token(const fs::path& path) {
  struct stat status;
  if (::stat(path.c_str(), &status) == 0 && (status.st_mode & 077) != 0) {
    throw std::runtime_error(path.string() + ": others may read this secret; chmod 600");
  }
  auto token = read_file(path, 4096);
  while (!token.empty() && (token.back() == '\n' || token.back() == '\r')) token.pop_back();
  const auto is_plain = [](char c) { return c > ' ' && c < 0x7F; };
  if (token.empty() || !std::all_of(token.begin(), token.end(), is_plain)) {
    throw std::runtime_error(path.string() + ": expected a token, one word");
  }
  return token;
}

}  // namespace

std::map<std::string, TomlValue> parse_settings(const std::string& text) {
  std::map<std::string, TomlValue> values;
  std::size_t number = 0;
  for (std::size_t start = 0; start < text.size();) {
    const auto end = std::min(text.find('\n', start), text.size());
    auto row = text.substr(start, end - start);
    if (!row.empty() && row.back() == '\r') row.pop_back();
    start = end + 1;
    ++number;
    try {
      Line line(row);
      if (line.is_over()) continue;
      const auto key = line.key();
      line.expect('=');
      const auto value = line.value();
      if (!line.is_over()) throw std::runtime_error("something stands behind the value");
      if (!values.emplace(key, value).second) throw std::runtime_error(key + " is there twice");
    } catch (const std::runtime_error& error) {
      throw std::runtime_error("line " + std::to_string(number) + ": " + error.what());
    }
  }
  return values;
}

Settings read_settings(const fs::path& folder) {
  const auto file = folder / "phone.toml";
  Settings settings;
  try {
    const auto values = parse_settings(read_file(file, kLargestFile));
    for (const auto& [key, value] : values) {
      const auto known = {"gateway", "delivery", "data", "state", "max-examples", "allow"};
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        throw std::runtime_error("no such key: " + key +
                                 ", expected gateway, delivery, data, state, max-examples, allow");
      }
    }
    settings.gateway = text_of(values, "gateway", nullptr);
    check_gateway(settings.gateway);
    read_data(settings, folder, text_of(values, "data", "folder:images"));
    settings.state = folder / text_of(values, "state", "state");
    settings.allow = text_of(values, "allow", "");
    settings.max_examples = count_of(values, "max-examples");
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(file.string() + ": " + error.what());
  }
  settings.token = read_token(folder / "phone.token");
  settings.authority = folder / "ca.crt";
  if (!fs::exists(settings.authority)) {
    throw std::runtime_error(settings.authority.string() + ": no such file");
  }
  settings.trusted = folder / "trusted";
  return settings;
}

}  // namespace fedhead
