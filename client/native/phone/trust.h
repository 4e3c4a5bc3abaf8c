// What a phone loads if it was given public keys: signed files alone, and never older ones.
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

// Whether a text can name an artifact, and so a file: a letter or digit, then at most 99 letters,
// digits, '.', '_' or '-'.
bool is_name(std::string_view text);

// What a statement must say.
struct Expected {
  std::string name;         // of a model; of a backbone its end, a dot and the format
  std::uint64_t version;    // of a model; of a backbone 0: any
  std::string sha256;
  std::uint64_t size;
  std::string card;         // SHA-256 of the card; empty: there is none
  std::string fingerprint;  // empty: the caller compares it, once it has the card
};

// One or two trusted keys in a folder, and the versions of a kind, "backbone" or "model", that were
// accepted last.
class Trust {
 public:
  Trust(std::filesystem::path keys, const std::filesystem::path& accepted, std::string kind)
      : keys_(std::move(keys)), accepted_(accepted / kind), kind_(std::move(kind)) {}

  // The folder; it need not be there.
  const std::filesystem::path& keys() const { return keys_; }

  // Throws Trouble "unsigned-backbone" or "unsigned-model" that says why it is refused. `now` is in
  // seconds since 1970.
  Statement check(std::string_view statement, std::string_view signature, const Expected& expected,
                  std::int64_t now) const;

  // Writes to the disk that nothing older is accepted any more: before anything is loaded.
  void accept(const Statement& statement) const;

 private:
  [[noreturn]] void refuse(const std::string& why) const;
  void check_time(const Statement& statement, std::int64_t now) const;
  void check_content(const Statement& statement, const Expected& expected) const;
  bool is_signed(std::string_view statement, std::string_view signature) const;
  Statement last(const std::string& name) const;

  std::filesystem::path keys_, accepted_;
  std::string kind_;
};

}  // namespace fedhead
