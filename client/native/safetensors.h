// Files of named arrays: eight bytes of header length, a JSON header, the arrays' bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace fedhead {

struct Array {
  std::string dtype;  // "F32", "U8" or "I64"
  std::vector<std::int64_t> shape;
  std::string bytes;
};

struct Archive {
  std::map<std::string, Array> arrays;
  std::map<std::string, std::string> metadata;

  // The array of this name; throws std::runtime_error if there is none.
  const Array& array(const std::string& name) const;
};

// Checks all sizes against the number of bytes. Throws std::runtime_error.
Archive parse_safetensors(const std::string& content);
std::string safetensors_bytes(const Archive& archive);

// Throws std::runtime_error that names the file.
Archive read_safetensors(const std::filesystem::path& path);

// Writes a temporary file and renames it, so that nobody reads a part of it.
void write_safetensors(const std::filesystem::path& path, const Archive& archive);

}  // namespace fedhead
