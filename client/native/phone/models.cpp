#include "models.h"

#include <charconv>
#include <chrono>
#include <utility>
#include <vector>

#include "blobs.h"
#include "card.h"
#include "files.h"
#include "trouble.h"

namespace fedhead {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kLargestModel = 256ULL << 20;
constexpr std::uint64_t kLargestCard = 8ULL << 20;
constexpr std::uint64_t kMostVersions = 999'999'999;
constexpr const char* kCard = "card.json";
constexpr const char* kCurrent = "current";

std::int64_t unix_seconds() {
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::seconds>(since).count();
}

// 0 unless a text is a version's number.
std::uint64_t version_of(const std::string& text) {
  std::uint64_t version = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), version);
  const bool is_whole = error == std::errc() && end == text.data() + text.size();
  return is_whole && text[0] != '0' && version <= kMostVersions ? version : 0;
}

void check_name(const std::string& name) {
  if (!is_name(name) || name == kCurrent || name == kCard) {
    throw Trouble("name", "\"" + name.substr(0, 120) +
                              "\" cannot name a model: a letter or digit, then at most 99 letters, "
                              "digits, '.', '_' or '-'");
  }
}

void check_answer(const pb::Model& model, const std::string& name) {
  const auto &file = model.file(), &card = model.card();
  const char* wrong = nullptr;
  if (model.name() != name) wrong = "name";
  if (model.version() < 1 || model.version() > kMostVersions) wrong = "version";
  if (!is_hex(file.sha256(), 64) || !is_hex(card.sha256(), 64)) wrong = "SHA-256";
  if (file.sha256() == card.sha256()) wrong = "card";
  if (file.size() < 1 || file.size() > kLargestModel) wrong = "size";
  if (card.size() < 1 || card.size() > kLargestCard) wrong = "size of its card";
  if (wrong != nullptr) {
    throw Trouble("impossible-model",
                  std::string("the gateway offers a model with an impossible ") + wrong);
  }
}

// Why a card is refused; empty if it is not.
std::string wrong_with(const std::string& card, const Statement& statement) {
  try {
    const bool is_its = fingerprint_in(card) == statement.fingerprint;
    return is_its ? "" : "another fingerprint was signed than the card's";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

// One model's folder.
class Shelf {
 public:
  Shelf(fs::path folder, std::string name) : folder_(std::move(folder)), name_(std::move(name)) {
    make_folder(folder_);
  }

  const fs::path& folder() const { return folder_; }
  fs::path file(std::uint64_t version) const { return of(version) / name_; }
  fs::path card(std::uint64_t version) const { return of(version) / kCard; }

  // Whether both files of a version are there. The card comes last.
  bool has(std::uint64_t version) const {
    return fs::is_regular_file(file(version)) && fs::is_regular_file(card(version));
  }

  // The version in use; 0 if there is none.
  std::uint64_t in_use() const {
    const auto text = read_if_there(folder_ / kCurrent, 1 << 16).value_or("");
    return version_of(text.substr(0, text.find('\n')));
  }

  void use(std::uint64_t version) const {
    write_atomic(folder_ / kCurrent, std::to_string(version) + "\n");
  }

  void use_none() const { remove_file(folder_ / kCurrent); }

  // A whole file, into a version's folder.
  static void put(const fs::path& from, const fs::path& to) {
    make_folder(to.parent_path());
    put_in_place(from, to);
  }

  // Removes all versions but the one in use and the one before it, and remains of a kill.
  void prune(std::uint64_t current, std::uint64_t before) const {
    std::vector<std::uint64_t> versions;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      if (const auto version = version_of(entry.path().filename().string())) {
        versions.push_back(version);
      }
    }
    if (before == 0 || before == current || !has(before)) {
      before = 0;
      for (const auto version : versions) {
        if (version < current && version > before && has(version)) before = version;
      }
    }
    const auto removed = folder_ / ".removed";
    fs::remove_all(removed);
    for (const auto version : versions) {
      if (version == current || version == before) continue;
      fs::rename(of(version), removed);  // a half-removed folder must not look like a version
      fs::remove_all(removed);
    }
  }

 private:
  fs::path of(std::uint64_t version) const { return folder_ / std::to_string(version); }

  fs::path folder_;
  std::string name_;
};

fs::path fetched(Blobs& parts, const pb::Blob& blob, std::uint64_t most, const GoesOn& goes_on) {
  try {
    return parts.file(blob, most, goes_on);
  } catch (const CallError& error) {
    if (error.code() != Code::kNotFound && error.code() != Code::kOutOfRange) throw;
    throw CallError(Code::kUnavailable, "the gateway does not offer this version any more");
  }
}

}  // namespace

bool may_succeed_later(const CallError& error) {
  switch (error.code()) {
    case Code::kCancelled:
    case Code::kUnavailable:
    case Code::kResourceExhausted:
    case Code::kDeadlineExceeded:
      return true;
    default:
      return false;
  }
}

Models::Models(const Settings& settings, Gateway& gateway)
    : folder_(settings.state / "models"),
      trust_(settings.trusted, settings.state / "accepted", "model"),
      gateway_(gateway) {}

pb::Model Models::newest(const std::string& name) {
  pb::LatestRequest request;
  request.set_name(name);
  try {
    auto model = gateway_.latest(request);
    check_answer(model, name);
    return model;
  } catch (const CallError& error) {
    if (error.code() != Code::kNotFound) throw;
    throw Trouble("no-model", "nothing is published as " + name);
  }
}

std::optional<Statement> Models::checked(const pb::Model& model) const {
  if (!fs::exists(trust_.keys())) return std::nullopt;
  return trust_.check(model.statement(), model.signature(),
                      {model.name(), model.version(), model.file().sha256(), model.file().size(),
                       model.card().sha256(), ""},
                      unix_seconds());
}

ModelFile Models::update(const std::string& name, const GoesOn& goes_on) {
  check_name(name);
  const Shelf shelf(folder_ / name, name);
  const FolderLock lock(shelf.folder());
  const auto model = newest(name);
  const auto statement = checked(model);
  const auto version = model.version(), in_use = shelf.in_use();
  if (version < in_use) {
    if (!statement && shelf.has(in_use)) return {shelf.file(in_use), in_use, false};
    throw Trouble(statement ? "unsigned-model" : "damaged-model",
                  "version " + std::to_string(version) + " is older than version " +
                      std::to_string(in_use) + ", which is in use");
  }
  const bool has_file = is_blob(shelf.file(version), model.file());
  const bool has_card = is_blob(shelf.card(version), model.card());
  auto card = shelf.card(version), file = shelf.file(version);
  Blobs parts(shelf.folder() / "parts", gateway_);
  parts.keep({model.file().sha256(), model.card().sha256()});
  if (!has_card) card = fetched(parts, model.card(), kLargestCard, goes_on);
  if (statement) {
    const auto wrong = wrong_with(read_file(card, kLargestCard), *statement);
    if (!wrong.empty()) parts.keep({});
    if (!wrong.empty()) throw Trouble("unsigned-model", wrong);
  }
  if (!has_file) file = fetched(parts, model.file(), kLargestModel, goes_on);
  if (statement) trust_.accept(*statement);
  // Both are others under a number that is in use: never the one's file with the other's card.
  if (version == in_use && !has_file && !has_card) shelf.use_none();
  if (!has_file) shelf.put(file, shelf.file(version));
  if (!has_card) shelf.put(card, shelf.card(version));
  if (shelf.in_use() != version) shelf.use(version);
  shelf.prune(version, in_use);
  return {shelf.file(version), version, version != in_use || !has_file};
}

}  // namespace fedhead
