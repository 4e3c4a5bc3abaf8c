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

constexpr std::uint64_t kMebi = 1ULL << 20;
constexpr std::uint64_t kLargestModel = 256 * kMebi;
constexpr std::uint64_t kLargestCard = 8 * kMebi;
constexpr std::uint64_t kLargestNote = 1 << 16;  // of a few words of the phone's own
constexpr std::uint64_t kMostVersions = 999'999'999;
constexpr const char* kCard = "card.json";
constexpr const char* kCurrent = "current";
constexpr const char* kSums = ".sums";

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
  const char* why = nullptr;
  if (!is_name(name)) {
    why = "expected a letter or digit, then at most 99 letters, digits, '.', '_' or '-'";
  } else if (name == kCard || name == "artifact.json" || name == "signed") {
    why = "each version has a file of this name beside the model's";
  }
  if (why != nullptr) {
    // The reason comes first, since a line of the log may be cut off.
    throw Trouble("name", std::string("it cannot name a model: ") + why + ", found \"" +
                              name.substr(0, 120) + "\"");
  }
}

// What is wrong with a size; empty if nothing is.
std::string wrong_size(const pb::Blob& blob, std::uint64_t most) {
  if (blob.size() >= 1 && blob.size() <= most) return "";
  return std::to_string(blob.size()) + " bytes, expected 1 to " + std::to_string(most) + " (" +
         std::to_string(most / kMebi) + " MiB)";
}

void check_answer(const pb::Model& model, const std::string& name) {
  const auto &file = model.file(), &card = model.card();
  const auto size = wrong_size(file, kLargestModel), card_size = wrong_size(card, kLargestCard);
  std::string wrong;
  if (model.name() != name) wrong = "name";
  if (model.version() < 1 || model.version() > kMostVersions) wrong = "version";
  if (!is_hex(file.sha256(), 64) || !is_hex(card.sha256(), 64)) wrong = "SHA-256";
  if (file.sha256() == card.sha256()) wrong = "card";
  if (!size.empty()) wrong = "size: " + size;
  if (!card_size.empty()) wrong = "size of its card: " + card_size;
  if (!wrong.empty()) {
    throw Trouble("impossible-model", "the gateway offers a model with an impossible " + wrong);
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

// What is kept of a file's SHA-256 and its card's.
std::string sums_of(const std::string& file, const std::string& card) { return file + " " + card; }

// One model's folder.
class Shelf {
 public:
  Shelf(fs::path folder, std::string name) : folder_(std::move(folder)), name_(std::move(name)) {
    make_folder(folder_);
  }

  const fs::path& folder() const { return folder_; }
  fs::path file(std::uint64_t version) const { return of(version) / name_; }
  fs::path card(std::uint64_t version) const { return of(version) / kCard; }

  // The SHA-256 of a version's file and of its card when they were put there; nothing if it is not
  // known that both were.
  std::optional<std::string> sums(std::uint64_t version) const {
    return read_sealed(of(version) / kSums, kLargestNote);
  }

  // Whether both files of a version are there, and their bytes are those that were put there.
  bool is_whole(std::uint64_t version) const {
    return fs::is_regular_file(file(version)) && fs::is_regular_file(card(version)) &&
           sums(version) == sums_of(sha256_file(file(version)), sha256_file(card(version)));
  }

  // The version in use; 0 if there is none.
  std::uint64_t in_use() const {
    const auto text = read_if_there(folder_ / kCurrent, kLargestNote).value_or("");
    return version_of(text.substr(0, text.find('\n')));
  }

  void use(std::uint64_t version) const {
    write_atomic(folder_ / kCurrent, std::to_string(version) + "\n");
  }

  // Whole files, each unless it is there already, into a version's folder. The sums come last.
  void put(std::uint64_t version, const fs::path& from_file, const fs::path& from_card,
           const std::string& of_both) const {
    make_folder(of(version));
    const bool is_noted = sums(version) == of_both;
    if (!is_noted) remove_file(of(version) / kSums);
    if (from_file != file(version)) put_in_place(from_file, file(version));
    if (from_card != card(version)) put_in_place(from_card, card(version));
    if (!is_noted) write_sealed(of(version) / kSums, of_both);
  }

  // Removes what killed updates have put in place, but for this version: none was ever in use.
  void forget_unused(std::uint64_t in_use, std::uint64_t version) const {
    if (in_use == 0) return;  // it is not known which were
    remove_if([&](std::uint64_t other) { return other > in_use && other != version; });
  }

  // Removes all versions but the one in use and the one before it, and remains of a kill.
  void prune(std::uint64_t current, std::uint64_t before) const {
    if (before == 0 || before == current || !sums(before)) {
      before = 0;
      for (const auto version : versions()) {
        if (version < current && version > before && sums(version)) before = version;
      }
    }
    remove_if([&](std::uint64_t other) { return other != current && other != before; });
  }

 private:
  fs::path of(std::uint64_t version) const { return folder_ / std::to_string(version); }

  std::vector<std::uint64_t> versions() const {
    std::vector<std::uint64_t> found;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      if (const auto version = version_of(entry.path().filename().string())) {
        found.push_back(version);
      }
    }
    return found;
  }

  template <typename Condition>
  void remove_if(const Condition& is_over) const {
    const auto removed = folder_ / ".removed";
    fs::remove_all(removed);
    for (const auto version : versions()) {
      if (!is_over(version)) continue;
      fs::rename(of(version), removed);  // a half-removed folder must not look like a version
      fs::remove_all(removed);
    }
  }

  fs::path folder_;
  std::string name_;
};

// Refuses an older version than the one in use where that one is not whole any more.
void check_in_use(const Shelf& shelf, std::uint64_t in_use, std::uint64_t offered) {
  if (offered >= in_use || shelf.is_whole(in_use)) return;
  throw Trouble("damaged-model", "version " + std::to_string(in_use) +
                                     ", which is in use, is damaged here, and the gateway offers "
                                     "only version " +
                                     std::to_string(offered) + ", which is older");
}

// Refuses other bytes under the number in use. Where its sums are lost, one of its files must be
// as it is offered: else both would be replaced, one after the other.
void check_same(const Shelf& shelf, const pb::Model& model, bool has_one) {
  const auto sums = shelf.sums(model.version());
  if (sums ? *sums == sums_of(model.file().sha256(), model.card().sha256()) : has_one) return;
  throw Trouble("impossible-model", "version " + std::to_string(model.version()) +
                                        " is in use here with other bytes than the gateway "
                                        "offers as this version, and versions are never reused");
}

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
  const auto version = model.version(), in_use = shelf.in_use();
  check_in_use(shelf, in_use, version);
  const auto statement = checked(model);
  if (version < in_use) {
    if (!statement) return {shelf.file(in_use), in_use, false};
    throw Trouble("unsigned-model", "version " + std::to_string(version) +
                                        " is older than version " + std::to_string(in_use) +
                                        ", which is in use");
  }
  const bool has_file = is_blob(shelf.file(version), model.file());
  const bool has_card = is_blob(shelf.card(version), model.card());
  if (version == in_use) check_same(shelf, model, has_file || has_card);
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
  shelf.forget_unused(in_use, version);
  shelf.put(version, file, card, sums_of(model.file().sha256(), model.card().sha256()));
  if (shelf.in_use() != version) shelf.use(version);
  shelf.prune(version, in_use);
  return {shelf.file(version), version, version != in_use || !has_file};
}

}  // namespace fedhead
