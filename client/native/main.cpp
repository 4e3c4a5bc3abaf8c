// One phone's local training: examples and the global head in, the head's delta out.
#include <ATen/Parallel.h>

#include <charconv>
#include <cstdio>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"
#include "safetensors.h"

namespace {

constexpr const char* kUsage =
    "usage: fedhead-device MODEL.ptl DATA --out DELTA.safetensors [--head HEAD.safetensors]\n"
    "         [--lr 0.05] [--epochs 5] [--batch-size 10] [--seed 0] [--features FILE]\n"
    "DATA is a folder LABEL/*.rgb of raw uint8 images (3 planes, square), or a safetensors\n"
    "file with features and labels, as --features writes it.\n";

struct Options {
  std::vector<std::string> positional;
  std::map<std::string, std::string> named{{"--out", ""},    {"--head", ""},       {"--features", ""},
                                           {"--lr", "0.05"}, {"--epochs", "5"},    {"--seed", "0"},
                                           {"--batch-size", "10"}};
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--", 0) != 0) {
      options.positional.push_back(argument);
      continue;
    }
    const auto found = options.named.find(argument);
    if (found == options.named.end()) throw std::invalid_argument("no such option: " + argument);
    if (++i == argc) throw std::invalid_argument(argument + " needs a value");
    found->second = argv[i];
  }
  if (options.positional.size() != 2) throw std::invalid_argument("expected MODEL.ptl and DATA");
  if (options.named["--out"].empty()) throw std::invalid_argument("--out is missing");
  return options;
}

template <typename T>
T number(const Options& options, const std::string& name) {
  const std::string& text = options.named.at(name);
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw std::invalid_argument(name + " is " + text + ", expected a number");
  }
  return value;
}

// Nine digits are enough to distinguish all float32 values.
std::string digits(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

void run(const Options& options) {
  const auto lr = number<double>(options, "--lr");
  const auto epochs = number<std::int64_t>(options, "--epochs");
  const auto batch_size = number<std::int64_t>(options, "--batch-size");
  const auto seed = number<std::int64_t>(options, "--seed");
  at::set_num_threads(1);  // a step is too small to share

  fedhead::Device device(options.positional[0]);
  if (const auto& head = options.named.at("--head"); !head.empty()) {
    const auto archive = fedhead::read_safetensors(head);
    const auto named = archive.metadata.find("fingerprint");
    if (named == archive.metadata.end()) throw std::runtime_error(head + ": names no fingerprint");
    device.set_head(archive.tensor("weight"), archive.tensor("bias"), named->second);
  }
  const auto examples = device.examples(options.positional[1]);
  if (const auto& path = options.named.at("--features"); !path.empty()) {
    fedhead::write_safetensors(
        path, {{{"features", examples.features}, {"labels", examples.labels}},
               {{"fingerprint", device.fingerprint()}}});
  }
  const double before = device.loss(examples);
  const auto losses = device.train(examples, lr, epochs, batch_size, seed);
  for (std::int64_t epoch = 0; epoch < epochs; ++epoch) {
    std::cout << "epoch " << epoch + 1 << "  loss " << losses[epoch].item<float>() << "\n";
  }
  const double after = device.loss(examples);
  const auto count = examples.labels.size(0);
  fedhead::write_safetensors(options.named.at("--out"),
                             {{{"delta", device.delta()}},
                              {{"fingerprint", device.fingerprint()},
                               {"num-examples", std::to_string(count)},
                               {"loss-before", digits(before)},
                               {"loss-after", digits(after)}}});
  std::cout << count << " examples, loss " << before << " -> " << after << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse(argc, argv));
  } catch (const std::invalid_argument& error) {
    std::cerr << "fedhead-device: " << error.what() << "\n" << kUsage;
    return 2;
  } catch (const c10::Error& error) {
    std::cerr << "fedhead-device: " << fedhead::first_line(error) << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "fedhead-device: " << error.what() << "\n";
    return 1;
  }
}
