// A phone's folder, as `fedhead deploy --phone` makes it: phone.toml, phone.token, ca.crt and
// trusted/.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <variant>

namespace fedhead {

struct Settings {
  std::string gateway;              // host:port
  std::string token;
  std::filesystem::path authority;  // PEM, of the only authorities to trust
  std::filesystem::path data;       // folder of CLASS/*.rgb, or a file of features
  bool holds_features = false;      // which of the two
  std::filesystem::path state;
  std::filesystem::path trusted;    // public keys; the folder need not be there
  std::uint64_t max_examples = 0;   // largest number of images to use; 0: all
  std::string allow;                // shell command that says whether the phone may train
};

using TomlValue = std::variant<std::string, std::int64_t, double, bool>;

// Lines `key = value` with strings, numbers and true or false; tables and lists are refused. Throws
// std::runtime_error that names the line.
std::map<std::string, TomlValue> parse_settings(const std::string& text);

// Throws std::runtime_error that names the file and the key.
Settings read_settings(const std::filesystem::path& folder);

}  // namespace fedhead
