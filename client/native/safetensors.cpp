#include "safetensors.h"

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace fedhead {
namespace {

constexpr std::uint64_t kLargestHeader = 100'000'000;  // the format's own bound

// Reads the header of such a file: objects of strings, whole numbers and lists of these.
class Header {
 public:
  explicit Header(const std::string& text) : text_(text) {}

  void expect(char wanted) {
    if (!skip(wanted)) fail(std::string("expected ") + wanted);
  }

  bool skip(char wanted) {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_])) ++at_;
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  std::string string() {
    expect('"');
    std::string out;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '\\') {
        out += escaped();
      } else {
        out += text_[at_++];
      }
    }
    expect('"');
    return out;
  }

  std::int64_t number() {
    skip('\0');  // blanks alone
    const std::size_t start = at_;
    std::int64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const int digit = text_[at_] - '0';
      if (value > (std::numeric_limits<std::int64_t>::max() - digit) / 10) fail("a number too large");
      value = value * 10 + digit;
    }
    if (at_ == start) fail("expected a number");
    return value;
  }

  std::vector<std::int64_t> numbers() {
    std::vector<std::int64_t> out;
    expect('[');
    if (skip(']')) return out;
    do out.push_back(number());
    while (skip(','));
    expect(']');
    return out;
  }

  // Calls member(key) before each value, which it must read.
  template <typename F>
  void object(F member) {
    expect('{');
    if (skip('}')) return;
    do {
      const std::string key = string();
      expect(':');
      member(key);
    } while (skip(','));
    expect('}');
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("header is damaged at byte " + std::to_string(at_) + " (" + what + ")");
  }

 private:
  std::string escaped() {
    const char kind = at_ + 1 < text_.size() ? text_[at_ + 1] : '\0';
    if (kind == 'u') {  // kept as it stands: our own keys and values need none
      const std::string code = text_.substr(at_, 6);
      at_ += code.size();
      return code;
    }
    static const std::map<char, char> known{{'n', '\n'}, {'t', '\t'}, {'r', '\r'}, {'b', '\b'},
                                            {'f', '\f'}, {'"', '"'},  {'\\', '\\'}, {'/', '/'}};
    const auto found = known.find(kind);
    if (found == known.end()) fail("an unknown escape");
    at_ += 2;
    return std::string(1, found->second);
  }

  const std::string& text_;
  std::size_t at_ = 0;
};

std::size_t size_of(const std::string& dtype) {
  if (dtype == "F32") return 4;
  if (dtype == "U8") return 1;
  if (dtype == "I64") return 8;
  throw std::runtime_error("dtype " + dtype + ", expected F32, U8 or I64");
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

Array read_array(Header& header, const std::string& key, std::string_view bytes) {
  Array array;
  std::vector<std::int64_t> offsets;
  header.object([&](const std::string& name) {
    if (name == "dtype") array.dtype = header.string();
    else if (name == "shape") array.shape = header.numbers();
    else if (name == "data_offsets") offsets = header.numbers();
    else header.fail("unknown key " + name);
  });
  const auto size = static_cast<std::int64_t>(bytes.size());
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > size) {
    throw std::runtime_error(key + " lies outside the file, which may be cut off");
  }
  const auto width = static_cast<std::int64_t>(size_of(array.dtype));
  std::int64_t count = 1;
  for (const auto n : array.shape) {
    if (n != 0 && count > size / n) throw std::runtime_error(key + " is larger than the file");
    count *= n;
  }
  if (count * width != offsets[1] - offsets[0]) {
    throw std::runtime_error(key + " has another size than its shape");
  }
  array.bytes = bytes.substr(static_cast<std::size_t>(offsets[0]),
                             static_cast<std::size_t>(offsets[1] - offsets[0]));
  return array;
}

}  // namespace

Archive parse_safetensors(const std::string& content) {
  std::uint64_t length = 0;
  if (content.size() < sizeof length) throw std::runtime_error("is shorter than a header");
  std::memcpy(&length, content.data(), sizeof length);  // little-endian, as x86 and arm64 are
  if (length > kLargestHeader || length > content.size() - sizeof length) {
    throw std::runtime_error("is not a safetensors file, or is cut off");
  }
  const std::string text = content.substr(sizeof length, length);
  const auto bytes = std::string_view(content).substr(sizeof length + length);
  Header header(text);
  Archive archive;
  header.object([&](const std::string& key) {
    if (key == "__metadata__") {
      header.object([&](const std::string& name) { archive.metadata[name] = header.string(); });
    } else {
      archive.arrays[key] = read_array(header, key, bytes);
    }
  });
  return archive;
}

const Array& Archive::array(const std::string& name) const {
  const auto found = arrays.find(name);
  if (found == arrays.end()) throw std::runtime_error("holds no tensor \"" + name + "\"");
  return found->second;
}

Archive read_safetensors(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path.string() + ": cannot be read");
  const std::string content((std::istreambuf_iterator<char>(file)), {});
  try {
    return parse_safetensors(content);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path.string() + ": " + error.what());
  }
}

std::string safetensors_bytes(const Archive& archive) {
  std::ostringstream header;
  header << "{\"__metadata__\":{";
  const char* comma = "";
  for (const auto& [key, value] : archive.metadata) {
    header << comma << quoted(key) << ':' << quoted(value);
    comma = ",";
  }
  header << '}';
  std::size_t offset = 0;
  for (const auto& [key, array] : archive.arrays) {
    header << ',' << quoted(key) << ":{\"dtype\":\"" << array.dtype << "\",\"shape\":[";
    comma = "";
    for (const auto n : array.shape) {
      header << comma << n;
      comma = ",";
    }
    header << "],\"data_offsets\":[" << offset << ',' << offset + array.bytes.size() << "]}";
    offset += array.bytes.size();
  }
  header << '}';
  std::string text = header.str();
  text.append((8 - text.size() % 8) % 8, ' ');  // arrays begin at a multiple of eight
  const std::uint64_t length = text.size();
  std::string content(reinterpret_cast<const char*>(&length), sizeof length);
  content += text;
  for (const auto& [key, array] : archive.arrays) content += array.bytes;
  return content;
}

void write_safetensors(const std::filesystem::path& path, const Archive& archive) {
  auto temporary = path;
  temporary += ".part";
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file << safetensors_bytes(archive);
  file.close();
  if (!file) throw std::runtime_error(path.string() + ": cannot be written");
  std::filesystem::rename(temporary, path);
}

}  // namespace fedhead
