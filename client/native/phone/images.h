// A phone's images, or features in their place, and what is kept of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "settings.h"
#include "trainer.h"

namespace fedhead {

struct Image {
  std::filesystem::path file;
  std::int64_t label;
};

// All CLASS/*.rgb of a folder with exactly `bytes` bytes each, by class and then by file name;
// names are compared by their bytes. Files of another size are left out, with a line in the log.
// Throws Trouble "images: ..." if a folder is no class, or if there is no image.
std::vector<Image> list_images(const std::filesystem::path& folder,
                               const std::vector<std::string>& classes, std::uint64_t bytes);

// Features by the SHA-256 of their image, of one backbone; a file that a kill leaves whole.
class FeatureCache {
 public:
  // Of the backbone with this fingerprint. What cannot be read counts as missing.
  FeatureCache(const std::filesystem::path& folder, std::string fingerprint, std::size_t width);

  // The features of an image, computed if they are not there.
  const std::string& features(const std::string& image, Trainer& trainer);

  // Writes what is new. `complete`: what was not asked for is of images that are gone.
  void save(bool complete);

 private:
  std::filesystem::path path_;
  std::string fingerprint_;
  std::size_t width_, unsaved_ = 0;
  std::map<std::string, std::string> rows_;
  std::set<std::string> used_;
};

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
