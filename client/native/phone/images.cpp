#include "images.h"

#include <algorithm>
#include <cstring>
#include <iostream>

#include "../safetensors.h"
#include "files.h"
#include "trouble.h"

namespace fedhead {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kDigest = 64;           // characters of a SHA-256
constexpr std::chrono::seconds kUnsaved{30};  // of work that a kill may cost
constexpr std::uint64_t kLargestCache = 1ULL << 31;

std::vector<fs::path> sorted_entries(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (auto at = fs::directory_iterator(folder, error); !error && at != fs::directory_iterator();
       at.increment(error)) {
    if (at->path().filename().string()[0] != '.') entries.push_back(at->path());
  }
  if (error) {
    throw Trouble("images: the folder cannot be read", folder.string() + ": " + error.message());
  }
  std::sort(entries.begin(), entries.end(), [](const fs::path& a, const fs::path& b) {
    return a.filename().string() < b.filename().string();
  });
  return entries;
}

bool is_plain_file(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() == fs::file_type::regular;
}

std::uint64_t size_of(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : size;
}

}  // namespace

std::vector<ClassFolder> list_folder(const fs::path& folder) {
  std::vector<ClassFolder> found;
  for (const auto& inner : sorted_entries(folder)) {
    std::error_code error;
    if (fs::symlink_status(inner, error).type() != fs::file_type::directory) continue;
    ClassFolder one{inner, {}};
    for (const auto& file : sorted_entries(inner)) {
      if (file.extension() != ".rgb") continue;
      one.files.emplace_back(file, is_plain_file(file) ? size_of(file) : 0);
    }
    found.push_back(std::move(one));
  }
  return found;
}

Usable usable_images(const std::vector<ClassFolder>& folders,
                     const std::vector<std::string>& classes, std::uint64_t bytes) {
  Usable usable;
  for (const auto& folder : folders) {
    const auto name = folder.path.filename().string();
    const auto found = std::find(classes.begin(), classes.end(), name);
    if (found == classes.end()) {
      throw Trouble("images: a folder is no class of the run", folder.path.string());
    }
    for (const auto& [file, size] : folder.files) {
      if (size == bytes) {
        usable.images.push_back({file, found - classes.begin()});
      } else {
        ++usable.left_out;
      }
    }
  }
  return usable;
}

std::string key_of(const std::vector<Image>& images) {
  std::string text;
  for (const auto& image : images) {
    std::error_code error;
    const auto time = fs::last_write_time(image.file, error).time_since_epoch().count();
    text += image.file.string() + '\0' + std::to_string(size_of(image.file)) + ' ' +
            std::to_string(error ? 0 : time) + '\n';
  }
  return sha256(text);
}

FeatureCache::FeatureCache(const fs::path& folder, std::string fingerprint, std::size_t width)
    : path_(folder / fingerprint),
      fingerprint_(std::move(fingerprint)),
      width_(width),
      saved_(std::chrono::steady_clock::now()) {
  make_folder(folder);
  try {
    const auto content = read_sealed(path_, kLargestCache);
    if (!content) return;
    const auto archive = parse_safetensors(*content);
    const auto &names = archive.array("sha256"), &rows = archive.array("features");
    const auto count = names.bytes.size() / kDigest;
    if (rows.bytes.size() != count * width_) return;
    for (std::size_t i = 0; i < count; ++i) {
      rows_[names.bytes.substr(i * kDigest, kDigest)] = rows.bytes.substr(i * width_, width_);
    }
  } catch (const std::runtime_error& error) {
    std::clog << "fedhead-phone: " << error.what() << ": features are computed again\n";
  }
}

const std::string& FeatureCache::features(const std::string& image, Trainer& trainer) {
  const auto name = sha256(image);
  used_.insert(name);
  auto found = rows_.find(name);
  if (found == rows_.end()) {
    found = rows_.emplace(name, trainer.features(image)).first;
    if (found->second.size() != width_) {
      throw Trouble("damaged-backbone", "it gives " + std::to_string(found->second.size()) +
                                            " features, expected " + std::to_string(width_));
    }
    ++unsaved_;
    if (std::chrono::steady_clock::now() - saved_ > kUnsaved) save(false);
  }
  return found->second;
}

void FeatureCache::save(bool complete) {
  const auto is_gone = [this](const auto& row) { return !used_.contains(row.first); };
  const auto gone = complete ? std::erase_if(rows_, is_gone) : 0;
  if (unsaved_ == 0 && gone == 0) return;
  unsaved_ = 0;
  Array names{"U8", {}, ""}, rows{"U8", {}, ""};
  for (const auto& [name, row] : rows_) {
    names.bytes += name;
    rows.bytes += row;
  }
  const auto count = static_cast<std::int64_t>(rows_.size());
  names.shape = {count, static_cast<std::int64_t>(kDigest)};
  rows.shape = {count, static_cast<std::int64_t>(width_)};
  const auto content =
      safetensors_bytes({{{"sha256", names}, {"features", rows}}, {{"fingerprint", fingerprint_}}});
  write_sealed(path_, content);
  saved_ = std::chrono::steady_clock::now();  // a slow disk is not asked at once again
}

void keep_features(const fs::path& folder, const std::set<std::string>& fingerprints) {
  std::error_code error;  // a folder that is missing has nothing to remove
  std::vector<fs::path> others;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (!fingerprints.contains(entry.path().filename().string())) others.push_back(entry.path());
  }
  for (const auto& path : others) remove_file(path);
}

Examples load_examples(const Settings& settings, const std::vector<Image>& images,
                       Trainer& trainer, const GoesOn& goes_on) {
  FeatureCache cache(settings.state / "features", trainer.fingerprint(), trainer.num_features());
  Examples examples;
  const auto size = 3 * trainer.input_size() * trainer.input_size();
  try {
    for (const auto& image : images) {
      goes_on();
      const auto bytes = read_file(image.file, size);
      if (bytes.size() != size) {
        throw Trouble("images: one changes while it is read", image.file.string());
      }
      examples.features += cache.features(bytes, trainer);
      examples.labels.push_back(image.label);
    }
  } catch (...) {
    cache.save(false);  // the next try goes on from here
    throw;
  }
  cache.save(true);
  return examples;
}

Examples read_features(const fs::path& file, const std::string& fingerprint,
                       std::size_t num_features, std::size_t num_classes) {
  const auto archive = read_safetensors(file);
  const auto named = archive.metadata.find("fingerprint");
  if (named == archive.metadata.end() || named->second != fingerprint) {
    throw Trouble("foreign-fingerprint: features of another backbone", file.string());
  }
  const auto &rows = archive.array("features"), &labels = archive.array("labels");
  const auto count = labels.bytes.size() / sizeof(std::int64_t);
  if (rows.dtype != "U8" || labels.dtype != "I64" || count == 0 ||
      (num_features > 0 && rows.bytes.size() != count * num_features)) {
    throw Trouble("images: no such features",
                  file.string() + ": expected features uint8 (n, " + std::to_string(num_features) +
                      ") and labels int64 (n,)");
  }
  Examples examples{rows.bytes, std::vector<std::int64_t>(count)};
  std::memcpy(examples.labels.data(), labels.bytes.data(), labels.bytes.size());
  for (const auto label : examples.labels) {
    if (label < 0 || static_cast<std::size_t>(label) >= num_classes) {
      throw Trouble("images: a label is no class of the run", file.string());
    }
  }
  return examples;
}

Examples select(const Examples& examples, const std::vector<std::size_t>& positions,
                std::size_t width) {
  Examples part;
  for (const auto i : positions) {
    part.features.append(examples.features, i * width, width);
    part.labels.push_back(examples.labels[i]);
  }
  return part;
}

}  // namespace fedhead
