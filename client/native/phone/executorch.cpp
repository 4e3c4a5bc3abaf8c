// device.pte by ExecuTorch. Its methods keep nothing: the head goes in and comes out.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/platform.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <stdexcept>
#include <utility>

#include "split.h"
#include "trainer.h"
#include "trouble.h"

namespace fedhead {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;
using executorch::runtime::Program;

using Shape = std::vector<SizesType>;

constexpr std::size_t kLargest = 1 << 20;  // of the whole numbers that a file says of itself

Shape shape_of(std::size_t rows, std::size_t columns) {
  return {static_cast<SizesType>(rows), static_cast<SizesType>(columns)};
}

// The runtime does not write into what goes in.
TensorPtr tensor(const void* data, Shape shape, ScalarType type) {
  return from_blob(const_cast<void*>(data), std::move(shape), type);
}

// A copy of an output, whose place is the runtime's.
template <typename T>
std::vector<T> copied(const EValue& value, const Shape& shape, ScalarType type) {
  if (!value.isTensor()) throw std::runtime_error("an output is no tensor");
  const auto found = value.toTensor();
  if (found.scalar_type() != type ||
      !std::equal(found.sizes().begin(), found.sizes().end(), shape.begin(), shape.end())) {
    throw std::runtime_error("an output has another type or shape than was agreed");
  }
  const auto* data = static_cast<const T*>(found.const_data_ptr());
  return {data, data + found.numel()};
}

// Of what the runtime says, an owner's log need not have how it reads the processor's name.
void log_errors(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, std::size_t,
                const char* message, std::size_t length) {
  if (level != et_pal_log_level_t::kError && level != et_pal_log_level_t::kFatal) return;
  std::clog << "fedhead-phone: ExecuTorch: " << one_line({message, length}) << std::endl;
}

class ExecuTorch : public Trainer {
 public:
  explicit ExecuTorch(const std::filesystem::path& file)
      : module_(file.string(), Module::LoadMode::File) {
    if (module_.load(Program::Verification::InternalConsistency) !=
        executorch::runtime::Error::Ok) {
      throw std::runtime_error(file.string() + ": ExecuTorch cannot load it");
    }
    const auto values = call("fingerprint", {}, 1);
    if (!values[0].isString()) throw std::runtime_error("the file has no fingerprint");
    fingerprint_ = std::string(values[0].toString());
    size_ = number("input_size");
    features_ = number("num_features");
    classes_ = number("num_classes");
    most_rows_ = number("most_rows");
  }

  std::string fingerprint() override { return fingerprint_; }
  std::size_t input_size() override { return size_; }
  std::size_t num_features() override { return features_; }
  std::size_t num_classes() override { return classes_; }

  std::string features(std::string_view image) override {
    if (!is_probed_) probe();
    is_probed_ = true;
    return computed(image);
  }

  Floats train(const Examples& examples, const Floats& head, const Steps& steps,
               const GoesOn& goes_on) override {
    Floats matrix = head, velocity(head.size()), correction = steps.correction;
    correction.resize(head.size());
    for (std::uint32_t epoch = 0; epoch < steps.epochs; ++epoch) {
      const auto order = batch_order(examples.count(), steps.batch_seed, epoch);
      for (std::size_t first = 0; first < order.size(); first += steps.batch_size) {
        goes_on();
        const auto last = std::min<std::size_t>(order.size(), first + steps.batch_size);
        const std::vector<std::size_t> batch(order.begin() + static_cast<std::ptrdiff_t>(first),
                                             order.begin() + static_cast<std::ptrdiff_t>(last));
        step(examples, batch, head, correction, steps, matrix, velocity);
      }
    }
    return matrix;
  }

  Floats logits(const Examples& examples, const Floats& head) override {
    Floats all;
    const auto matrix = tensor(head.data(), head_shape(), ScalarType::Float);
    for (std::size_t first = 0; first < examples.count(); first += most_rows_) {
      const auto rows = std::min(most_rows_, examples.count() - first);
      const auto q = tensor(examples.features.data() + first * features_,
                            shape_of(rows, features_), ScalarType::Byte);
      const auto out = call("predict", {q, matrix}, 1);
      const auto part = copied<float>(out[0], shape_of(rows, classes_), ScalarType::Float);
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

  Sums statistics(const Examples& examples, const GoesOn& goes_on) override {
    const auto width = features_ + 1;
    Sums sums{std::vector<std::uint64_t>(width * (width + 1) / 2),
              std::vector<std::uint64_t>(classes_ * width)};
    for (std::size_t first = 0; first < examples.count(); first += most_rows_) {
      goes_on();
      const auto rows = std::min(most_rows_, examples.count() - first);
      const auto q = tensor(examples.features.data() + first * features_,
                            shape_of(rows, features_), ScalarType::Byte);
      const auto labels = tensor(examples.labels.data() + first,
                                 {static_cast<SizesType>(rows)}, ScalarType::Long);
      const auto out = call("gram", {q, labels}, 2);
      const auto gram = copied<float>(out[0], shape_of(width, width), ScalarType::Float);
      const auto moments = copied<float>(out[1], head_shape(), ScalarType::Float);
      std::size_t at = 0;
      for (std::size_t row = 0; row < width; ++row) {
        for (std::size_t column = row; column < width; ++column) {
          sums.gram[at++] += whole(gram[row * width + column]);
        }
      }
      for (std::size_t i = 0; i < moments.size(); ++i) sums.moments[i] += whole(moments[i]);
    }
    return sums;
  }

 private:
  Shape head_shape() const { return shape_of(classes_, features_ + 1); }

  static std::uint64_t whole(float number) {
    constexpr float kExact = 1 << 24;
    if (!(number >= 0 && number < kExact)) throw std::runtime_error("a sum is not exact");
    return static_cast<std::uint64_t>(number);
  }

  std::vector<EValue> call(const char* method, const std::vector<TensorPtr>& inputs,
                           std::size_t outputs) {
    std::vector<EValue> values;
    for (const auto& input : inputs) values.emplace_back(input);
    auto result = module_.execute(method, values);
    if (!result.ok() || result->size() != outputs) {
      throw std::runtime_error(std::string("the file's method ") + method + " fails, error " +
                               std::to_string(static_cast<int>(result.error())));
    }
    return std::move(*result);
  }

  std::size_t number(const char* method) {
    const auto values = call(method, {}, 1);
    if (!values[0].isInt() || values[0].toInt() < 1 ||
        static_cast<std::size_t>(values[0].toInt()) > kLargest) {
      throw std::runtime_error(std::string("the file's ") + method + " is no such number");
    }
    return static_cast<std::size_t>(values[0].toInt());
  }

  Shape image_shape() const {
    const auto size = static_cast<SizesType>(size_);
    return {1, 3, size, size};
  }

  std::string computed(std::string_view image) {
    if (image.size() != 3 * size_ * size_) throw std::runtime_error("an image of another size");
    const auto out =
        call("features", {tensor(image.data(), image_shape(), ScalarType::Byte)}, 1);
    const auto row = copied<char>(out[0], shape_of(1, features_), ScalarType::Byte);
    return {row.begin(), row.end()};
  }

  // Heads that were trained on other features must not be averaged.
  void probe() {
    const auto out = call("probe", {}, 2);
    const auto image = copied<char>(out[0], image_shape(), ScalarType::Byte);
    const auto expected = copied<char>(out[1], shape_of(1, features_), ScalarType::Byte);
    if (computed({image.data(), image.size()}) != std::string(expected.begin(), expected.end())) {
      throw Trouble("foreign-fingerprint", "this machine computes other features than the server");
    }
  }

  // A batch may have more rows than the file takes at once: its direction is then the mean of its
  // parts' directions, weighted by their rows, because all but the gradient is the same in each.
  void step(const Examples& examples, const std::vector<std::size_t>& batch, const Floats& start,
            const Floats& correction, const Steps& steps, Floats& matrix, Floats& velocity) {
    if (batch.size() <= most_rows_) {
      std::tie(matrix, velocity) =
          part_step(examples, batch, start, correction, steps, matrix, velocity);
      return;
    }
    Floats direction(matrix.size());
    for (std::size_t first = 0; first < batch.size(); first += most_rows_) {
      const auto last = std::min(batch.size(), first + most_rows_);
      const std::vector<std::size_t> part(batch.begin() + static_cast<std::ptrdiff_t>(first),
                                          batch.begin() + static_cast<std::ptrdiff_t>(last));
      const auto found = part_step(examples, part, start, correction, steps, matrix, velocity);
      const auto weight = static_cast<float>(part.size()) / static_cast<float>(batch.size());
      for (std::size_t i = 0; i < direction.size(); ++i) direction[i] += weight * found.second[i];
    }
    const auto lr = static_cast<float>(steps.lr);
    for (std::size_t i = 0; i < matrix.size(); ++i) matrix[i] -= lr * direction[i];
    velocity = std::move(direction);
  }

  std::pair<Floats, Floats> part_step(const Examples& examples,
                                      const std::vector<std::size_t>& batch, const Floats& start,
                                      const Floats& correction, const Steps& steps,
                                      const Floats& matrix, const Floats& velocity) {
    std::string rows;
    std::vector<std::int64_t> labels;
    for (const auto i : batch) {
      rows.append(examples.features, i * features_, features_);
      labels.push_back(examples.labels[i]);
    }
    const std::array<float, 5> settings{
        static_cast<float>(steps.lr), static_cast<float>(steps.momentum),
        static_cast<float>(steps.weight_decay), static_cast<float>(steps.mu),
        static_cast<float>(steps.unit_norm)};
    std::vector<TensorPtr> inputs{
        tensor(rows.data(), shape_of(batch.size(), features_), ScalarType::Byte),
        tensor(labels.data(), {static_cast<SizesType>(batch.size())}, ScalarType::Long)};
    for (const auto* head : {&matrix, &velocity, &start, &correction}) {
      inputs.push_back(tensor(head->data(), head_shape(), ScalarType::Float));
    }
    inputs.push_back(tensor(settings.data(), {5}, ScalarType::Float));
    const bool has_matrix = !steps.preconditioner.empty();
    if (has_matrix) {
      inputs.push_back(tensor(steps.preconditioner.data(), shape_of(features_ + 1, features_ + 1),
                              ScalarType::Float));
    }
    const auto out = call(has_matrix ? "train_step_preconditioned" : "train_step", inputs, 3);
    return {copied<float>(out[0], head_shape(), ScalarType::Float),
            copied<float>(out[1], head_shape(), ScalarType::Float)};
  }

  Module module_;
  std::string fingerprint_;
  std::size_t size_ = 0, features_ = 0, classes_ = 0, most_rows_ = 0;
  bool is_probed_ = false;
};

}  // namespace

std::unique_ptr<Trainer> load_executorch(const std::filesystem::path& file) {
  using executorch::runtime::PalImpl;
  [[maybe_unused]] static const bool is_quiet =
      executorch::runtime::register_pal(PalImpl::create(log_errors, __FILE__));
  return std::make_unique<ExecuTorch>(file);
}

}  // namespace fedhead
