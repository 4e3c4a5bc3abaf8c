// Files of named tensors: eight bytes of header length, a JSON header, the tensors' bytes.
#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <string>

namespace fedhead {

struct Archive {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> metadata;

  // The tensor of this name; throws std::runtime_error if there is none.
  const at::Tensor& tensor(const std::string& name) const;
};

// Reads the dtypes F32, U8 and I64. Throws std::runtime_error that names the file.
Archive read_safetensors(const std::filesystem::path& path);

// Writes a temporary file and renames it, so that nobody reads a part of it.
void write_safetensors(const std::filesystem::path& path, const Archive& archive);

}  // namespace fedhead
