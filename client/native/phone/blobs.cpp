#include "blobs.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "files.h"
#include "trouble.h"

namespace fedhead {
namespace {

namespace fs = std::filesystem;

constexpr int kTries = 2;  // of blobs whose bytes are wrong

std::uint64_t size_of(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : size;
}

// Refuses what is not the part that was asked for, as long as it can be: by shorter ones a server
// would hold a phone for ever.
void check_part(const pb::Part& part, const pb::Blob& blob, std::uint64_t offset) {
  const auto length = part.data().size();
  const auto expected = std::min<std::uint64_t>(kPart, blob.size() - offset);
  if (part.sha256() != blob.sha256() || part.size() != blob.size() || part.offset() != offset ||
      length != expected) {
    throw Trouble("damaged-blob", "a part of " + std::to_string(length) + " bytes at " +
                                      std::to_string(part.offset()) + ", expected " +
                                      std::to_string(expected) + " at " + std::to_string(offset));
  }
}

}  // namespace

bool is_blob(const fs::path& path, const pb::Blob& blob) {
  return size_of(path) == blob.size() && fs::is_regular_file(path) &&
         sha256_file(path) == blob.sha256();
}

Blobs::Blobs(fs::path folder, Gateway& gateway) : folder_(std::move(folder)), gateway_(gateway) {
  make_folder(folder_);
}

fs::path Blobs::file(const pb::Blob& blob, std::uint64_t most, const GoesOn& goes_on) {
  const auto& name = blob.sha256();
  if (!is_hex(name, 64) || blob.size() > most || blob.size() == 0) {
    throw Trouble("damaged-blob", "a blob of " + std::to_string(blob.size()) +
                                      " bytes, expected 1 to " + std::to_string(most));
  }
  const auto path = folder_ / name;
  if (is_blob(path, blob)) return path;
  remove_file(path);  // if it is there, it was whole once: the disk has lost something
  const auto partial = folder_ / (name + ".part");
  for (int tries = 0; tries < kTries; ++tries) {
    if (is_fetched(blob, partial, goes_on)) {
      put_in_place(partial, path);
      return path;
    }
    remove_file(partial);
  }
  throw Trouble("damaged-blob", "its bytes do not have the SHA-256 " + name);
}

bool Blobs::is_fetched(const pb::Blob& blob, const fs::path& partial, const GoesOn& goes_on) {
  if (!blob.data().empty()) {
    if (blob.data().size() != blob.size() || sha256(blob.data()) != blob.sha256()) return false;
    remove_file(partial);
    append(partial, blob.data());
    return true;
  }
  for (auto offset = size_of(partial); offset < blob.size(); offset = size_of(partial)) {
    goes_on();
    pb::FetchRequest request;
    request.set_sha256(blob.sha256());
    request.set_offset(offset);
    const auto part = gateway_.fetch(request);
    check_part(part, blob, offset);
    append(partial, part.data());
  }
  return is_blob(partial, blob);
}

std::string Blobs::content(const pb::Blob& blob, std::uint64_t size, const GoesOn& goes_on) {
  if (blob.size() != size) {
    throw Trouble("damaged-blob", "a blob of " + std::to_string(blob.size()) +
                                      " bytes, expected " + std::to_string(size));
  }
  return read_file(file(blob, size, goes_on), size);
}

void Blobs::keep(const std::set<std::string>& names) {
  std::vector<fs::path> others;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (!names.contains(entry.path().stem().string())) others.push_back(entry.path());
  }
  for (const auto& path : others) remove_file(path);
}

}  // namespace fedhead
