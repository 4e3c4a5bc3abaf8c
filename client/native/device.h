// A phone's part of a round, by the methods of device.ptl.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/jit/mobile/module.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace fedhead {

struct LabelledFeatures {
  at::Tensor features;  // uint8 (n, d)
  at::Tensor labels;    // int64 (n,), in [0, K)
};

// The text of an error, without torch's list of functions behind it.
std::string first_line(const c10::Error& error);

// If the model refuses something, it throws a std::exception that says why, and its head
// stays unchanged.
class Device {
 public:
  // Sets torch's quantized engine to qnnpack, which the file's arithmetic is for.
  explicit Device(const std::filesystem::path& model);

  // From a folder DIR/LABEL/*.rgb of planar uint8 images (3, S, S), in the order of their file
  // names, or from a safetensors file with "features" and "labels".
  LabelledFeatures examples(const std::filesystem::path& data);

  void set_head(const at::Tensor& weight, const at::Tensor& bias, const std::string& fingerprint);
  double loss(const LabelledFeatures& examples);

  // Mean loss of each epoch, float32 (epochs,).
  at::Tensor train(const LabelledFeatures& examples, double lr, std::int64_t epochs,
                   std::int64_t batch_size, std::int64_t seed);

  at::Tensor delta();  // float32 (K, d + 1), bias last

  // What a private round sends of its training, which leaves the head alone: the fields
  // "clipped_delta", int64 (K, d + 1), and "within_clip", int64 (1,).
  std::pair<at::Tensor, at::Tensor> private_update(
      const LabelledFeatures& examples, double lr, std::int64_t epochs, std::int64_t batch_size,
      std::int64_t seed, double unit_norm, double clip);
  std::string fingerprint();

  // A method of the file, without autograd; and what the file says of itself.
  c10::IValue call(const std::string& method, std::vector<c10::IValue> arguments);
  c10::IValue attribute(const std::string& name) const;

 private:
  LabelledFeatures from_images(const std::filesystem::path& folder);

  torch::jit::mobile::Module module_;
};

}  // namespace fedhead
