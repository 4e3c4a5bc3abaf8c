// The part of a phone's life that is about its own images.
#include <iostream>

#include "phone.h"
#include "trouble.h"

namespace fedhead {

std::vector<ClassFolder> Phone::folders() const {
  return settings_.holds_features ? std::vector<ClassFolder>() : list_folder(settings_.data);
}

std::vector<Image> Phone::images_of(const Met& met, const std::vector<ClassFolder>& folders) {
  const auto& description = met.description;
  const std::vector<std::string> classes(description.classes().begin(),
                                         description.classes().end());
  const auto size = std::uint64_t{met.input_size};
  const auto bytes = 3 * size * size;
  auto usable = usable_images(folders, classes, bytes);
  if (auto& told = left_out_[bytes]; told != usable.left_out) {
    told = usable.left_out;
    std::clog << "fedhead-phone: " << told << " images are left out, expected files of " << bytes
              << " bytes" << std::endl;
  }
  if (usable.images.empty()) {
    throw Trouble("images: there are none", settings_.data.string() + ": no CLASS/*.rgb of " +
                                                std::to_string(bytes) + " bytes");
  }
  return std::move(usable.images);
}

Positions Phone::used(const Met& met, std::size_t total) const {
  std::uint64_t most = met.description.max_examples();
  if (settings_.max_examples > 0 && (most == 0 || settings_.max_examples < most)) {
    most = settings_.max_examples;
  }
  return evenly(total, most);
}

Parts Phone::parts_of(const Met& met, const std::vector<std::int64_t>& labels) const {
  const auto& description = met.description;
  return local_split(labels, description.test_fraction(), description.seed(),
                     description.client());
}

Parts Phone::counted(const Met& met, const std::vector<ClassFolder>& folders) {
  std::vector<std::int64_t> labels;
  if (settings_.holds_features) {
    const auto classes = static_cast<std::size_t>(met.description.classes_size());
    const auto all = read_features(settings_.data, met.description.fingerprint(), 0, classes);
    for (const auto i : used(met, all.count())) labels.push_back(all.labels[i]);
  } else {
    const auto all = images_of(met, folders);
    for (const auto i : used(met, all.size())) labels.push_back(all[i].label);
  }
  return parts_of(met, labels);
}

const Phone::Prepared& Phone::examples_of(const Met& met, Trainer& trainer,
                                          const GoesOn& goes_on) {
  const auto width = trainer.num_features();
  std::string key = met.description.id();
  std::vector<Image> images;
  if (settings_.holds_features) {
    key += sha256_file(settings_.data);
  } else {
    const auto all = images_of(met, folders());
    for (const auto i : used(met, all.size())) images.push_back(all[i]);
    key += key_of(images);
  }
  if (prepared_.key == key) return prepared_;
  prepared_ = Prepared();
  Examples examples;
  if (settings_.holds_features) {
    const auto all = read_features(settings_.data, met.description.fingerprint(), width,
                                   trainer.num_classes());
    examples = select(all, used(met, all.count()), width);
  } else {
    examples = load_examples(settings_, images, trainer, goes_on);
  }
  const auto parts = parts_of(met, examples.labels);
  prepared_ = {key, select(examples, parts.train, width), select(examples, parts.test, width)};
  return prepared_;
}

}  // namespace fedhead
