#include "files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "trouble.h"

namespace fedhead {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kPiece = 1 << 16;
constexpr std::size_t kDigits = 64;  // of a SHA-256

[[noreturn]] void fail(const fs::path& path) {
  throw Trouble("disk", path.string() + ": " + std::strerror(errno));
}

// A file that is closed at the end of its scope.
class Open {
 public:
  Open(const fs::path& path, int flags, bool may_be_missing = false)
      : path_(path), file_(::open(path.c_str(), flags | O_CLOEXEC, 0600)) {
    if (file_ < 0 && !(may_be_missing && errno == ENOENT)) fail(path_);
  }
  ~Open() {
    if (file_ >= 0) ::close(file_);
  }
  Open(const Open&) = delete;
  Open& operator=(const Open&) = delete;

  bool is_there() const { return file_ >= 0; }

  // The next bytes; none at the end.
  std::size_t read(char* into, std::size_t most) {
    for (;;) {
      const auto count = ::read(file_, into, most);
      if (count >= 0) return static_cast<std::size_t>(count);
      if (errno != EINTR) fail(path_);
    }
  }

  void write(std::string_view content) {
    while (!content.empty()) {
      const auto count = ::write(file_, content.data(), content.size());
      if (count < 0 && errno != EINTR) fail(path_);
      if (count > 0) content.remove_prefix(static_cast<std::size_t>(count));
    }
  }

  void sync() {
    if (::fsync(file_) != 0) fail(path_);
  }

 private:
  fs::path path_;
  int file_;
};

void sync_folder(const fs::path& path) { Open(path, O_RDONLY | O_DIRECTORY).sync(); }

// A SHA-256 that is made of pieces.
class Digest {
 public:
  Digest() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    check(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr));
  }

  void add(const char* data, std::size_t size) {
    check(EVP_DigestUpdate(context_.get(), data, size) == 1);
  }

  std::string hex() {
    std::array<unsigned char, 32> bytes{};
    unsigned int size = 0;
    check(EVP_DigestFinal_ex(context_.get(), bytes.data(), &size) == 1 && size == bytes.size());
    std::string text;
    for (const auto byte : bytes) {
      text += "0123456789abcdef"[byte >> 4];
      text += "0123456789abcdef"[byte & 15];
    }
    return text;
  }

 private:
  static void check(bool done) {
    if (!done) throw Trouble("crypto", "OpenSSL cannot compute SHA-256");
  }

  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

std::string content_of(Open& file, const fs::path& path, std::uint64_t most) {
  std::string content;
  for (std::size_t count = 1; count > 0;) {
    const auto size = content.size();
    content.resize(size + kPiece);
    count = file.read(content.data() + size, kPiece);
    content.resize(size + count);
    if (content.size() > most) {
      throw Trouble("disk", path.string() + ": more than " + std::to_string(most) + " bytes");
    }
  }
  return content;
}

}  // namespace

std::string read_file(const fs::path& path, std::uint64_t most) {
  Open file(path, O_RDONLY);
  return content_of(file, path, most);
}

std::optional<std::string> read_if_there(const fs::path& path, std::uint64_t most) {
  Open file(path, O_RDONLY, true);
  if (!file.is_there()) return std::nullopt;
  return content_of(file, path, most);
}

void write_atomic(const fs::path& path, std::string_view content) {
  // No file that is named from outside begins with a dot.
  auto temporary = path.parent_path() / ".";
  temporary += path.filename();
  temporary += ".tmp";
  {
    Open file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    file.write(content);
    file.sync();
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) fail(path);
  sync_folder(path.parent_path());
}

void write_sealed(const fs::path& path, const std::string& content) {
  write_atomic(path, sha256(content) + content);
}

std::optional<std::string> read_sealed(const fs::path& path, std::uint64_t most) {
  const auto bytes = read_if_there(path, most + kDigits);
  if (!bytes || bytes->size() < kDigits) return std::nullopt;
  auto content = bytes->substr(kDigits);
  if (bytes->compare(0, kDigits, sha256(content)) != 0) return std::nullopt;
  return content;
}

void append(const fs::path& path, std::string_view content) {
  Open(path, O_WRONLY | O_CREAT | O_APPEND).write(content);
}

void put_in_place(const fs::path& from, const fs::path& to) {
  Open(from, O_RDONLY).sync();
  if (::rename(from.c_str(), to.c_str()) != 0) fail(to);
  sync_folder(to.parent_path());
}

void make_folder(const fs::path& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return;
  const auto parent = path.parent_path();
  if (!parent.empty()) make_folder(parent);
  fs::create_directory(path, error);
  if (error) throw Trouble("disk", path.string() + ": " + error.message());
  sync_folder(parent.empty() ? "." : parent);
}

void remove_file(const fs::path& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) fail(path);
}

std::string sha256(std::string_view content) {
  Digest digest;
  digest.add(content.data(), content.size());
  return digest.hex();
}

std::string sha256_file(const fs::path& path) {
  Open file(path, O_RDONLY);
  Digest digest;
  std::array<char, kPiece> piece;
  while (const auto count = file.read(piece.data(), piece.size())) digest.add(piece.data(), count);
  return digest.hex();
}

bool is_hex(std::string_view text, std::size_t length) {
  return text.size() == length && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

FolderLock::FolderLock(const fs::path& folder)
    : file_(::open((folder / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
  if (file_ < 0) fail(folder / "lock");
  if (::flock(file_, LOCK_EX | LOCK_NB) != 0) {
    ::close(file_);
    throw Trouble("busy", folder.string() + ": another fedhead-phone uses it");
  }
}

FolderLock::~FolderLock() { ::close(file_); }

std::string one_line(const std::string& text) {
  constexpr std::size_t kMost = 200;
  std::string line = text.substr(0, kMost);
  // A character of several bytes is not cut in two.
  if (text.size() > kMost) {
    while (!line.empty() && (static_cast<unsigned char>(text[line.size()]) & 0xC0) == 0x80) {
      line.pop_back();
    }
  }
  for (auto& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  return line;
}

}  // namespace fedhead
