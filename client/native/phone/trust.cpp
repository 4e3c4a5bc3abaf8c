#include "trust.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/obj_mac.h>
#include <openssl/pem.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <stdexcept>
#include <vector>

#include "files.h"
#include "trouble.h"

namespace fedhead {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostSigned = 1024;  // bytes of statement and signature together
constexpr std::size_t kMostKeys = 2;
constexpr std::uint64_t kLargestKey = 8192;
constexpr std::int64_t kClockSkew = 3600;
// SHA-256 of no bytes: a backbone has no card.
constexpr const char* kNoCard = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

// Reads the lines of a statement from its first byte to its last.
class Lines {
 public:
  explicit Lines(std::string_view rest) : rest_(rest) {}

  std::string_view value(std::string_view name) {
    const auto end = rest_.find('\n');
    if (end == std::string_view::npos || rest_.substr(0, name.size()) != name ||
        end <= name.size() || rest_[name.size()] != ' ') {
      throw std::runtime_error("not a statement of fedhead artifact v1");
    }
    const auto value = rest_.substr(name.size() + 1, end - name.size() - 1);
    rest_.remove_prefix(end + 1);
    return value;
  }

  std::uint64_t number(std::string_view name, std::size_t digits, bool may_be_zero = false) {
    const auto text = value(name);
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    const bool whole = error == std::errc() && end == text.data() + text.size();
    if (!whole || text.size() > digits || (number == 0 && !may_be_zero) ||
        (text.size() > 1 && text[0] == '0')) {
      throw std::runtime_error("not a statement of fedhead artifact v1");
    }
    return number;
  }

  std::string digest(std::string_view name) {
    const auto text = value(name);
    if (!is_hex(text, 64)) throw std::runtime_error("not a statement of fedhead artifact v1");
    return std::string(text);
  }

  bool is_over() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

// A public key on the curve P-256; throws std::runtime_error for anything else.
Key read_key(const fs::path& path) {
  struct stat status;
  if (::stat(path.c_str(), &status) != 0 || (status.st_mode & 022) != 0) {
    throw std::runtime_error(path.string() + ": others may replace a trusted key; chmod 644");
  }
  const auto pem = read_file(path, kLargestKey);
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(
      BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free);
  Key key(bio ? PEM_read_bio_PUBKEY(bio.get(), nullptr, nullptr, nullptr) : nullptr,
          EVP_PKEY_free);
  char curve[32] = "";
  std::size_t length = 0;
  if (!key || EVP_PKEY_is_a(key.get(), "EC") != 1 ||
      EVP_PKEY_get_group_name(key.get(), curve, sizeof curve, &length) != 1 ||
      std::string(curve) != SN_X9_62_prime256v1) {
    throw std::runtime_error(path.string() + ": not a public key on the curve P-256, in PEM");
  }
  return key;
}

std::vector<Key> read_keys(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string()[0] != '.') files.push_back(entry.path());
  }
  // A folder that has lost its keys must not mean that everything is accepted.
  if (files.empty() || files.size() > kMostKeys) {
    throw std::runtime_error(folder.string() + ": " + std::to_string(files.size()) +
                             " files, expected one public key or two");
  }
  std::vector<Key> keys;
  for (const auto& file : files) keys.push_back(read_key(file));
  return keys;
}

bool holds(EVP_PKEY* key, std::string_view statement, std::string_view signature) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        EVP_MD_CTX_free);
  return context &&
         EVP_DigestVerifyInit(context.get(), nullptr, EVP_sha256(), nullptr, key) == 1 &&
         EVP_DigestVerify(context.get(),
                          reinterpret_cast<const unsigned char*>(signature.data()),
                          signature.size(),
                          reinterpret_cast<const unsigned char*>(statement.data()),
                          statement.size()) == 1;
}

}  // namespace

bool is_name(std::string_view text) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  return !text.empty() && text.size() <= 100 && plain(text[0]) &&
         std::all_of(text.begin(), text.end(), [&](char c) {
           return plain(c) || c == '.' || c == '_' || c == '-';
         });
}

Statement parse_statement(std::string_view bytes) {
  constexpr std::string_view kFirst = "fedhead artifact v1\n";
  if (bytes.size() > kMostSigned || bytes.substr(0, kFirst.size()) != kFirst) {
    throw std::runtime_error("not a statement of fedhead artifact v1");
  }
  Lines lines(bytes.substr(kFirst.size()));
  Statement statement;
  statement.kind = lines.value("kind");
  statement.name = lines.value("name");
  statement.version = lines.number("version", 18);
  statement.size = lines.number("size", 18, true);
  statement.sha256 = lines.digest("sha256");
  statement.card = lines.digest("card");
  statement.fingerprint = lines.digest("fingerprint");
  statement.created = static_cast<std::int64_t>(lines.number("created", 11));
  statement.expires = static_cast<std::int64_t>(lines.number("expires", 11));
  const bool is_kind = statement.kind == "model" || statement.kind == "backbone";
  if (!lines.is_over() || !is_kind || !is_name(statement.name)) {
    throw std::runtime_error("not a statement of fedhead artifact v1");
  }
  return statement;
}

void Trust::refuse(const std::string& why) const { throw Trouble("unsigned-" + kind_, why); }

void Trust::check_time(const Statement& statement, std::int64_t now) const {
  if (now < statement.created - kClockSkew) refuse("it was signed in the future of this clock");
  if (now > statement.expires + kClockSkew) refuse("its signature has expired");
}

void Trust::check_content(const Statement& statement, const Expected& expected) const {
  if (statement.kind != kind_) refuse("it was signed as a " + statement.kind);
  const bool is_end = expected.name.starts_with('.');
  if (is_end ? !statement.name.ends_with(expected.name) : statement.name != expected.name) {
    refuse("it was signed as " + statement.name + ", expected " +
           (is_end ? "a name with " : "") + expected.name);
  }
  if (expected.version != 0 && statement.version != expected.version) {
    refuse("it was signed as version " + std::to_string(statement.version) + ", expected " +
           std::to_string(expected.version));
  }
  if (!expected.fingerprint.empty() && statement.fingerprint != expected.fingerprint) {
    refuse("another fingerprint was signed");
  }
  if (statement.size != expected.size || statement.sha256 != expected.sha256) {
    refuse("another file was signed");
  }
  if (expected.card.empty() && statement.card != kNoCard) refuse("it was signed with a card");
  if (!expected.card.empty() && statement.card != expected.card) refuse("another card was signed");
}

bool Trust::is_signed(std::string_view statement, std::string_view signature) const {
  if (statement.size() + signature.size() > kMostSigned) return false;
  const auto keys = read_keys(keys_);
  return std::any_of(keys.begin(), keys.end(), [&](const Key& key) {
    return holds(key.get(), statement, signature);
  });
}

Statement Trust::check(std::string_view bytes, std::string_view signature,
                       const Expected& expected, std::int64_t now) const {
  if (bytes.empty() && signature.empty()) refuse("it is not signed");
  Statement statement;
  try {
    if (!is_signed(bytes, signature)) refuse("no trusted key has signed it");
    statement = parse_statement(bytes);
  } catch (const Trouble&) {
    throw;
  } catch (const std::exception& error) {
    refuse(error.what());
  }
  check_time(statement, now);
  check_content(statement, expected);
  const auto before = last(statement.name);
  if (statement.version < before.version) {
    refuse("version " + std::to_string(statement.version) + " is older than version " +
           std::to_string(before.version) + ", which was accepted here before");
  }
  if (statement.version == before.version && statement.sha256 != before.sha256) {
    refuse("another file was accepted as this version before");
  }
  return statement;
}

void Trust::accept(const Statement& statement) const {
  if (last(statement.name).version >= statement.version) return;
  make_folder(accepted_);
  write_atomic(accepted_ / statement.name, "version " + std::to_string(statement.version) +
                                               "\nsha256 " + statement.sha256 + "\n");
}

Statement Trust::last(const std::string& name) const {
  const auto path = accepted_ / name;
  const auto content = read_if_there(path, kMostSigned);
  Statement found;
  if (!content) return found;
  try {
    Lines lines(*content);
    found.version = lines.number("version", 18);
    found.sha256 = lines.digest("sha256");
  } catch (const std::runtime_error&) {
    refuse(path.string() + ": damaged: it cannot be known which version was accepted");
  }
  return found;
}

}  // namespace fedhead
