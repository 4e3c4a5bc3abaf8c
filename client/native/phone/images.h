// A phone's images, or features in their place, and what is kept of them.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "settings.h"
#include "trainer.h"

namespace fedhead {

struct Image {
  std::filesystem::path file;
  std::int64_t label;
};

// A folder CLASS of images, and its *.rgb with their sizes in bytes; 0: not a plain file.
struct ClassFolder {
  std::filesystem::path path;
  std::vector<std::pair<std::filesystem::path, std::uint64_t>> files;
};

// All CLASS/*.rgb of a folder, by class and then by file name; names are compared by their bytes.
// Throws Trouble "images: ..." if it cannot be read.
std::vector<ClassFolder> list_folder(const std::filesystem::path& folder);

// What a run can use of a folder: files with exactly `bytes` bytes. Throws Trouble "images: ..." if
// a folder is no class.
struct Usable {
  std::vector<Image> images;
  std::size_t left_out = 0;
};
Usable usable_images(const std::vector<ClassFolder>& folders,
                     const std::vector<std::string>& classes, std::uint64_t bytes);

// Features by the SHA-256 of their image, of one backbone; a file that a kill leaves whole.
class FeatureCache {
 public:
  // Of the backbone with this fingerprint. What cannot be read counts as missing.
  FeatureCache(const std::filesystem::path& folder, std::string fingerprint, std::size_t width);

  // The features of an image, computed if they are not there.
  const std::string& features(const std::string& image, Trainer& trainer);

  // Writes what is new, as a whole file. `complete`: what was not asked for is of images that are
  // gone.
  void save(bool complete);

 private:
  std::filesystem::path path_;
  std::string fingerprint_;
  std::size_t width_, unsaved_ = 0;
  std::chrono::steady_clock::time_point saved_;
  std::map<std::string, std::string> rows_;
  std::set<std::string> used_;
};

// Removes the features of all backbones but these.
void keep_features(const std::filesystem::path& folder, const std::set<std::string>& fingerprints);

// A key that changes when one of the files does: SHA-256 of names, sizes and times.
std::string key_of(const std::vector<Image>& images);

// The examples that images are, in their order. Throws Trouble.
Examples load_examples(const Settings& settings, const std::vector<Image>& images,
                       Trainer& trainer, const GoesOn& goes_on);

// A file of "features" and "labels" of a backbone, as fedhead-device writes it with --features;
// num_features 0: only the labels are needed.
Examples read_features(const std::filesystem::path& file, const std::string& fingerprint,
                       std::size_t num_features, std::size_t num_classes);

// Some of the examples, in the order of their positions.
Examples select(const Examples& examples, const std::vector<std::size_t>& positions,
                std::size_t width);

}  // namespace fedhead
