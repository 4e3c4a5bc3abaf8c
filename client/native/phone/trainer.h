// What a phone computes with a backbone's file, whichever runtime reads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fedhead {

// A phone's examples, or a part of them.
struct Examples {
  std::string features;              // uint8 (n, d), row by row
  std::vector<std::int64_t> labels;  // (n,), in [0, K)

  std::size_t count() const { return labels.size(); }
};

using Floats = std::vector<float>;  // matrices (K, d + 1) lie in it row by row, bias last

// How to train; what is 0, or empty, is not done.
struct Steps {
  double lr = 0;
  std::uint32_t epochs = 0, batch_size = 0;
  std::uint64_t batch_seed = 0;
  double momentum = 0, weight_decay = 0, mu = 0, unit_norm = 0;
  Floats correction;      // (K, d + 1)
  Floats preconditioner;  // (d + 1, d + 1)
};

// Exact sums over examples, D = d + 1.
struct Sums {
  std::vector<std::uint64_t> gram;     // (D (D + 1) / 2,), the upper triangle, row by row
  std::vector<std::uint64_t> moments;  // (K, D), the count last
};

// What a private round is sent of an update.
struct Clipped {
  std::vector<std::uint32_t> numbers;  // (K, d + 1)
  bool is_within;
};

// The numbers of common.privacy.integers, to the bit; clip is finite and above 0. Throws
// std::runtime_error if the update is not finite.
Clipped clipped(const Floats& update, double clip);

// Called now and then while something takes long; it ends that by throwing.
using GoesOn = std::function<void()>;

// All methods throw std::exception if the runtime refuses. Sizes of arguments are the caller's.
class Trainer {
 public:
  virtual ~Trainer() = default;

  virtual std::string fingerprint() = 0;  // of the backbone, 64 hexadecimal digits
  virtual std::size_t input_size() = 0;   // S: images are (3, S, S)
  virtual std::size_t num_features() = 0;
  virtual std::size_t num_classes() = 0;

  // uint8 (d,) of one image, uint8 (3, S, S). Throws if this machine's arithmetic gives others for
  // the image that the file has with it.
  virtual std::string features(std::string_view image) = 0;

  // The trained head (K, d + 1). Only train_clipped need heed steps.unit_norm.
  virtual Floats train(const Examples& examples, const Floats& head, const Steps& steps,
                       const GoesOn& goes_on) = 0;

  // The same, and of the update only what a private round is sent.
  virtual Clipped train_clipped(const Examples& examples, const Floats& head, const Steps& steps,
                                double clip, const GoesOn& goes_on);

  // Its logits (n, K).
  virtual Floats logits(const Examples& examples, const Floats& head) = 0;

  virtual Sums statistics(const Examples& examples, const GoesOn& goes_on) = 0;
};

// A runtime that this program was built with.
struct Runtime {
  const char* format;  // of phones.proto
  std::unique_ptr<Trainer> (*load)(const std::filesystem::path& file);
};

// The preferred one first.
std::vector<Runtime> runtimes();

}  // namespace fedhead
