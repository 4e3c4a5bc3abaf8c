// Files that a kill at any moment leaves whole, and SHA-256.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace fedhead {

// Strings hold bytes here, as in the messages. All functions throw Trouble "disk" if the operating
// system refuses, unless they say otherwise.

// The whole content; throws if it has more than `most` bytes.
std::string read_file(const std::filesystem::path& path, std::uint64_t most);

// The same; nothing if there is no such file.
std::optional<std::string> read_if_there(const std::filesystem::path& path, std::uint64_t most);

// The content or the one before, whatever happens: written under another name, synced, renamed.
void write_atomic(const std::filesystem::path& path, std::string_view content);

// The same with the content's SHA-256 before it, and what was written so: nothing if the file is
// missing or damaged.
void write_sealed(const std::filesystem::path& path, const std::string& content);
std::optional<std::string> read_sealed(const std::filesystem::path& path, std::uint64_t most);

// Adds to the end of a file, which is made if it is missing.
void append(const std::filesystem::path& path, std::string_view content);

// Renames a complete file after its bytes are on the disk.
void put_in_place(const std::filesystem::path& from, const std::filesystem::path& to);

void make_folder(const std::filesystem::path& path);  // with those above it; on the disk
void remove_file(const std::filesystem::path& path);  // which need not be there

// Lower-case hexadecimal digits.
std::string sha256(std::string_view content);
std::string sha256_file(const std::filesystem::path& path);

// Whether a text is `length` lower-case hexadecimal digits.
bool is_hex(std::string_view text, std::size_t length);

// Keeps other processes out of a folder as long as it lives.
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int file_;
};

}  // namespace fedhead
