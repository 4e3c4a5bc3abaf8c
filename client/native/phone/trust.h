// What a phone loads if it was given public keys: signed backbones alone, and never older ones.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace fedhead {

// The ten lines of common/delivery/delivery.proto.
struct Statement {
  std::string kind, name, sha256, card, fingerprint;
  std::uint64_t version = 0, size = 0;
  std::int64_t created = 0, expires = 0;
};

// Throws std::runtime_error unless the bytes are exactly a statement.
Statement parse_statement(std::string_view bytes);

// What the statement about a backbone must say.
struct Expected {
  std::string format, sha256, fingerprint;
  std::uint64_t size;
};

// One or two trusted keys in a folder, and the versions that were accepted last.
class Trust {
 public:
  Trust(std::filesystem::path keys, std::filesystem::path accepted)
      : keys_(std::move(keys)), accepted_(std::move(accepted)) {}

  // Throws Trouble "unsigned-backbone" that says why it is refused. `now` is in seconds since 1970.
  Statement check(std::string_view statement, std::string_view signature, const Expected& expected,
                  std::int64_t now) const;

  // Writes to the disk that nothing older is accepted any more: before anything is loaded.
  void accept(const Statement& statement) const;

 private:
  bool is_signed(std::string_view statement, std::string_view signature) const;
  Statement last(const std::string& name) const;

  std::filesystem::path keys_, accepted_;
};

}  // namespace fedhead
