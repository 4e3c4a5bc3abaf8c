#include "device.h"

#include <ATen/Context.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/mobile/import.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "tensors.h"

namespace fedhead {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kBatch = 32;  // images that are in memory as floats at once

std::int64_t label_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  std::int64_t label = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), label);
  if (error != std::errc() || end != name.data() + name.size()) {
    throw std::runtime_error(folder.string() + ": a folder's name is its label, a whole number");
  }
  return label;
}

at::Tensor read_image(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path.string() + ": cannot be read");
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  const auto size = static_cast<std::int64_t>(std::llround(std::sqrt(bytes.size() / 3.0)));
  if (size == 0 || static_cast<std::size_t>(3 * size * size) != bytes.size()) {
    throw std::runtime_error(path.string() + ": " + std::to_string(bytes.size()) +
                             " bytes, expected a square of uint8 in three planes");
  }
  auto image = at::empty({3, size, size}, at::kByte);
  std::copy(bytes.begin(), bytes.end(), static_cast<char*>(image.data_ptr()));
  return image;
}

// Torch warns at every load that quantized tensors will go away in some later release.
struct Silence : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

torch::jit::mobile::Module load(const fs::path& model) {
  at::globalContext().setQEngine(at::QEngine::QNNPACK);  // binds when the file is loaded
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard guard(&silence);
  try {
    return torch::jit::_load_for_mobile(model.string());
  } catch (const c10::Error& error) {
    throw std::runtime_error(model.string() + ": cannot be loaded: " + first_line(error));
  }
}

}  // namespace

std::string first_line(const c10::Error& error) {
  const std::string text = error.what_without_backtrace();
  return text.substr(0, text.find('\n'));
}

Device::Device(const fs::path& model) : module_(load(model)) {}

c10::IValue Device::call(const std::string& method, std::vector<c10::IValue> arguments) {
  const c10::InferenceMode no_autograd;
  return module_.get_method(method)(std::move(arguments));
}

c10::IValue Device::attribute(const std::string& name) const {
  const auto value = module_.attr(name, c10::IValue());
  if (value.isNone()) throw std::runtime_error("the file has no attribute " + name);
  return value;
}

LabelledFeatures Device::examples(const fs::path& data) {
  if (fs::is_directory(data)) return from_images(data);
  const auto archive = read_safetensors(data);
  try {
    return {tensor_of(archive, "features"), tensor_of(archive, "labels")};
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(data.string() + ": " + error.what());
  }
}

LabelledFeatures Device::from_images(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().extension() == ".rgb") files.push_back(entry);
  }
  if (files.empty()) throw std::runtime_error(folder.string() + ": no LABEL/*.rgb in it");
  // Sorted by file name, whatever the label, because batches depend on the order of the examples.
  std::sort(files.begin(), files.end(), [](const fs::path& a, const fs::path& b) {
    return std::pair(a.filename(), a) < std::pair(b.filename(), b);
  });
  std::vector<at::Tensor> features, images;
  std::vector<std::int64_t> labels;
  for (const auto& file : files) {
    labels.push_back(label_of(file.parent_path()));
    images.push_back(read_image(file));
    if (static_cast<std::int64_t>(images.size()) == kBatch || file == files.back()) {
      features.push_back(call("features", {at::stack(images)}).toTensor());
      images.clear();
    }
  }
  return {at::cat(features), at::tensor(labels, at::kLong)};
}

void Device::set_head(const at::Tensor& weight, const at::Tensor& bias,
                      const std::string& fingerprint) {
  call("set_head", {weight, bias, fingerprint});
}

double Device::loss(const LabelledFeatures& examples) {
  return call("loss", {examples.features, examples.labels}).toDouble();
}

at::Tensor Device::train(const LabelledFeatures& examples, double lr, std::int64_t epochs,
                         std::int64_t batch_size, std::int64_t seed) {
  return call("train_epochs", {examples.features, examples.labels, lr, epochs, batch_size, seed})
      .toTensor();
}

at::Tensor Device::delta() { return call("head_delta", {}).toTensor(); }

std::pair<at::Tensor, at::Tensor> Device::private_update(
    const LabelledFeatures& examples, double lr, std::int64_t epochs, std::int64_t batch_size,
    std::int64_t seed, double unit_norm, double clip) {
  const auto fields = call("private_update", {examples.features, examples.labels, lr, epochs,
                                              batch_size, seed, unit_norm, clip})
                          .toTuple();
  return {fields->elements()[0].toTensor(), fields->elements()[1].toTensor()};
}

std::string Device::fingerprint() { return call("fingerprint", {}).toStringRef(); }

}  // namespace fedhead
