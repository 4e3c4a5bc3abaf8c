// device.ptl by torch's lite interpreter.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstring>
#include <stdexcept>

#include "../device.h"
#include "trainer.h"

namespace fedhead {
namespace {

at::Tensor tensor(const void* data, at::IntArrayRef shape, at::ScalarType type) {
  return at::from_blob(const_cast<void*>(data), shape, type);
}

Floats floats(const at::Tensor& tensor) {
  const auto dense = tensor.contiguous();
  const auto* data = static_cast<const float*>(dense.data_ptr());
  return {data, data + dense.numel()};
}

template <typename T>
std::vector<T> numbers(const at::Tensor& tensor) {
  const auto dense = tensor.contiguous();
  const auto* data = static_cast<const std::int64_t*>(dense.data_ptr());
  return {data, data + dense.numel()};
}

class Lite : public Trainer {
 public:
  explicit Lite(const std::filesystem::path& file) : device_(file) {
    at::set_num_threads(1);  // a step is too small to share
    fingerprint_ = device_.fingerprint();
  }

  std::string fingerprint() override { return fingerprint_; }
  std::size_t input_size() override { return number("input_size"); }
  std::size_t num_features() override { return number("num_features"); }
  std::size_t num_classes() override { return number("num_classes"); }

  // The file itself checks its probe at the first call.
  std::string features(std::string_view image) override {
    const auto size = static_cast<std::int64_t>(input_size());
    const auto images = tensor(image.data(), {1, 3, size, size}, at::kByte);
    const auto row = device_.call("features", {images}).toTensor().contiguous();
    return {static_cast<const char*>(row.data_ptr()), row.nbytes()};
  }

  Floats train(const Examples& examples, const Floats& head, const Steps& steps,
               const GoesOn& goes_on) override {
    begin(head, steps);
    goes_on();
    device_.call("train_epochs", {features_of(examples), labels_of(examples), steps.lr,
                                  std::int64_t{steps.epochs}, std::int64_t{steps.batch_size},
                                  static_cast<std::int64_t>(steps.batch_seed)});
    goes_on();
    auto trained = floats(device_.delta());
    for (std::size_t i = 0; i < trained.size(); ++i) trained[i] += head[i];
    return trained;
  }

  Clipped train_clipped(const Examples& examples, const Floats& head, const Steps& steps,
                        double clip, const GoesOn& goes_on) override {
    begin(head, steps);
    goes_on();
    const auto [sent, within] = device_.private_update(
        {features_of(examples), labels_of(examples)}, steps.lr, steps.epochs, steps.batch_size,
        static_cast<std::int64_t>(steps.batch_seed), steps.unit_norm, clip);
    goes_on();
    return {numbers<std::uint32_t>(sent), within.item<std::int64_t>() != 0};
  }

  Floats logits(const Examples& examples, const Floats& head) override {
    const auto gain = device_.attribute("gain").toTensor();
    const auto center = device_.attribute("center").toTensor();
    const auto width = static_cast<std::int64_t>(num_features());
    const auto matrix = head_of(head);
    const auto x = (features_of(examples).to(at::kFloat) - center) * gain;
    return floats(at::matmul(x, matrix.slice(1, 0, width).t()) + matrix.select(1, width));
  }

  Sums statistics(const Examples& examples, const GoesOn& goes_on) override {
    goes_on();
    const auto sums =
        device_.call("statistics", {features_of(examples), labels_of(examples)}).toTuple();
    const auto& parts = sums->elements();
    const auto moments = at::cat({parts[1].toTensor(), parts[2].toTensor().unsqueeze(1)}, 1);
    return {numbers<std::uint64_t>(parts[0].toTensor()), numbers<std::uint64_t>(moments)};
  }

 private:
  std::size_t number(const char* name) {
    return static_cast<std::size_t>(device_.attribute(name).toInt());
  }

  at::Tensor features_of(const Examples& examples) {
    const auto count = static_cast<std::int64_t>(examples.count());
    return tensor(examples.features.data(), {count, static_cast<std::int64_t>(num_features())},
                  at::kByte);
  }

  static at::Tensor labels_of(const Examples& examples) {
    const auto count = static_cast<std::int64_t>(examples.count());
    return tensor(examples.labels.data(), {count}, at::kLong);
  }

  at::Tensor head_of(const Floats& head) {
    const auto width = static_cast<std::int64_t>(num_features()) + 1;
    return tensor(head.data(), {static_cast<std::int64_t>(head.size()) / width, width},
                  at::kFloat);
  }

  // Copies: the file keeps its head, whose bytes here may go.
  void begin(const Floats& head, const Steps& steps) {
    const auto matrix = head_of(head);
    const auto last = matrix.size(1) - 1;
    device_.set_head(matrix.slice(1, 0, last).clone(), matrix.select(1, last).clone(),
                     fingerprint_);
    const auto correction =
        steps.correction.empty() ? at::empty({0}) : head_of(steps.correction).clone();
    const auto width = last + 1;
    const auto preconditioner =
        steps.preconditioner.empty()
            ? at::empty({0})
            : tensor(steps.preconditioner.data(), {width, width}, at::kFloat).clone();
    device_.call("set_terms", {steps.momentum, steps.weight_decay, steps.mu, correction,
                               preconditioner});
  }

  Device device_;
  std::string fingerprint_;
};

}  // namespace

std::unique_ptr<Trainer> load_lite(const std::filesystem::path& file) {
  return std::make_unique<Lite>(file);
}

}  // namespace fedhead
