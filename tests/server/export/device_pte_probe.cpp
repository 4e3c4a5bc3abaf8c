// Runs a device.pte without Python: the features of raw images, steps of training, and sums.
//
//   device_pte_probe FILE IMAGES LABELS OUT STEPS LR...
//
// IMAGES holds uint8 planes one image after another, LABELS one int64 for each. LR and what follows
// it are the five settings. Written to OUT: the features, the head after STEPS steps on the
// first 256 at most, from zeros and with zeros for correction and start, their Gram and moments.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

using executorch::aten::ScalarType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::EValue;

namespace {

using Outputs = std::vector<EValue>;

Outputs call(Module& module, const std::string& name, const std::vector<EValue>& inputs) {
  auto result = module.execute(name, inputs);
  if (!result.ok()) {
    std::fprintf(stderr, "%s: error %d\n", name.c_str(), static_cast<int>(result.error()));
    std::exit(1);
  }
  return std::move(result.get());
}

std::vector<char> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <typename T>
void copy(const EValue& value, std::vector<T>& into) {
  const auto tensor = value.toTensor();
  const T* data = tensor.const_data_ptr<T>();
  into.assign(data, data + tensor.numel());
}

template <typename T>
void write(std::ofstream& file, const std::vector<T>& values) {
  file.write(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 11) return 2;
  Module module(argv[1]);
  std::vector<char> pixels = read(argv[2]), raw = read(argv[3]);
  std::vector<int64_t> labels(raw.size() / sizeof(int64_t));
  std::copy(raw.begin(), raw.end(), reinterpret_cast<char*>(labels.data()));
  const int steps = std::atoi(argv[5]);
  std::vector<float> settings;
  for (int i = 6; i < argc; ++i) settings.push_back(std::strtof(argv[i], nullptr));

  const int n = static_cast<int>(labels.size());
  const int size = static_cast<int>(call(module, "input_size", {})[0].toInt());
  const int d = static_cast<int>(call(module, "num_features", {})[0].toInt());
  const int k = static_cast<int>(call(module, "num_classes", {})[0].toInt());

  std::vector<uint8_t> noise, expected, one, features;
  const Outputs probe = call(module, "probe", {});
  copy(probe[0], noise);
  copy(probe[1], expected);
  auto of = [&](uint8_t* image) {
    auto input = from_blob(image, {1, 3, size, size}, ScalarType::Byte);
    copy(call(module, "features", {EValue(input)})[0], one);
    return one;
  };
  if (of(noise.data()) != expected) {
    std::fprintf(stderr, "the probe has other features\n");
    return 3;
  }
  for (int i = 0; i < n; ++i) {
    const auto row = of(reinterpret_cast<uint8_t*>(pixels.data()) + i * 3 * size * size);
    features.insert(features.end(), row.begin(), row.end());
  }

  const int rows = std::min(n, static_cast<int>(call(module, "most_rows", {})[0].toInt()));
  auto q = from_blob(features.data(), {rows, d}, ScalarType::Byte);
  auto y = from_blob(labels.data(), {rows}, ScalarType::Long);
  auto numbers = from_blob(settings.data(), {5}, ScalarType::Float);
  std::vector<float> matrix(k * (d + 1)), velocity(matrix), start(matrix), correction(matrix);
  auto head = [&](std::vector<float>& values) {
    return from_blob(values.data(), {k, d + 1}, ScalarType::Float);
  };
  auto begun = head(start), constant = head(correction);
  for (int i = 0; i < steps; ++i) {
    auto now = head(matrix), moved = head(velocity);
    const Outputs after = call(module, "train_step", {q, y, now, moved, begun, constant, numbers});
    std::vector<float> next;
    copy(after[0], next);
    copy(after[1], velocity);
    matrix = next;
  }

  std::vector<float> gram, moments;
  const Outputs sums = call(module, "gram", {q, y});
  copy(sums[0], gram);
  copy(sums[1], moments);
  std::ofstream out(argv[4], std::ios::binary);
  write(out, features);
  write(out, matrix);
  write(out, gram);
  write(out, moments);
  return out ? 0 : 1;
}
