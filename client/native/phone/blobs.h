// Bytes named by their SHA-256: fetched once, in parts, and kept as files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>

#include "gateway.h"
#include "trainer.h"

namespace fedhead {

// Whether a file is there and has a blob's bytes.
bool is_blob(const std::filesystem::path& path, const pb::Blob& blob);

class Blobs {
 public:
  Blobs(std::filesystem::path folder, Gateway& gateway);

  // The file of a blob. What is missing of it is fetched from where an earlier try ended. Throws
  // Trouble "damaged-blob" if its bytes are not what its name promises, even when fetched again, or
  // if it has more than `most` bytes; CallError as the gateway. Asks goes_on before each part.
  std::filesystem::path file(const pb::Blob& blob, std::uint64_t most, const GoesOn& goes_on);

  // Its content, which must have exactly `size` bytes.
  std::string content(const pb::Blob& blob, std::uint64_t size, const GoesOn& goes_on);

  // Removes all others.
  void keep(const std::set<std::string>& names);

 private:
  bool is_fetched(const pb::Blob& blob, const std::filesystem::path& partial,
                  const GoesOn& goes_on);

  std::filesystem::path folder_;
  Gateway& gateway_;
};

}  // namespace fedhead
