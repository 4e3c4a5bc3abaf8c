#include "kept.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "files.h"
#include "gateway.h"

namespace fedhead {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostMet = 8;
constexpr std::uint64_t kLargestMessage = 8 << 20;
constexpr std::uint64_t kLargestArray = 1 << 30;
// The server's largest message has 1 MiB; several arrays of up to kInlineUpdate would not fit.
constexpr std::size_t kMostInline = 512 << 10;

// A number and a message after it.
template <typename Number, typename Message>
std::string with_number(Number number, const Message& message) {
  std::string bytes(reinterpret_cast<const char*>(&number), sizeof number);
  message.AppendToString(&bytes);
  return bytes;
}

template <typename Number, typename Message>
bool read_number(const std::optional<std::string>& bytes, Number& number, Message& message) {
  if (!bytes || bytes->size() < sizeof number) return false;
  std::memcpy(&number, bytes->data(), sizeof number);
  return message.ParseFromString(bytes->substr(sizeof number));
}

}  // namespace

Kept::Kept(fs::path folder) : folder_(std::move(folder)) {
  make_folder(folder_ / "descriptions");
  make_folder(folder_ / "uploads");
  read_met();
}

void Kept::read_met() {
  std::vector<std::pair<fs::file_time_type, fs::path>> files;
  for (const auto& entry : fs::directory_iterator(folder_ / "descriptions")) {
    if (is_hex(entry.path().filename().string(), 64)) {
      files.emplace_back(entry.last_write_time(), entry.path());
    }
  }
  std::sort(files.rbegin(), files.rend());
  for (const auto& [time, path] : files) {
    Met met;
    const auto bytes = read_sealed(path, kLargestMessage);
    const bool whole = read_number(bytes, met.input_size, met.description) &&
                       met.description.id() == path.filename().string();
    if (whole && met_.size() < kMostMet) {
      met_.push_back(met);
    } else {
      remove_file(path);
    }
  }
}

const Met* Kept::find(const std::string& id) const {
  const auto found = std::find_if(met_.begin(), met_.end(),
                                  [&](const Met& met) { return met.description.id() == id; });
  return found == met_.end() ? nullptr : &*found;
}

void Kept::meet(const Met& met) {
  const auto& id = met.description.id();
  write_sealed(folder_ / "descriptions" / id, with_number(met.input_size, met.description));
  std::erase_if(met_, [&](const Met& other) { return other.description.id() == id; });
  met_.insert(met_.begin(), met);
  while (met_.size() > kMostMet) {
    remove_file(folder_ / "descriptions" / met_.back().description.id());
    met_.pop_back();
  }
}

void Kept::unmeet(const std::string& id) {
  if (find(id) == nullptr) return;
  remove_file(folder_ / "descriptions" / id);
  std::erase_if(met_, [&](const Met& met) { return met.description.id() == id; });
}

void Kept::use(const std::string& id) {
  if (met_.empty() || met_.front().description.id() == id) return;
  if (const auto* met = find(id)) meet(Met(*met));
}

std::optional<Work> Kept::work() const {
  Work work;
  if (!read_number(read_sealed(folder_ / "task", kLargestMessage), work.deadline, work.task)) {
    return std::nullopt;
  }
  return work;
}

void Kept::begin(const Work& work) {
  forget();
  write_sealed(folder_ / "task", with_number(work.deadline, work.task));
}

std::optional<pb::Submission> Kept::result(const std::string& task) const {
  pb::Submission submission;
  const auto bytes = read_sealed(folder_ / "result", kLargestMessage);
  const bool is_its = bytes && submission.ParseFromString(*bytes) && submission.task() == task;
  const auto& arrays = submission.arrays();
  if (!is_its || !std::all_of(arrays.begin(), arrays.end(),
                              [this](const auto& array) { return is_whole(array); })) {
    return std::nullopt;
  }
  return submission;
}

bool Kept::is_whole(const pb::Array& array) const {
  if (!array.data().empty()) return true;  // the result's own SHA-256 is of it, too
  const auto path = folder_ / "uploads" / array.sha256();
  return fs::exists(path) && sha256_file(path) == array.sha256();
}

void Kept::finish(pb::Submission submission, const std::map<std::string, std::string>& arrays) {
  std::size_t used = 0;
  for (const auto& [field, bytes] : arrays) {
    auto& array = *submission.add_arrays();
    array.set_field(field);
    if (bytes.size() <= kInlineUpdate && used + bytes.size() <= kMostInline) {
      array.set_data(bytes);
      used += bytes.size();
    } else {
      array.set_sha256(sha256(bytes));
      write_atomic(folder_ / "uploads" / array.sha256(), bytes);
    }
  }
  write_sealed(folder_ / "result", submission.SerializeAsString());
}

std::string Kept::array(const std::string& sha256) const {
  return read_file(folder_ / "uploads" / sha256, kLargestArray);
}

void Kept::forget() {
  // After a kill in between there is no task, and its result is none of the next one's.
  remove_file(folder_ / "task");
  remove_file(folder_ / "result");
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder_ / "uploads")) {
    files.push_back(entry.path());
  }
  for (const auto& file : files) remove_file(file);
}

}  // namespace fedhead
